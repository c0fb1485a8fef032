"""fastplug: plugins as subprocesses, typed interfaces, numpy arrays over shared memory."""

from __future__ import annotations
