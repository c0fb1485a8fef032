"""What the file of a pinned plugin must be (go-plugin: SecureConfig). ``process/checksum.py`` checks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from fastplug.errors import ConfigError

__all__ = ["SecureConfig", "digest_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class SecureConfig:
    """What the plugin's file must be (go-plugin: SecureConfig).

    Args:
        checksum: digest of the program, or of the script where an interpreter runs one; bytes, or hexadecimal digits.
        hash: a name that ``hashlib.new`` knows, or what makes a hash object (``hashlib.sha256``).
        interpreter: digest of the interpreter as well, when a script is pinned; None leaves it to the machine.

    Raises: ConfigError when there is nothing to compare with.
    """

    checksum: bytes | str
    hash: str | Callable[[], Any] = "sha256"
    interpreter: bytes | str | None = None

    def __post_init__(self) -> None:
        if not self.hash:
            raise ConfigError("no hash implementation provided: SecureConfig(hash=) is the name of one, or hashlib.sha256")
        try:
            size = self.new_hash().digest_size
        except Exception as error:
            raise ConfigError(f"SecureConfig(hash={self.hash!r}) makes no hash object: {error}") from error
        for name, value in (("checksum", self.checksum), ("interpreter", self.interpreter)):
            if value is not None and len(digest_of(name, value)) != size:
                raise ConfigError(f"SecureConfig({name}=) has {len(digest_of(name, value))} bytes; a {self.hash_name()} digest has {size}")

    def new_hash(self) -> Any:
        """A fresh hash object."""
        import hashlib  # 3 ms, and most plugins are not pinned

        return hashlib.new(self.hash) if isinstance(self.hash, str) else self.hash()

    def hash_name(self) -> str:
        """For texts."""
        return str(getattr(self.new_hash(), "name", "hash"))


def digest_of(name: str, value: bytes | str) -> bytes:
    """The bytes of a digest. Raises ConfigError."""
    try:
        digest = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"SecureConfig({name}=) is bytes or hexadecimal digits, got {value!r:.100}") from error
    if not digest:
        raise ConfigError(f"no checksum provided: SecureConfig({name}=) is empty")
    return digest
