"""Pinned plugins: what is executed is what was checked (go-plugin: SecureConfig).

go-plugin hashes the file ``Cmd.Path`` and then starts that path: of ``python plugin.py`` it checks the interpreter, and whoever may write
to the folder can put another file there between the check and the start. Here the file that makes the plugin is checked, the script
where there is one, and the bytes that were hashed are the ones that run: they are copied while they are hashed into a sealed memory
file, and that one is executed, by its descriptor. It costs the memory of one copy while the plugin runs.

What the plugin itself loads (modules beside the script, shared libraries) is not pinned.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hmac
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fastplug.errors import ChecksumMismatch, ConfigError, StartError
from fastplug.secure import SecureConfig, digest_of

__all__ = ["Pinned", "pin"]

READ_BYTES: Final = 1 << 20
# A memory file of this size is copied in about a second; the largest Go plugins have a few hundred MB.
FILE_BYTES_MAX: Final = 2 << 30

_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*")
# Programs that run what an argument names. A checksum of theirs would pin nothing.
_RUNS_SCRIPTS: Final = re.compile(r"(python|pypy|perl|ruby|node|lua|php|guile|Rscript)[\d.]*|(ba|da|z|k|c|tc|fi)?sh|env|java|busybox")
# MFD_EXEC of Linux 6.3: a memory file may be executed also where vm.memfd_noexec is 1. Older kernels refuse the flag.
_MFD_EXEC: Final = 0x10
_SEALS: Final = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE", "F_SEAL_SEAL")

# Runs a script from a descriptor as `python path arguments` would: __file__, sys.argv, sys.path[0] and tracebacks name the path.
_FROM_DESCRIPTOR: Final = """\
import os, sys
with open(int(sys.argv[1]), "rb") as __file__:
    __source__ = __file__.read()
__file__ = sys.argv[2]
sys.argv = sys.argv[2:]
if sys.path[:1] == [""]:
    sys.path[0] = os.path.dirname(__file__)
del os, sys
exec(compile(__source__, __file__, "exec"))
"""


@dataclasses.dataclass(slots=True)
class Pinned:
    """A command whose pinned files are open. ``executable`` is what to execute in place of ``argv[0]``, None for that itself;
    ``fds`` must be open in the process under the same numbers, and are closed by ``close``."""

    argv: tuple[str, ...]
    executable: str | None
    fds: tuple[int, ...]

    def close(self) -> None:
        """Closes this process's copies. Idempotent."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)


def pin(argv: Sequence[str], secure: SecureConfig) -> Pinned:
    """Checks the file that makes the plugin and returns a command that executes exactly what was checked.

    Raises: ChecksumMismatch; ConfigError when ``argv`` names no file that a checksum could pin; StartError for one that cannot be read.
    """
    script = _script(argv)
    if script is None:
        if secure.interpreter is not None:
            raise ConfigError(f"SecureConfig(interpreter=) needs a script that an interpreter runs; {argv[0]} is a program of its own")
        fd = _checked(_program(argv[0]), secure, digest_of("checksum", secure.checksum))
        return Pinned(tuple(argv), _by_descriptor(fd), (fd,))
    fds = [_checked(Path(argv[script]).absolute(), secure, digest_of("checksum", secure.checksum))]
    executable = None
    try:
        if secure.interpreter is not None:
            fds.append(_checked(_program(argv[0]), secure, digest_of("interpreter", secure.interpreter)))
            executable = _by_descriptor(fds[1])
    except BaseException:
        os.close(fds[0])
        raise
    runs = [_by_descriptor(fds[0])]
    if _PYTHON.fullmatch(Path(argv[0]).name):
        runs = ["-c", _FROM_DESCRIPTOR, str(fds[0]), str(Path(argv[script]).absolute())]
    return Pinned((*argv[:script], *runs, *argv[script + 1 :]), executable, tuple(fds))


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _script(argv: Sequence[str]) -> int | None:
    """Where in ``argv`` the script is, None for a program that runs by itself."""
    if not _RUNS_SCRIPTS.fullmatch(Path(argv[0]).name):
        return None
    at = next((at for at, part in enumerate(argv[1:], 1) if not part.startswith("-")), None)
    options = argv[1:at]
    if at is None or Path(argv[0]).name in ("env", "java", "busybox") or not Path(argv[at]).is_file() or {"-c", "-m", "-e"} & set(options):
        raise ConfigError(
            f"a checksum pins a file, and {' '.join(argv)!r:.200} starts none that could be pinned: {argv[0]} is not the plugin."
            " Name the script or program itself as the target."
        )
    return at


def _program(program: str) -> Path:
    found = program if os.sep in program else shutil.which(program)
    if found is None:
        raise StartError(f"there is no program {program!r} on PATH: install it, or name its file")
    return Path(found).absolute()


def _checked(path: Path, secure: SecureConfig, expected: bytes) -> int:
    """A read-only descriptor of a sealed copy of ``path``, whose digest is ``expected``."""
    try:
        fd, digest = _copy(path, secure)
    except OSError as error:
        raise StartError(f"error verifying checksum: {path} cannot be read or copied: {error}. The plugin was not started.") from error
    if not hmac.compare_digest(digest, expected):
        os.close(fd)
        raise ChecksumMismatch(
            f"checksums did not match: {path} has {secure.hash_name()} {digest.hex()}, pinned is {expected.hex()}."
            " The plugin was not started. Either the file is not the one you mean, or it was updated and the pin was not."
        )
    return fd


def _copy(path: Path, secure: SecureConfig) -> tuple[int, bytes]:
    hashed, size = secure.new_hash(), 0
    writable = _memory_file(path.name)
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                size += len(data)
                if size > FILE_BYTES_MAX:
                    raise StartError(f"{path} has more than {FILE_BYTES_MAX} bytes: it cannot be pinned")
                hashed.update(data)
                _write_all(writable, data)
        for seal in _SEALS:
            fcntl.fcntl(writable, fcntl.F_ADD_SEALS, getattr(fcntl, seal))
        os.fchmod(writable, 0o500)
        # What is open for writing cannot be executed (ETXTBSY), sealed or not.
        return os.open(_by_descriptor(writable), os.O_RDONLY | os.O_CLOEXEC), bytes(hashed.digest())
    finally:
        os.close(writable)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _memory_file(name: str) -> int:
    if not hasattr(os, "memfd_create"):
        raise StartError("a plugin can be pinned on Linux only: this system has no memory files (memfd_create)")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(f"pinned {name}"[:200], flags | _MFD_EXEC)
    except OSError:
        return os.memfd_create(f"pinned {name}"[:200], flags)
