"""Sums bytes in a process that can make no memory files."""

from __future__ import annotations

import resource

from tests.plugins.sums_plugin import PlainSums

import fastplug

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    fastplug.serve(PlainSums())
