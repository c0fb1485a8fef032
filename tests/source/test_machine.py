"""The project is of no one machine: tracked files name no path of one, and no host of a package registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.source import tree

# Both are written so that this file does not contain what it looks for.
HOMES = re.compile(r"(?<![\w./~$}])/(?:root|work|home/[a-z]|Users)(?=/|\b)")
REGISTRIES = re.compile(
    "|".join(
        re.escape(host)
        for host in (
            "pypi" + ".org",
            "pythonhosted" + ".org",
            "proxy.golang" + ".org",
            "sum.golang" + ".org",
            "registry.npmjs" + ".org",
            "conda.anaconda" + ".org",
            "deb.debian" + ".org",
            "archive.ubuntu" + ".com",
        )
    )
)


def text_of(path: Path) -> str | None:
    data = path.read_bytes()
    return None if b"\0" in data[:8192] else data.decode(errors="replace")


@pytest.mark.parametrize("path", tree.tracked_files(), ids=lambda path: str(path.relative_to(tree.ROOT)))
def test_no_machine_is_named(path: Path) -> None:
    text = text_of(path)
    if text is None:
        return
    found = [
        f"{path.relative_to(tree.ROOT)}:{number}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), 1)
        if HOMES.search(line) or REGISTRIES.search(line)
    ]
    assert not found, "\n".join(found)
