"""A relay process for the tests of a module, and two sides whose TLS goes through it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.relay_ends import trusting_sides

from fastplug.config import Tls
from fastplug.net.relay import Relay


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    made = Relay()
    hold = made.hold()
    yield made
    hold.release()


@pytest.fixture(scope="module")
def sides() -> tuple[Tls, Tls]:
    return trusting_sides()
