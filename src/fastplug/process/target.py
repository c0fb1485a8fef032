"""From what a user names as a plugin to what is started: a command, or a class of this process.

| target | means |
|---|---|
| list or tuple | an argv, taken as it is |
| Path; str with a slash, ending in .py, or naming an existing file | that file; ``.py`` under an interpreter |
| ``module:Class`` | that class in this process |
| other str | an installed entry point (group ``fastplug.plugins``), or a program on PATH |
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastplug.errors import ConfigError, StartError

__all__ = ["ENTRY_POINT_GROUP", "Command", "InProcess", "interpreter", "resolve_target"]

ENTRY_POINT_GROUP = "fastplug.plugins"

_IN_PROCESS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_INTERPRETER = re.compile(r"(python|pypy)[\d.]*")
_IN_ENVIRONMENT = ("bin/python", "Scripts/python.exe")


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """Start this program. ``name`` is what the plugin is called unless the user says otherwise."""

    argv: tuple[str, ...]
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class InProcess:
    """Import ``module`` in this process and serve its ``attribute`` (dotted: an attribute of an attribute)."""

    module: str
    attribute: str
    name: str


def resolve_target(
    target: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, python: str | os.PathLike[str] | None = None
) -> Command | InProcess:
    """What ``target`` means, looked up now, relative to the current directory.

    Args:
        target: see the table above.
        python: an interpreter, or the folder of a virtual environment, for a ``.py`` file or an entry point; entry points are
            looked up there. None is this process's interpreter.

    Raises: ConfigError when the target is none, fits two plugins, or has no use for ``python``; StartError when there is none.
    Thread-safe.
    """
    if isinstance(target, os.PathLike):
        return _file(Path(target), python)
    if not isinstance(target, str):
        return _argv(target, python)
    if target.endswith(".py") or os.sep in target:
        return _file(Path(target), python)
    if not target:
        raise ConfigError("the target is an empty string: name a script, a program, an entry point or module:Class")
    return _bare(target, python)


def _argv(target: Sequence[str | os.PathLike[str]], python: str | os.PathLike[str] | None) -> Command:
    if not isinstance(target, (list, tuple)) or not target or not all(isinstance(part, (str, os.PathLike)) for part in target):
        raise ConfigError(f"a target is a str, a Path, or a list of a program and its arguments; got {target!r}")
    _refuse_python(python, "an argv")
    argv = tuple(os.fspath(part) for part in target)
    program = Path(argv[0]).name
    scripts = [part for part in argv[1:] if part.endswith(".py")] if _INTERPRETER.fullmatch(program) else []
    return Command(argv, Path(scripts[0]).stem if scripts else program)


def _file(path: Path, python: str | os.PathLike[str] | None) -> Command:
    absolute = path.absolute()  # a plugin may be started in another working directory
    if not absolute.exists():
        raise StartError(f"there is no plugin file {absolute}: correct the path (a relative one counts from {Path.cwd()})")
    if absolute.is_dir():
        raise ConfigError(f"the target {absolute} is a directory: name the script or program in it")
    if absolute.suffix == ".py":
        return Command((interpreter(python), str(absolute)), absolute.stem)
    _refuse_python(python, f"{absolute}, which does not end in .py")
    return Command((str(absolute),), absolute.name)


class _Meaning(NamedTuple):
    what: str
    spelling: str  # how to name it so that it can mean nothing else
    plugin: Command | InProcess
    takes_python: bool = False


def _bare(name: str, python: str | os.PathLike[str] | None) -> Command | InProcess:
    """A name without a slash can mean several things; it has to mean exactly one."""
    meanings = list(_meanings(name, python))
    if len(meanings) > 1:
        both = "; and ".join(f"{meaning.what} (to mean it, say {meaning.spelling})" for meaning in meanings)
        raise ConfigError(f"the target {name!r} fits more than one plugin: {both}")
    if not meanings:
        raise StartError(
            f"there is no plugin {name!r}: no file {Path.cwd() / name}, no entry point {name!r} of group {ENTRY_POINT_GROUP!r} "
            f"in {_environment(python)}, and no program {name!r} on PATH. Install it, or name its file"
        )
    if not meanings[0].takes_python:
        _refuse_python(python, meanings[0].what)
    return meanings[0].plugin


def _meanings(name: str, python: str | os.PathLike[str] | None) -> Iterator[_Meaning]:
    file = Path(name).absolute()
    if file.is_file():
        yield _Meaning(f"the file {file}", repr(f".{os.sep}{name}"), Command((str(file),), file.name))
    if _IN_PROCESS.fullmatch(name):
        module, _, attribute = name.partition(":")
        yield _Meaning(f"{attribute} of module {module} in this process", repr(name), InProcess(module, attribute, attribute))
        return  # no name of an entry point or program, and looking for one costs milliseconds
    for value, distribution in _entry_points(name, python):
        argv = (interpreter(python), "-P", "-m", "fastplug.entry", value)  # -P: what is installed needs no module of the working directory
        yield _Meaning(f"the entry point {value} of {distribution}", repr(list(argv)), Command(argv, name), takes_python=True)
    program = _which(name)
    if program is not None:
        yield _Meaning(f"the program {program}", repr([name]), Command((program,), name))


def _entry_points(name: str, python: str | os.PathLike[str] | None) -> Iterator[tuple[str, str]]:
    """(``module:attribute``, distribution) of each installed entry point of that name."""
    import importlib.metadata as metadata  # 20 ms, and only a bare name needs it

    if python is None:
        found = iter(metadata.entry_points(group=ENTRY_POINT_GROUP, name=name))
    else:
        folders = [str(folder) for folder in _site_folders(python)]
        distributions = metadata.distributions(path=folders)
        found = (point for dist in distributions for point in dist.entry_points.select(group=ENTRY_POINT_GROUP, name=name))
    for point in found:
        yield f"{point.module}:{point.attr}", getattr(point.dist, "name", None) or "an unnamed distribution"


def interpreter(python: str | os.PathLike[str] | None) -> str:
    """The interpreter that ``python`` means: a program, or the folder of a virtual environment; None is this one.

    Raises: ConfigError when there is none.
    """
    if python is None:
        if not sys.executable:
            raise ConfigError("this process does not know its Python interpreter (sys.executable is empty): say python=")
        return sys.executable
    given = os.fspath(python)
    path = Path(given).absolute()  # not resolved: the link is what makes it the interpreter of a virtual environment
    if path.is_dir():
        inside = next((path / name for name in _IN_ENVIRONMENT if (path / name).exists()), None)
        if inside is None:
            raise ConfigError(f"python={given!r} is a folder but no virtual environment: there is no {path / _IN_ENVIRONMENT[0]}")
        return str(inside)
    found = _which(given if isinstance(python, str) and os.sep not in given else str(path))
    if found is None:
        raise ConfigError(f"python={given!r}: there is no such program that may be executed")
    return found


def _which(program: str) -> str | None:
    import shutil  # with the compression modules it imports 5 ms, and a script does not need it

    return shutil.which(program)


def _site_folders(python: str | os.PathLike[str]) -> list[Path]:
    prefix = Path(interpreter(python)).parent.parent
    return [*prefix.glob("lib/python3*/site-packages"), *prefix.glob("lib/python3*/dist-packages")]


def _environment(python: str | os.PathLike[str] | None) -> str:
    return "this environment" if python is None else f"the environment of {interpreter(python)}"


def _refuse_python(python: str | os.PathLike[str] | None, what: str) -> None:
    if python is not None:
        raise ConfigError(f"python= chooses the interpreter of a .py file or an entry point, but the target is {what}: leave python= out")
