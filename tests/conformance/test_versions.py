"""Each version of the fast protocol that a host may still meet: calls one by one, and a map of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from tests.conformance.conftest import started

import fastplug
from fastplug import launch
from fastplug.handshake.environment import FAST_VERSIONS, Offer
from fastplug.protocols._call import Caller

__all__ = ["PlainTexts"]


@fastplug.interface("test.texts/1")
class Texts(Protocol):
    def upper(self, text: str) -> str: ...


class PlainTexts(Texts):
    def upper(self, text: str) -> str:
        if text == "bad":
            raise ValueError(text)
        return text.upper()


def caller_of(client: fastplug.Client) -> Caller:
    """What the client's calls go through."""
    protocol: Any = client._protocol
    return protocol._caller


@pytest.fixture(params=FAST_VERSIONS)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The highest that the host offers."""
    version: int = request.param
    monkeypatch.setattr(launch, "Offer", functools.partial(Offer, versions=FAST_VERSIONS[:version]))
    return version


@pytest.mark.transports("shm", "socket")
def test_calls_over_each_version(transport: str, version: int) -> None:
    with started(transport, PlainTexts) as client:
        texts = client.dispense(Texts)
        assert texts.upper("one") == "ONE"
        assert caller_of(client).version == version
        words = [f"word {n}" for n in range(500)]
        assert list(fastplug.map(texts.upper, words)) == [word.upper() for word in words]
        words[70] = "bad"
        found = fastplug.map(texts.upper, words)
        assert [next(found) for _ in range(70)] == [word.upper() for word in words[:70]]
        with pytest.raises(ValueError, match="bad"):
            next(found)
