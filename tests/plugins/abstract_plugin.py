"""An interface that is an abstract base class instead of a Protocol."""

from __future__ import annotations

import abc

import fastplug

__all__ = ["Abstract", "Concrete"]


@fastplug.interface("test.abstract/1")
class Abstract(abc.ABC):
    @abc.abstractmethod
    def square(self, x: int) -> int: ...


class Concrete(Abstract):
    def square(self, x: int) -> int:
        return x * x


if __name__ == "__main__":
    fastplug.serve(Concrete())
