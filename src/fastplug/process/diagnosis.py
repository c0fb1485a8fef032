"""Why a program does not start, or is no plugin: findings from its file, in words that say what to do.

go-plugin describes argv[0], which for ``sh -c`` or ``python plugin.py`` is the interpreter. Here the script is described too.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["diagnose"]

# An ELF header and its program headers fit in here; nothing further in is read.
HEAD_BYTES = 4096

# e_machine of the ELF header (elf.h) -> names as in os.uname().machine
_MACHINES = {
    3: ("i386", "i486", "i586", "i686"),
    8: ("mips",),
    20: ("ppc",),
    21: ("ppc64", "ppc64le"),
    22: ("s390x",),
    40: ("armv6l", "armv7l", "armv8l", "arm"),
    62: ("x86_64",),
    183: ("aarch64", "arm64"),
    243: ("riscv64",),
    258: ("loongarch64",),
}
_PT_INTERP = 3
_MACH_O = (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_SCRIPT_SUFFIXES = {".py": "python", ".pyw": "python", ".sh": "sh", ".rb": "ruby", ".js": "node", ".pl": "perl"}

_EXIT_HINTS = {
    0: "it ended without an error: does it call fastplug.serve(), and is that line reached?",
    126: "a shell found a command that it may not execute",
    127: "a shell did not find a command, or the dynamic loader did not find a library",
}
_SIGNAL_HINTS = {
    signal.SIGKILL: "something killed it: the kernel when memory ran out, a supervisor, or this host after a time-out",
    signal.SIGSEGV: "it crashed in native code: python -X faulthandler shows where",
    signal.SIGILL: "it contains instructions that this CPU does not have: was it built for another one?",
    signal.SIGABRT: "it aborted itself; its last lines on stderr say why",
    signal.SIGPIPE: "it wrote to a pipe that nobody reads any more",
}


def diagnose(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    error: BaseException | None = None,
    returncode: int | None = None,
) -> str:
    """Findings about the command ``argv``, one a line. Reads files, starts nothing, raises nothing of its own.

    ``error`` is what starting it raised; ``returncode`` how it ended, as in subprocess.
    """
    lines = [f"Command: {' '.join(map(_quoted, argv))}"]
    lines += _cwd_findings(cwd)
    program = _locate(argv[0], env, cwd)
    if program is None:
        lines.append(_not_found(argv[0], env, cwd))
    else:
        lines += _program_findings(program)
        lines += _script_findings(program, argv, cwd)
    if error is not None and len(lines) == 1:
        lines.append("Nothing is wrong with its file as far as can be seen; the system's own words are above.")
    if returncode is not None:
        lines.append(_ending(returncode))
    return "\n".join(lines)


def _quoted(part: str) -> str:
    return part if part and not set(part) & set(" \t\n'\"\\$") else repr(part)


def _in(cwd: str | None, path: str) -> Path:
    return Path(cwd or ".").absolute() / path


def _locate(program: str, env: Mapping[str, str] | None, cwd: str | None) -> Path | None:
    """The file that the kernel would be given, also when it is not executable."""
    if os.sep in program:
        path = _in(cwd, program)
        return path if path.exists() else None
    found = shutil.which(program, path=os.pathsep.join(os.get_exec_path(env)))
    if found is not None:
        return Path(found)
    inert = (Path(folder, program) for folder in os.get_exec_path(env))
    return next((path for path in inert if path.is_file()), None)


def _not_found(program: str, env: Mapping[str, str] | None, cwd: str | None) -> str:
    if os.sep in program:
        path = _in(cwd, program)
        parent = next(folder for folder in path.parents if folder.exists())
        missing = "" if parent == path.parent else f" (its folder is missing too: nothing below {parent})"
        dangling = f" It is a link to {path.readlink()}, which does not exist." if path.is_symlink() else ""
        return f"There is no file {path}{missing}.{dangling}"
    here = f" There is a file of that name in {_in(cwd, '')}: write './{program}' to mean it." if _in(cwd, program).is_file() else ""
    return f"There is no program {program!r} in the folders of PATH: {os.pathsep.join(os.get_exec_path(env))}.{here}"


def _cwd_findings(cwd: str | None) -> Iterator[str]:
    if cwd is not None and not Path(cwd).is_dir():
        yield f"Its working directory {cwd} {'is not a directory' if Path(cwd).exists() else 'does not exist'}."


def _program_findings(path: Path) -> Iterator[str]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            yield f"{path} is a directory, not a program."
            return
        if not os.access(path, os.X_OK):
            yield _not_executable(path, status)
            return
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        yield f"{path} cannot be examined: {error.strerror}."
        return
    yield from _head_findings(path, head)


def _not_executable(path: Path, status: os.stat_result) -> str:
    mode = stat.filemode(status.st_mode)
    if status.st_mode & 0o111 and os.geteuid() != status.st_uid:
        return f"{path} may not be executed by user {os.geteuid()} (mode {mode}, owner {status.st_uid}, group {status.st_gid})."
    interpreter = _SCRIPT_SUFFIXES.get(path.suffix)
    other = f", or start it through its interpreter: [{interpreter!r}, {str(path)!r}]" if interpreter else ""
    return f"{path} is not executable (mode {mode}): chmod +x {path}{other}."


def _head_findings(path: Path, head: bytes) -> Iterator[str]:
    if head.startswith(b"\x7fELF"):
        yield from _elf_findings(path, head)
    elif head.startswith(b"#!"):
        yield from _shebang_findings(path, head)
    elif not head:
        yield f"{path} is empty."
    elif head.startswith(b"MZ"):
        yield f"{path} is a Windows program; this is {os.uname().sysname}."
    elif head.startswith(_MACH_O):
        if os.uname().sysname != "Darwin":
            yield f"{path} is a macOS program; this is {os.uname().sysname}."
    elif b"\0" not in head:
        interpreter = _SCRIPT_SUFFIXES.get(path.suffix, "python")
        yield (
            f"{path} is a script without a '#!' line, so the system does not know what runs it: "
            f"begin it with '#!/usr/bin/env {interpreter}' or start [{interpreter!r}, {str(path)!r}]."
        )
    else:
        yield f"{path} is no program that this system knows (it begins with {head[:4].hex(' ')})."


def _shebang_findings(path: Path, head: bytes) -> Iterator[str]:
    line = head[2:].split(b"\n", 1)[0]
    if line.endswith(b"\r"):
        yield f"The '#!' line of {path} ends with a carriage return (Windows line ends): dos2unix {path}."
    words = os.fsdecode(line.strip()).split()
    if not words:
        yield f"The '#!' line of {path} names no interpreter."
    elif not Path(words[0]).exists():
        yield f"{path} is to be run by {words[0]}, as its first line says, but there is no such file."
    elif Path(words[0]).name == "env" and len(words) > 1 and not words[1].startswith("-") and shutil.which(words[1]) is None:
        yield f"{path} is to be run by {words[1]!r}, as its first line says, but there is no such program on PATH."


def _elf_findings(path: Path, head: bytes) -> Iterator[str]:
    try:
        order = "<" if head[5] == 1 else ">"
        (machine,) = struct.unpack_from(order + "H", head, 18)
        here = os.uname().machine
        names = _MACHINES.get(machine, (f"machine number {machine}",))
        if here not in names and not (machine == 3 and here == "x86_64"):
            yield f"{path} was built for {names[0]}; this machine is {here}."
            return
        interpreter = _elf_interpreter(head, order, is_64_bit=head[4] == 2)
    except (struct.error, IndexError):
        yield f"{path} is a damaged ELF file: its header is cut off."
        return
    if interpreter and not Path(interpreter).exists():
        yield f"{path} needs the dynamic loader {interpreter}, which is not installed (built for another libc?)."


def _elf_interpreter(head: bytes, order: str, *, is_64_bit: bool) -> str | None:
    """The dynamic loader that an ELF file asks for (gABI: e_phoff, e_phentsize, e_phnum; PT_INTERP)."""
    (offset,) = struct.unpack_from(order + ("Q" if is_64_bit else "I"), head, 32 if is_64_bit else 28)
    entry_bytes, count = struct.unpack_from(order + "HH", head, 54 if is_64_bit else 42)
    for index in range(count):
        at = offset + index * entry_bytes
        if at + entry_bytes > len(head):
            return None
        if struct.unpack_from(order + "I", head, at)[0] == _PT_INTERP:
            (start,) = struct.unpack_from(order + ("Q" if is_64_bit else "I"), head, at + (8 if is_64_bit else 4))
            (size,) = struct.unpack_from(order + ("Q" if is_64_bit else "I"), head, at + (32 if is_64_bit else 16))
            return os.fsdecode(head[start : start + size].rstrip(b"\0")) or None
    return None


def _script_findings(program: Path, argv: Sequence[str], cwd: str | None) -> Iterator[str]:
    """``python plugin.py``: the program is an interpreter and what matters is the script."""
    script = next((part for part in argv[1:] if not part.startswith("-")), None)
    if script is None or Path(script).suffix not in _SCRIPT_SUFFIXES or argv[1] in ("-m", "-c"):
        return
    path = _in(cwd, script)
    if not path.exists():
        yield f"{program.name} is to run the script {path}, which does not exist."
    elif path.is_dir():
        yield f"{program.name} is to run {path}, which is a directory."
    elif not os.access(path, os.R_OK):
        yield f"{program.name} is to run the script {path}, which may not be read by user {os.geteuid()}."


def _ending(returncode: int) -> str:
    if returncode >= 0:
        hint = _EXIT_HINTS.get(returncode)
        return f"It ended with exit code {returncode}" + (f": {hint}" if hint else "") + ("" if hint and hint.endswith("?") else ".")
    try:
        name = signal.Signals(-returncode)
    except ValueError:
        return f"It was ended by signal {-returncode}."
    hint = _SIGNAL_HINTS.get(name)
    return f"It was ended by signal {-returncode} ({name.name})" + (f": {hint}." if hint else ".")
