"""How much a data set may take: sizes are read from headers and compared before anything is decoded or loaded.

An archive or a picture of a few kilobytes may declare gigabytes. Each limit has an environment variable, for a set that is
larger by right.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, cast

from onnxspect.engine.errors import OnnxspectError

#: Environment variable of each limit, by field.
VARIABLES = {
    "pixels": "ONNXSPECT_MAX_IMAGE_PIXELS",
    "array_bytes": "ONNXSPECT_MAX_DATA_BYTES",
    "files": "ONNXSPECT_MAX_DATA_FILES",
}
#: A picture of 64 megapixels is larger than almost any camera's.
PIXELS = 64 * 2**20
#: Images of a set, in files of any kind.
FILES = 5_000_000
#: Where the machine does not tell how much memory it has.
_MEMORY = 8 * 2**30


@dataclass(frozen=True)
class DataLimits:
    """Limits of what is read as data.

    Attributes:
        pixels: width times height of one image.
        array_bytes: of what is held in memory at a time as numbers.
        files: entries that a folder or an archive may list.
    """

    pixels: int = PIXELS
    array_bytes: int = _MEMORY
    files: int = FILES

    def check_image(self, width: int, height: int, where: str) -> None:
        """Refuse a picture by its header.

        Raises:
            OnnxspectError: it has more pixels than is allowed.
        """
        if width * height > self.pixels:
            raise OnnxspectError(
                f"{where}: {width}x{height} are {width * height:,} pixels, more than the limit of {self.pixels:,}",
                f"scale it down, or set {VARIABLES['pixels']} if it is meant to be so large",
            )

    def check_bytes(self, count: int, where: str, what: str) -> None:
        """Refuse an array by its header.

        Raises:
            OnnxspectError: it takes more memory than is allowed.
        """
        if count > self.array_bytes:
            raise OnnxspectError(
                f"{where}: {what} would take {count / 2**30:,.1f} GiB, more than the limit of "
                f"{self.array_bytes / 2**30:,.1f} GiB",
                f"give a part of the data, or set {VARIABLES['array_bytes']} (bytes)",
            )

    def check_files(self, count: int, where: str) -> None:
        """Refuse a listing that does not end.

        Raises:
            OnnxspectError: it has more entries than are allowed.
        """
        if count > self.files:
            raise OnnxspectError(
                f"{where}: more than {self.files:,} entries", f"give a part of it, or set {VARIABLES['files']}"
            )


@lru_cache(maxsize=8)
def _limits(given: tuple[tuple[str, str], ...]) -> DataLimits:
    values: dict[str, int] = {"array_bytes": _half_of_memory()}
    for name, text in given:
        if not text.isdecimal() or int(text) < 1:
            raise OnnxspectError(
                f"{VARIABLES[name]}={text!r:.40}: not a whole number above 0", "such as 1000000, or leave it unset"
            )
        values[name] = int(text)
    return DataLimits(**values)


def limits() -> DataLimits:
    """The limits of this process: the environment's, or the defaults (half of the machine's memory for arrays).

    Raises:
        OnnxspectError: a variable is no number.
    """
    return _limits(tuple((name, os.environ[v]) for name, v in VARIABLES.items() if v in os.environ))


def _half_of_memory() -> int:
    try:
        return max(2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    except (ValueError, OSError, AttributeError):
        return _MEMORY


def unpacked(path: Path) -> IO[bytes]:
    """A file, opened; unpacked as it is read, where it is packed by gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")
