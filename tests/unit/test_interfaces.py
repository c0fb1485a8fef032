from __future__ import annotations

import dataclasses
import enum
import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import pytest

from fastplug.annotation import MISSING, Kind
from fastplug.errors import ConfigError
from fastplug.interfaces import Interface, check_implementation, interface, interface_of, interfaces_of, optional
from fastplug.signature import describe_interface, method_text


@interface("acme.dsp/1")
class Dsp(Protocol):
    def total(self, x: npt.NDArray[np.float64]) -> float:
        """The sum.

        Of all.
        """
        raise NotImplementedError

    def scale(self, x: list[float], by: float = 2.0, *, into: str | None = None) -> list[float]: ...

    @optional
    def norm(self, x: list[float]) -> float:
        return 0.0  # a body of its own: else type checkers want every implementation to define it

    def _private(self, anything: Any) -> Any:
        return anything


class NumpyDsp(Dsp):
    def total(self, x: npt.NDArray[np.float64]) -> float:
        return float(x.sum())

    def scale(self, x: list[float], by: float = 2.0, *, into: str | None = None) -> list[float]:
        return [by * value for value in x]


def texts(cls: type) -> list[str]:
    return [method_text(method) for method in describe_interface(interface_of(cls))["methods"]]


def test_an_interface_is_what_its_class_says() -> None:
    declared = interface_of(Dsp)
    assert (declared.name, declared.cls) == ("acme.dsp/1", Dsp)
    assert [(m.name, m.index, m.optional) for m in declared.methods] == [("total", 0, False), ("scale", 1, False), ("norm", 2, True)]
    x, by, into = declared.method("scale").parameters
    assert (x.name, x.node.kind, x.default, x.keyword_only) == ("x", Kind.LIST, MISSING, False)
    assert (by.name, by.node.kind, by.default, by.keyword_only) == ("by", Kind.FLOAT, 2.0, False)
    assert (into.name, into.node.kind, into.default, into.keyword_only) == ("into", Kind.OPTIONAL, None, True)
    assert declared.method("total").doc == "The sum.\n\nOf all."
    assert declared.method("norm").doc is None
    assert list(declared.method("total").signature.parameters) == ["x"]


def test_an_unknown_method_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"acme\.dsp/1 has no method 'sum'; its methods: total, scale, norm"):
        interface_of(Dsp).method("sum")


def test_methods_of_base_protocols_come_first_and_keep_their_place() -> None:
    class Base(Protocol):
        def one(self) -> int: ...
        def two(self) -> int: ...

    @interface("acme.more/1")
    class More(Base, Protocol):
        def three(self) -> int: ...
        def one(self) -> float: ...  # type: ignore[override]

    assert texts(More) == ["one() -> float", "two() -> int", "three() -> int"]


def test_an_abstract_base_class_may_be_an_interface() -> None:
    @interface("acme.abc/1")
    class Abstract(ABC):
        @optional
        @abstractmethod
        def one(self) -> int: ...

    assert texts(Abstract) == ["one() -> int"]
    assert interface_of(Abstract).method("one").optional


def test_types_in_the_body_and_around_the_class_are_found() -> None:
    class Mode(enum.Enum):
        FAST = 1

    @interface("acme.modes/1")
    class Modes(Protocol):
        class Level(enum.Enum):
            LOW = 1

        def list(self, mode: Mode) -> list[Level]: ...
        def again(self) -> list[int]: ...  # type: ignore[valid-type]

    assert texts(Modes) == ["list(mode: Mode) -> list[Level]", "again() -> list[int]"]


