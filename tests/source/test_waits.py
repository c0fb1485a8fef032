"""Every wait has a bound that holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.source import tree

FILES = [pytest.param(path, id=path.name) for files in tree.modules().values() for path in files]


@pytest.mark.parametrize("path", FILES)
def test_no_simple_queue_is_waited_for_with_a_time(path: Path) -> None:
    """Before Python 3.13 such a wait may have no end: fastplug.protocols._waiting says when, and has the queue to use."""
    text = path.read_text()
    assert "SimpleQueue" not in text or not re.search(r"\.get\([^)]*timeout", text)
