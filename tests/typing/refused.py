"""Mistakes that both checkers must find: a line with an ignore comment that a checker does not need fails the test. Never run."""
# pyright: strict

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tests.typing.api import Abstract, Dsp, Flows, NumpyDsp, PlainFlows

import fastplug


def calls(dsp: Dsp, x: npt.NDArray[np.float64], ints: npt.NDArray[np.int64]) -> None:
    dsp.total("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    dsp.total([1.0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    dsp.total(ints)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    dsp.total()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    dsp.total(x, 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    dsp.total(y=x)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    dsp.fit(x, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    dsp.fit(x, steps="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    dsp.nothing()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    wrong: str = dsp.total(x)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    assert wrong


def opening(x: npt.NDArray[np.float64]) -> None:
    with fastplug.open("dsp_plugin.py", Dsp) as dsp:
        dsp.total(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with fastplug.open("dsp_plugin.py", Abstract) as abstract:
        abstract.square("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fastplug.open("dsp_plugin.py")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fastplug.open(5, Dsp)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fastplug.open("dsp_plugin.py", 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fastplug.open("dsp_plugin.py", Dsp, transport="pigeon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fastplug.open("dsp_plugin.py", Dsp, transprot="shm")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fastplug.start("dsp_plugin.py", start_timeout_s="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fastplug.start("dsp_plugin.py", env={"A": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    fastplug.Spec("dsp_plugin.py", Dsp, {"transport": "pigeon"})  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]
    with fastplug.start("dsp_plugin.py") as client:
        client.dispense(Dsp).total("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        client.dispense()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        client.pid = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
        client.blocks(count="3")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]


def serving() -> None:
    fastplug.serve(NumpyDsp(), on_host_exit="perhaps")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fastplug.serve(NumpyDsp(), plugins={"dsp": 5})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    fastplug.HandshakeConfig("1", "K", "v")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fastplug.interface(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def many(flows: Flows) -> None:
    fastplug.submit(flows.square, "3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    fastplug.map(flows.square, [3], on_error="stop")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    wrong: str = fastplug.submit(flows.half, 3).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    flows.total(["3"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    print(wrong)


class PlainHalf(PlainFlows):
    def half(self, n: int) -> float:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return n / 2


def deadlines() -> None:
    fastplug.deadline(0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fastplug.deadline(after_s="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Lacking(Dsp):
    def total(self, x: npt.NDArray[np.float64]) -> float:
        return 0.0


class Differing(NumpyDsp):
    def total(self, x: list[float]) -> float:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return 0.0


def implementations() -> Any:
    return Lacking()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
