"""Arguments reach handlers as Python would pass them: by position, by name, left out; few and many; whatever the handler is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance.conftest import started
from tests.plugins.parameters import Kept, Parameters, ParametersPlugin

import fastplug

MANY = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 1, 2]


@pytest.fixture(scope="module")
def handle(transport: str) -> Iterator[Parameters]:
    with started(transport, ParametersPlugin) as client:
        made = client.dispense(Parameters)
        made.none()  # its threads start here
        yield made


def test_positions_names_and_defaults(handle: Parameters) -> None:
    assert handle.none() == 10
    assert handle.one(3) == handle.one(a=3) == 30
    assert handle.defaults(1) == 123
    assert handle.defaults(1, 5) == handle.defaults(b=5, a=1) == 153
    assert handle.defaults(1, c=9) == 129
    assert handle.keywords(1, b=2) == 123
    assert handle.keywords(a=1, c=5, b=2) == 125
    assert handle.only_keywords() == 12
    assert handle.only_keywords(b=7) == 17


def test_more_parameters_than_fit_the_short_road(handle: Parameters) -> None:
    assert handle.many() == MANY
    assert handle.many(*range(16), c2=40) == [*range(16), 1, 40]
    assert handle.many(9, b7=0, c1=0) == [9, *MANY[1:15], 0, 0, 2]


def test_kinds_of_handlers(handle: Parameters) -> None:
    assert handle.static(7, 3) == 4
    assert handle.of_class(5) == "ParametersPlugin 5"
    assert handle.partial(6) == 60
    assert handle.builtin(9, 4) == 5
    assert handle.an_object(1) == 2
    assert handle.an_object(1, b=5) == 6
    assert handle.named(4) == 40


@pytest.mark.parametrize("times", [1, 100])
def test_a_map_of_one_argument_and_of_several(handle: Parameters, times: int) -> None:
    assert list(fastplug.map(handle.one, range(times))) == [10 * n for n in range(times)]
    assert list(fastplug.map(handle.defaults, range(times))) == [100 * n + 23 for n in range(times)]
    assert list(fastplug.map(handle.defaults, range(times), range(times))) == [110 * n + 3 for n in range(times)]
    assert list(fastplug.map(handle.an_object, range(times))) == [n + 1 for n in range(times)]
    assert list(fastplug.map(handle.one, ())) == []


def test_a_map_names_the_argument_that_does_not_fit(handle: Parameters) -> None:
    results = fastplug.map(handle.one, [1, "two", 3], on_error="continue")  # type: ignore[list-item]
    assert next(results) == 10
    with pytest.raises(fastplug.ArgumentError, match=r"one\(\): argument 'a' must be int, got str"):
        next(results)
    assert list(results) == [30]
    with pytest.raises(TypeError):
        fastplug.map(handle.one, 5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(fastplug.ArgumentError, match=r"keywords\(\).*'b'"):
        list(fastplug.map(handle.keywords, [1]))


@pytest.mark.transports("shm", "socket", "grpc")
def test_arguments_are_kept_by_nobody(handle: Parameters) -> None:
    """Neither when the handler raises nor when its result is refused."""
    for n in range(50):
        with pytest.raises(ValueError, match=f"^ValueError: {n + 1} "):
            handle.raises(Kept(n), Kept(1))
        with pytest.raises(fastplug.ResultError, match="tuple"):
            handle.refused(Kept(n), Kept(1), b"")
    assert handle.alive() == 0


@pytest.mark.transports("shm", "socket", "grpc")
def test_arguments_in_front_of_one_that_is_refused_are_kept_by_nobody(handle: Parameters) -> None:
    refused = Kept(1)
    refused.n = -1  # the plugin's constructor says no
    for n in range(50):
        with pytest.raises(ValueError, match="negative"):
            handle.raises(Kept(n), refused)
    assert handle.alive() == 0