def test_a_decorated_method_keeps_its_signature() -> None:
    def logged(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def around(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return around

    @interface("acme.logged/1")
    class Logged(Protocol):
        @logged
        def one(self, x: int) -> int: ...

    assert texts(Logged) == ["one(x: int) -> int"]


@pytest.mark.parametrize("name", ["a/1", "acme.dsp/1", "a1.b_c.d/10"])
def test_names_that_are_fine(name: str) -> None:
    assert interface_of(interface(name)(type("Api", (Protocol,), {}))).name == name


@pytest.mark.parametrize(
    "name", ["", "acme", "acme/0", "acme/01", "Acme/1", "acme./1", ".a/1", "acme/1\n", "acme/1/2", "1a/1", "a-b/1", "a" * 300 + "/1"]
)
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(ConfigError, match=r'write lower-case words joined by dots, a slash and the major number: "acme\.dsp/1"'):
        interface(name)


T = TypeVar("T")


class NoAnnotation(Protocol):
    def f(self, x) -> int: ...  # type: ignore[no-untyped-def]


class NoResult(Protocol):
    def f(self, x: int): ...  # type: ignore[no-untyped-def]


class NoSelf(Protocol):
    def f() -> int: ...  # type: ignore[misc]


class Starred(Protocol):
    def f(self, *xs: int) -> int: ...


class DoublyStarred(Protocol):
    def f(self, **xs: int) -> int: ...


class AsyncStream(Protocol):
    async def f(self) -> Iterator[int]: ...


class Nested(Protocol):
    def f(self) -> Iterator[Iterator[int]]: ...


class TwoStreams(Protocol):
    def f(self, x: Iterator[int], y: Iterable[str]) -> None: ...


class DefaultStream(Protocol):
    def f(self, x: Iterable[int] = ()) -> None: ...


class Answering(Protocol):
    def f(self) -> Callable[[int], None]: ...


class CallingBack(Protocol):
    def f(self, done: Callable[..., None]) -> None: ...


class CalledDeep(Protocol):
    def f(self, done: Callable[[Callable[[], None]], None]) -> None: ...


class InAList(Protocol):
    def f(self, done: list[Callable[[], None]]) -> None: ...


@dataclasses.dataclass
class Job:
    done: Callable[[], None]


class InADataclass(Protocol):
    def f(self, job: Job) -> None: ...


class Conversing(Protocol):
    def f(self) -> Generator[int, str, None]: ...


class WithProperty(Protocol):
    @property
    def f(self) -> int: ...


class WithAttribute(Protocol):
    f: int


class WithValue(Protocol):
    f = 3  # type: ignore[misc]


class WithClassMethod(Protocol):
    @classmethod
    def f(cls) -> int: ...


class WithStaticMethod(Protocol):
    @staticmethod
    def f() -> int: ...


class GenericProtocol(Protocol[T]):  # type: ignore[misc]
    def f(self) -> T: ...


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (NoAnnotation, r"acme\.test/1\.f, parameter x has no annotation"),
        (NoResult, r"acme\.test/1\.f does not say what it returns"),
        (NoSelf, r"acme\.test/1\.f has no self"),
        (Starred, r"acme\.test/1\.f, parameter xs: .* list\[\.\.\.\]"),
        (DoublyStarred, r"acme\.test/1\.f, parameter xs: .* dataclass"),
        (AsyncStream, r"acme\.test/1\.f is async and returns a stream"),
        (Nested, r"acme\.test/1\.f, result, item: .* a stream is a whole result"),
        (TwoStreams, r"acme\.test/1\.f takes the streams x and y"),
        (DefaultStream, r"acme\.test/1\.f, parameter x: a stream has no default"),
        (Answering, r"acme\.test/1\.f, result: .* never a result"),
        (CallingBack, r"acme\.test/1\.f, parameter done: .* does not say what it takes"),
        (CalledDeep, r"acme\.test/1\.f, parameter done, argument 0 of the callback: .* whole parameter"),
        (InAList, r"acme\.test/1\.f, parameter done: .* whole parameter"),
        (InADataclass, r"acme\.test/1\.f, parameter job, field Job\.done: .* whole parameter"),
        (Conversing, r"acme\.test/1\.f, result: .* more than a stream"),
        (WithProperty, r"acme\.test/1\.f is a property"),
        (WithAttribute, r"acme\.test/1\.f is an attribute"),
        (WithValue, r"acme\.test/1\.f is an attribute"),
        (WithClassMethod, r"acme\.test/1\.f is a classmethod"),
        (WithStaticMethod, r"acme\.test/1\.f is a staticmethod"),
        (GenericProtocol, r"acme\.test/1\.f, result: ~T cannot be carried to a plugin; an interface has no type parameters"),
        (NumpyDsp, r"NumpyDsp only implements a Protocol"),
        (Dsp, r"Dsp is the interface acme\.dsp/1 already"),
        (str, r"str must be a typing\.Protocol or an abc\.ABC"),
        (len, r"@interface stands above a class"),
    ],
)
def test_what_cannot_be_an_interface_is_refused_by_name(cls: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        interface("acme.test/1")(cls)


def test_two_classes_of_one_name_are_refused() -> None:
    def color() -> Any:
        return enum.Enum("Color", ["RED"])

    one, other = color(), color()
    with pytest.raises(ConfigError, match="uses two classes called Color"):

        @interface("acme.colors/1")
        class Colors(Protocol):
            def f(self, a: one) -> other: ...  # type: ignore[valid-type]


def test_what_a_peer_would_refuse_is_refused_here() -> None:
    members = {f"m{number}": number for number in range(100_001)}
    huge = enum.Enum("huge", members)  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"acme\.huge/1 cannot be described to a peer"):

        @interface("acme.huge/1")
        class Huge(Protocol):
            def f(self, a: huge) -> None: ...


