"""Ratios are made within a round and then reduced; marks say met, missed, or not measured."""

from __future__ import annotations

from typing import Any

from benchmarks import ratios


def samples(ns: float) -> dict[str, float]:
    return {"calls": 10, **dict.fromkeys(ratios.STATISTICS, ns)}


def one_round(shm_ns: float, socket_ns: float) -> dict[str, Any]:
    return {"cells": {"echo_64B": {"shm": samples(shm_ns), "unix_socket": samples(socket_ns)}}}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The medians of both sides would say 30; no round does.
    rounds = [one_round(1, 20), one_round(2, 60), one_round(3, 60)]
    figure = ratios.ratios({"idle": rounds})["idle"]["echo_64B: unix_socket / shm"]["p50_ns"]
    assert figure == {"median": 20.0, "per_round": [20.0, 30.0, 20.0]}


def test_a_peer_that_failed_in_one_round_keeps_the_figures_of_the_others() -> None:
    rounds = [one_round(1, 20), {"cells": {"echo_64B": {"shm": {"error": "PluginDied"}}}}]
    assert ratios.medians(rounds)["echo_64B"]["shm"]["p50_ns"] == 1
    assert "echo_64B: unix_socket / shm" not in ratios.ratios({"idle": rounds})["idle"]


def test_marks() -> None:
    result = {"ratios": ratios.ratios({"idle": [one_round(1, 19)], "one_cpu": [one_round(1, 1)]}), "startup": {}}
    met = {mark["name"]: mark["met"] for mark in ratios.marks(result)}
    assert met["64 B echo, times a Python Unix socket"] is False
    assert met["one CPU: p50 to the socket's"] is True
    assert met["open() to the first result"] is None
