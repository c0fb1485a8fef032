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

__all__ = ["PlainLengths", "PlainTexts"]


@fastplug.interface("test.texts/1")
class Texts(Protocol):
    def upper(self, text: str) -> str: ...


@fastplug.interface("test.lengths/1")
class Lengths(Protocol):
    def lengths(self, parts: Iterator[bytes]) -> Iterator[int]: ...


class PlainTexts(Texts):
    def upper(self, text: str) -> str:
        if text == "bad":
            raise ValueError(text)
        return text.upper()


class PlainLengths(Lengths):
    def lengths(self, parts: Iterator[bytes]) -> Iterator[int]:
        for part in parts:
            yield len(part)


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


@pytest.mark.transports("shm", "socket")
@pytest.mark.parametrize(
    "sizes",
    [[64_000, 1900] * 100, [12_000] * 200, [200_000, 10, 3000] * 50, [1 + n * 7919 % 20_000 for n in range(300)]],
    ids=["large and small", "middling", "spilled", "mixed"],
)
def test_both_streams_of_a_call_go_on(transport: str, version: int, sizes: list[int]) -> None:
    """The generator takes items only while it makes some, so whoever feeds it waits for credit that was due before."""
    if version < 2:
        pytest.skip("version 1 has no streams")
    with started(transport, PlainLengths) as client, fastplug.deadline(after_s=60):
        assert list(client.dispense(Lengths).lengths(bytes(size) for size in sizes)) == sizes
