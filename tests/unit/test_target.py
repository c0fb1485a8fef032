"""What a target means. Entry points are real ones: distributions with metadata in a folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastplug.errors import ConfigError, StartError
from fastplug.process.target import Command, InProcess, interpreter, resolve_target


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def install(folder: Path, distribution: str, name: str, value: str) -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fastplug.plugins]\n{name} = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def path_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize("target", [["prog", "-x"], ("prog", "-x")])
def test_a_sequence_is_an_argv(target: list[str]) -> None:
    assert resolve_target(target) == Command(("prog", "-x"), "prog")


def test_the_name_of_an_argv_is_that_of_its_script() -> None:
    assert resolve_target([sys.executable, "-u", "/x/dsp.py", "--fast"]).name == "dsp"
    assert resolve_target([Path("/usr/bin/sort"), "x.py"]).name == "sort"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_script_runs_under_this_interpreter(here: Path, kind: type) -> None:
    (here / "dsp.py").write_text("")
    assert resolve_target(kind("dsp.py")) == Command((sys.executable, str(here / "dsp.py")), "dsp")


def test_a_file_is_started_itself(here: Path) -> None:
    make_program(here / "sub" / "dsp.bin")
    assert resolve_target("sub/dsp.bin") == Command((str(here / "sub" / "dsp.bin"),), "dsp.bin")
    make_program(here / "dsp")
    assert resolve_target("dsp") == Command((str(here / "dsp"),), "dsp")


@pytest.mark.parametrize("target", ["nope.py", "./nope", Path("nope")])
def test_a_missing_file_is_named_in_full(here: Path, target: str | Path) -> None:
    with pytest.raises(StartError, match=str(here / "nope")):
        resolve_target(target)


def test_a_folder_is_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        resolve_target(here)


def test_a_colon_means_this_process() -> None:
    assert resolve_target("acme.dsp:Dsp") == InProcess("acme.dsp", "Dsp", "Dsp")


@pytest.mark.usefixtures("path_folder")
def test_an_entry_point_runs_by_its_value(site: Path) -> None:
    install(site, "acme", "dsp", "acme.plugin:Dsp")
    assert resolve_target("dsp") == Command((sys.executable, "-P", "-m", "fastplug.entry", "acme.plugin:Dsp"), "dsp")


def test_a_program_on_path(path_folder: Path) -> None:
    program = make_program(path_folder / "dsp")
    assert resolve_target("dsp") == Command((str(program),), "dsp")


def test_two_distributions_with_one_name_are_both_named(site: Path) -> None:
    install(site, "acme", "dsp", "acme.plugin:Dsp")
    install(site, "other", "dsp", "other:Dsp")
    with pytest.raises(ConfigError, match=r"acme\.plugin:Dsp of acme.*other:Dsp of other|other:Dsp of other.*acme\.plugin:Dsp of acme"):
        resolve_target("dsp")


def test_entry_point_and_program_are_both_named(site: Path, path_folder: Path) -> None:
    install(site, "acme", "dsp", "acme.plugin:Dsp")
    make_program(path_folder / "dsp")
    with pytest.raises(ConfigError, match=r"entry point acme\.plugin:Dsp.*the program .*bin/dsp .*to mean it, say \['dsp'\]"):
        resolve_target("dsp")


def test_file_and_program_are_both_named(here: Path, path_folder: Path) -> None:
    make_program(path_folder / "dsp")
    make_program(here / "dsp")
    with pytest.raises(ConfigError, match=r"the file .*say '\./dsp'.*the program"):
        resolve_target("dsp")


def test_none_says_what_was_looked_for(path_folder: Path) -> None:
    with pytest.raises(StartError, match=r"no file .*/dsp, no entry point 'dsp' .* and no program 'dsp' on PATH"):
        resolve_target("dsp")


def make_environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def test_python_may_be_a_virtual_environment(here: Path) -> None:
    environment = make_environment(here / "env")
    (here / "dsp.py").write_text("")
    for python in (environment, "env", environment / "bin" / "python", "env/bin/python"):
        assert resolve_target("dsp.py", python=python) == Command((str(environment / "bin" / "python"), str(here / "dsp.py")), "dsp")


@pytest.mark.usefixtures("path_folder")
def test_entry_points_are_those_of_the_chosen_environment(here: Path, site: Path) -> None:
    environment = make_environment(here / "env")
    install(site, "acme", "dsp", "acme.plugin:Dsp")
    with pytest.raises(StartError, match=r"in the environment of .*/env/bin/python"):
        resolve_target("dsp", python=environment)
    install(environment / "lib" / "python3.11" / "site-packages", "acme", "dsp", "acme.other:Dsp")
    plugin = resolve_target("dsp", python=environment)
    assert isinstance(plugin, Command)
    assert plugin.argv == (str(environment / "bin" / "python"), "-P", "-m", "fastplug.entry", "acme.other:Dsp")


@pytest.mark.parametrize("python", ["no-such-python", "./no-such-python", Path("no-such-python"), "."])
def test_a_wrong_python_is_named(here: Path, python: str | Path) -> None:
    (here / "dsp.py").write_text("")
    with pytest.raises(ConfigError, match="python="):
        resolve_target("dsp.py", python=python)


@pytest.mark.parametrize("target", [["prog"], "acme.dsp:Dsp", "./prog", "prog"])
def test_python_is_refused_where_it_has_no_use(here: Path, target: str | list[str]) -> None:
    make_program(here / "prog")
    with pytest.raises(ConfigError, match="leave python= out"):
        resolve_target(target, python=sys.executable)


@pytest.mark.parametrize("target", ["", [], (), None, 7, b"x", [7]])
def test_what_is_no_target_is_refused(target: object) -> None:
    with pytest.raises(ConfigError):
        resolve_target(target)  # type: ignore[arg-type]


def test_python_on_path(path_folder: Path) -> None:
    program = make_program(path_folder / "python9")
    assert interpreter("python9") == str(program)
