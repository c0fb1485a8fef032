"""A host that forks with a live handle and with received arrays. Run as a program: fork_host.py TRANSPORT. Prints what it saw as JSON."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "src")]

import numpy as np
from tests.plugins.forks_api import Forks

import fastplug

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "plugins" / "forks_plugin.py"
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
SIZE = 100_000


def in_child(body: Callable[[], Any]) -> Any:
    """What ``body`` returns in a forked child of ours; a text when it raised."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            found = body()
        except BaseException:  # noqa: BLE001  the parent gets it
            found = traceback.format_exc()
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        data = answer.read()
    os.waitpid(pid, 0)
    return json.loads(data)


def error_of(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except fastplug.PluginError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def main(transport: str) -> dict[str, Any]:
    seen: dict[str, Any] = {"host": os.getpid()}
    with fastplug.start(PLUGIN, transport=transport, env=ENVIRONMENT) as client:
        forks = client.dispense(Forks)
        arrays = {"received": forks.make(SIZE), "own": client.empty(SIZE)}
        arrays["own"][:] = 2
        forks.total(arrays["own"])
        lent_before = client.stats().get("lent")

        def child() -> dict[str, Any]:
            found: dict[str, Any] = {"pid": os.getpid(), "sum": float(arrays["received"].sum()), "own": float(arrays["own"].sum())}
            found["call"] = error_of(lambda: forks.total(arrays["received"]))
            found["ping"] = error_of(client.ping)
            arrays.clear()
            gc.collect()
            client.kill()
            return found

        seen["child"] = in_child(child)
        seen["again"] = in_child(lambda: in_child(lambda: error_of(lambda: forks.total(np.zeros(3)))))

        def worker() -> list[float]:
            """A forked worker opens a plugin of its own, and its leases come back."""
            with fastplug.start(PLUGIN, transport=transport, env=ENVIRONMENT) as mine:
                handle = mine.dispense(Forks)
                totals = [handle.total(handle.make(SIZE)) for _ in range(50)]
                stats = mine.stats()
                return [totals[-1], float(stats.get("lent", 0)), float(stats.get("arena", {}).get("blocks", 0))]

        seen["worker"] = in_child(worker)
        seen["total"] = forks.total(arrays["received"])
        seen["plugin_fork"] = forks.fork_and_call(SIZE)
        seen["came_back"] = [forks.fork_and_come_back(how) for how in ("exit", "raise", "return")]
        seen["total_after"] = forks.total(arrays["received"])
        seen["lent_before"], seen["lent"] = lent_before, client.stats().get("lent")
        arrays.clear()
        gc.collect()
        forks.total(np.zeros(1))
        seen["in_use"] = client.stats().get("arena", {}).get("blocks_in_use")
    return seen


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