def test_interface_of_an_implementation_names_the_interface() -> None:
    with pytest.raises(ConfigError, match=r"NumpyDsp implements acme\.dsp/1; name Dsp instead"):
        interface_of(NumpyDsp)
    with pytest.raises(ConfigError, match=r"int is no interface; declare it with @fastplug\.interface"):
        interface_of(int)


def test_interfaces_come_from_the_bases() -> None:
    @interface("acme.dsp/2")
    class Dsp2(Dsp, Protocol):
        def peak(self, x: list[float]) -> float: ...

    class Both(NumpyDsp, Dsp2):
        def peak(self, x: list[float]) -> float:
            return max(x)

    assert [i.name for i in interfaces_of(NumpyDsp())] == ["acme.dsp/1"]
    assert [i.name for i in interfaces_of(Both)] == ["acme.dsp/2", "acme.dsp/1"]
    assert interfaces_of(3) == []


def implemented(implementation: object, declared: Interface | None = None) -> list[str]:
    return [method.name for method in check_implementation(implementation, declared or interface_of(Dsp))]


def test_an_implementation_may_lack_optional_methods() -> None:
    assert implemented(NumpyDsp()) == ["total", "scale"]
    assert implemented(NumpyDsp) == ["total", "scale"]


def test_an_implementation_need_not_inherit() -> None:
    class Duck:
        def total(self, x: Any) -> float:
            return 0.0

        @staticmethod
        def scale(x: Any, by: float = 1.0, **options: Any) -> Any:
            return x

        def __init__(self) -> None:
            self.norm = lambda x: 0.0

    assert implemented(Duck()) == ["total", "scale", "norm"]


def test_an_implementation_may_make_its_methods_up() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return getattr(NumpyDsp(), name)

    assert implemented(Proxy()) == ["total", "scale", "norm"]


def test_what_is_only_inherited_is_missing() -> None:
    class Half(Dsp):
        def total(self, x: npt.NDArray[np.float64]) -> float:
            return 0.0

    with pytest.raises(ConfigError) as caught:
        check_implementation(Half(), interface_of(Dsp))  # type: ignore[abstract]
    assert "does not implement acme.dsp/1: scale(x: list[float], by: float = ..., *, into: str? = ...) -> list[float] is missing" in str(
        caught.value
    )
    assert "total" not in str(caught.value)
    assert "norm" not in str(caught.value)


def test_what_is_only_inherited_from_a_later_interface_is_missing_too() -> None:
    @interface("acme.later/1")
    class Later(Dsp, Protocol):
        def total(self, x: npt.NDArray[np.float64]) -> float: ...

    class Nothing(Later):
        def scale(self, x: list[float], by: float = 2.0, *, into: str | None = None) -> list[float]:
            return x

    for declared in interfaces_of(Nothing):
        with pytest.raises(ConfigError, match=r"total\(.* is missing"):
            check_implementation(Nothing, declared)


