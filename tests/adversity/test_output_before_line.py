"""What a plugin prints and flushes before serve(): the host passes over it to the handshake line, and it is not lost."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.conformance.conftest import plugin_environment

import fastplug

__all__: list[str] = []


def test_flushed_text_before_the_line_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = tmp_path / "banner_plugin.py"
    script.write_text(
        "import runpy\n"
        "print('a banner', flush=True)\n"
        "print('and more', flush=True)\n"
        "runpy.run_module('tests.plugins.station_plugin', run_name='__main__')\n"
    )
    with caplog.at_level(logging.INFO, "fastplug.plugin.banner_plugin"), fastplug.start(script, env=plugin_environment()) as client:
        client.ping()
    said = [record.getMessage() for record in caplog.records if record.name == "fastplug.plugin.banner_plugin"]
    assert said[:2] == ["a banner", "and more"]
