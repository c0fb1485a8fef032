"""Methods of every shape of parameters, and handlers of every kind of callable."""

from __future__ import annotations

import dataclasses
import functools
import operator
import weakref
from typing import Any, Protocol

import fastplug

__all__ = ["Kept", "Parameters", "ParametersPlugin"]


@dataclasses.dataclass(eq=False)
class Kept:
    """An argument that is counted."""

    n: int

    def __post_init__(self) -> None:
        ALIVE.add(self)
        if self.n < 0:
            raise ValueError("negative")


ALIVE: weakref.WeakSet[Kept] = weakref.WeakSet()


@fastplug.interface("test.parameters/1")
class Parameters(Protocol):
    def none(self) -> int: ...
    def one(self, a: int) -> int: ...
    def defaults(self, a: int, b: int = 2, c: int = 3) -> int: ...
    def keywords(self, a: int, *, b: int, c: int = 3) -> int: ...
    def only_keywords(self, *, a: int = 1, b: int = 2) -> int: ...
    def many(
        self,
        a1: int = 1, a2: int = 2, a3: int = 3, a4: int = 4, a5: int = 5, a6: int = 6, a7: int = 7, a8: int = 8, a9: int = 9,
        b1: int = 1, b2: int = 2, b3: int = 3, b4: int = 4, b5: int = 5, b6: int = 6, b7: int = 7, *, c1: int = 1, c2: int = 2,
    ) -> list[int]: ...  # fmt: skip
    def static(self, a: int, b: int) -> int: ...
    def of_class(self, a: int) -> str: ...
    def partial(self, a: int) -> int: ...
    def builtin(self, a: int, b: int) -> int: ...
    def an_object(self, a: int, *, b: int = 1) -> int: ...
    def named(self, a: int) -> int: ...
    def raises(self, a: Kept, b: Kept) -> int: ...
    def refused(self, a: Kept, b: Kept, c: bytes) -> Kept: ...
    def alive(self) -> int: ...


class Adder:
    def __call__(self, a: int, *, b: int = 1) -> int:
        return a + b


class Plain:
    """The handlers themselves, which are not declared alike."""

    builtin: Any = operator.sub
    an_object: Any = Adder()

    def __init__(self) -> None:
        self.factor = 10
        self.named = lambda a: a * self.factor

    def none(self) -> int:
        return self.factor

    def one(self, a: int) -> int:
        return a * self.factor

    partial: Any = functools.partialmethod(one)

    def defaults(self, a: int, b: int = 2, c: int = 3) -> int:
        return a * 100 + b * 10 + c

    def keywords(self, a: int, *, b: int, c: int = 3) -> int:
        return a * 100 + b * 10 + c

    def only_keywords(self, *, a: int = 1, b: int = 2) -> int:
        return a * 10 + b

    def many(self, *values: int, **named: int) -> list[int]:
        return [*values, *(named[name] for name in sorted(named))]

    @staticmethod
    def static(a: int, b: int) -> int:
        return a - b

    @classmethod
    def of_class(cls, a: int) -> str:
        return f"{cls.__name__} {a}"

    def raises(self, a: Kept, b: Kept) -> int:
        raise ValueError(a.n + b.n)

    def refused(self, a: Kept, b: Kept, c: bytes) -> Any:
        return a, b, c

    def alive(self) -> int:
        return len(ALIVE)


class ParametersPlugin(Plain, Parameters):  # type: ignore[misc]  # pyright: ignore[reportIncompatibleMethodOverride]
    pass
