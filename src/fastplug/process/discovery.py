"""Plugins by their file names (go-plugin: Discover)."""

from __future__ import annotations

from pathlib import Path

from fastplug.errors import ConfigError

__all__ = ["discover"]


def discover(pattern: str, directory: str | Path) -> list[Path]:
    """The files of ``directory`` whose names fit ``pattern``, as absolute paths, sorted: each can be a target.

    It is a look at names, as in go-plugin: whether a file is a plugin, or may be executed, shows when it is started.

    Args:
        pattern: as in ``Path.glob``, such as "terraform-provider-*".
        directory: where to look; it need not exist.

    Raises: ConfigError for a pattern that is none.
    """
    folder = Path(directory).absolute()
    try:
        return sorted(path for path in folder.glob(pattern) if not path.is_dir())
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"discover() takes a pattern below a directory, such as 'terraform-provider-*', got {pattern!r}: {error}"
        ) from error
