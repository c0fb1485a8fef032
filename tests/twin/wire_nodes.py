"""Classes and types that the tests of the codec carry. Without hypothesis, so that the fuzzer runs on its own."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from fastplug.annotation import TypeNode, resolve

__all__ = ["Colour", "Perm", "Point", "Tree", "node_of"]


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    VERT = 2  # noqa: PIE796  an alias


class Perm(enum.Flag):
    R = 4
    W = 2
    X = 1


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5
    labels: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Tree:
    value: bytes
    left: Tree | None = None
    right: Tree | None = dataclasses.field(default=None, kw_only=True)


def node_of(annotation: Any) -> TypeNode:
    return resolve(annotation, where="test", globalns=globals())
