"""Two sides whose TLS goes through the relay process."""

from __future__ import annotations

import pytest
from tests.unit.relay_ends import trusting_sides

from fastplug.config import Tls


@pytest.fixture(scope="module")
def sides() -> tuple[Tls, Tls]:
    return trusting_sides()