def test_what_a_mixin_defines_is_there() -> None:
    class Mixin:
        def scale(self, x: list[float], by: float = 2.0, *, into: str | None = None) -> list[float]:
            return x

    class Mixed(Mixin, Dsp):
        def total(self, x: npt.NDArray[np.float64]) -> float:
            return 0.0

    assert implemented(Mixed()) == ["total", "scale"]


class Api(Protocol):
    def f(self, a: int, b: int = 1, *, c: int) -> int: ...


class TooFew:
    def f(self, a: int) -> int:
        raise NotImplementedError


class WithoutDefault:
    def f(self, a: int, b: int, *, c: int) -> int:
        raise NotImplementedError


class WantsMore:
    def f(self, a: int, b: int = 1, *, c: int, d: int) -> int:
        raise NotImplementedError


class OtherKeyword:
    def f(self, a: int, b: int = 1, *, e: int) -> int:
        raise NotImplementedError


class AsyncF:
    async def f(self, a: int, b: int = 1, *, c: int) -> AsyncIterator[int]:
        yield 1


class NoMethod:
    f = 3


@pytest.mark.parametrize("cls", [TooFew, WithoutDefault, WantsMore, OtherKeyword, AsyncF, NoMethod])
def test_an_implementation_must_take_the_parameters(cls: Any) -> None:
    declared = interface_of(interface("acme.api/1")(type("Copy", (Api, Protocol), {})))
    for implementation in (cls, cls()):
        with pytest.raises(ConfigError, match=rf"{cls.__name__} does not implement acme\.api/1: f"):
            check_implementation(implementation, declared)


class AsyncApi(Protocol):
    async def one(self, n: int) -> int: ...
    def many(self, values: AsyncIterator[int]) -> AsyncIterator[int]: ...


class PlainApi(Protocol):
    def one(self, n: int) -> int: ...
    def many(self, values: Iterator[int]) -> Iterator[int]: ...


def test_how_a_side_waits_is_no_part_of_an_interface() -> None:
    class Plain:
        def one(self, n: int) -> int: ...  # type: ignore[empty-body]
        def many(self, values: Iterator[int]) -> Iterator[int]: ...  # type: ignore[empty-body]

    class Awaiting:
        async def one(self, n: int) -> int: ...  # type: ignore[empty-body]
        async def many(self, values: AsyncIterator[int]) -> AsyncIterator[int]:
            async for value in values:
                yield value

    class Coroutine(Awaiting):
        async def many(self, values: AsyncIterator[int]) -> AsyncIterator[int]: ...  # type: ignore[empty-body, override]

    awaited, plain = (interface_of(interface("acme.both/1")(cls)) for cls in (AsyncApi, PlainApi))
    assert describe_interface(awaited) == describe_interface(plain)
    assert [method.asynchronous for method in (*awaited.methods, *plain.methods)] == [True, False, False, False]
    for declared in (awaited, plain):
        for cls in (Plain, Awaiting):
            assert len(check_implementation(cls(), declared)) == 2
        with pytest.raises(ConfigError, match="many is a coroutine"):
            check_implementation(Coroutine(), declared)


def test_an_implementation_may_take_more_by_default() -> None:
    class More:
        def f(self, a: int, b: int = 1, extra: int = 2, *, c: int = 3, **rest: Any) -> int: ...  # type: ignore[empty-body]

    declared = interface_of(interface("acme.api/1")(type("Copy", (Api, Protocol), {})))
    assert implemented(More(), declared) == ["f"]


def test_a_runtime_checkable_protocol_still_checks() -> None:
    @runtime_checkable
    @interface("acme.checked/1")
    class Checked(Protocol):
        def f(self) -> int: ...

    class Inherits(Checked):
        def f(self) -> int:
            return 1

    assert isinstance(Inherits(), Checked)
    assert not isinstance(3, Checked)
