"""Where shared memory cannot be had, the same calls run over a socket, without a word from the user."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from tests.plugins.sums_api import Sums

import fastplug

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(fastplug.__file__).parents[1])])}

HOST = """
import resource, tempfile, fastplug
tempfile.gettempdir()                                   # it tries by writing, which the limit forbids, too
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))      # no memfd can be given a size any more
from tests.plugins.sums_api import Sums
with fastplug.open({plugin!r}, Sums) as sums:
    print(fastplug.client_of(sums).transport, sums.total(b"ab"))
"""


def test_a_plugin_that_cannot_make_memory_takes_the_socket() -> None:
    with fastplug.open(PLUGINS / "sums_without_memory_plugin.py", Sums, env=ENV) as sums:
        assert fastplug.client_of(sums).transport == "socket"
        assert sums.total(b"ab") == 97 + 98


def test_a_host_that_cannot_make_memory_offers_the_socket() -> None:
    program = HOST.format(plugin=str(PLUGINS / "sums_plugin.py"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=os.environ | ENV)
    assert done.stdout.split() == ["socket", "195"]


def test_the_probe_leaves_nothing() -> None:
    from fastplug.shm._segment import available, live

    before = live()
    assert available()
    assert live() == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
