"""What ``python -m fastplug.entry`` makes of its argument."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from fastplug.entry import load, main
from fastplug.errors import ConfigError


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "entry_acme.py").write_text("class Dsp:\n    class Inner: ...\n\nserved = []\n\ndef plugin():\n    served.append(1)\n")
    info = tmp_path / "entry_acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: entry-acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fastplug.plugins]\nentry-dsp = entry_acme:Dsp [extra]\nentry-module = entry_acme\nentry-missing = entry_acme:Nope\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_load_by_name_and_by_value() -> None:
    entry_acme = importlib.import_module("entry_acme")
    assert load("entry-dsp") is entry_acme.Dsp
    assert load("entry_acme:Dsp") is entry_acme.Dsp
    assert load("entry_acme:Dsp.Inner") is entry_acme.Dsp.Inner


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("entry-nobody", "none has"),
        ("entry-module", "declare it as entry_acme:YourClass"),
        ("entry-missing", "Nope of module entry_acme cannot be loaded"),
        ("entry_nothing:Dsp", "cannot be loaded: No module named 'entry_nothing'"),
    ],
)
def test_what_cannot_be_loaded_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(name)


def test_a_function_that_returns_nothing_has_served() -> None:
    entry_acme = importlib.import_module("entry_acme")
    before = len(entry_acme.served)
    assert main(["entry_acme:plugin"]) == 0
    assert len(entry_acme.served) == before + 1


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
