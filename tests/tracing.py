"""What cannot be tested under line tracing.

In compiled code the tracer runs between a wait and the look at signals, and swallows what a signal handler raised.
"""

from __future__ import annotations

import sys

import pytest

__all__ = ["TRACED", "not_traced"]

TRACED = sys.gettrace() is not None
not_traced = pytest.mark.skipif(TRACED, reason="a tracer swallows what signal handlers raise")
