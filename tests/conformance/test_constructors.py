"""A class of the receiver may refuse what the sender's class allowed: one call fails, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tests.conformance.conftest import started
from tests.plugins import fussy_api
from tests.plugins.fussy_api import Fussy, Level
from tests.plugins.fussy_plugin import Levels

import fastplug

pytestmark = pytest.mark.transports("shm", "socket", "grpc")  # in one process both sides have the same class


@pytest.fixture(scope="module")
def client(transport: str) -> Iterator[fastplug.Client]:
    with started(transport, Levels) as client:
        assert client.dispense(Fussy).set(Level(1), client.empty(4096)) == 4097  # its memory is there
        yield client


@pytest.fixture
def fussy(client: fastplug.Client) -> Fussy:
    return client.dispense(Fussy)


def test_a_constructor_in_the_plugin_refuses(client: fastplug.Client, fussy: Fussy, monkeypatch: pytest.MonkeyPatch) -> None:
    array = client.empty(4096)
    with monkeypatch.context() as here:
        here.setitem(fussy_api.LIMITS, "most", 99)
        level = Level(50)  # this side allows it
    with pytest.raises(ValueError, match="level 50 is over 10") as caught:
        fussy.set(level, array)
    assert isinstance(caught.value, fastplug.RemoteError)
    assert fussy.set(Level(3), np.ones(5)) == 8
    if client.transport == "shm":
        assert client.stats()["lent"] == 0


def test_a_constructor_in_the_host_refuses(fussy: Fussy) -> None:
    with pytest.raises(fastplug.RemoteProtocolError, match="constructor here refuses") as caught:
        fussy.get(50)
    assert isinstance(caught.value.__cause__, ValueError)
    assert fussy.get(4) == Level(4)


def test_a_constructor_in_the_host_refuses_an_item(fussy: Fussy) -> None:
    """The stream ends there, and not as if it had come to its end."""
    stream = fussy.each([1, 2, 50, 3])
    assert [next(stream), next(stream)] == [Level(1), Level(2)]
    with pytest.raises(fastplug.RemoteProtocolError, match="constructor here refuses") as caught:
        next(stream)
    assert isinstance(caught.value.__cause__, ValueError)
    assert list(stream) == []
    assert list(fussy.each([4])) == [Level(4)]
