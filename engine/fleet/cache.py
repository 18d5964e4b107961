"""What outlives a scan of many models, in the user's cache folder: references with their searches, and which scans are known.

    references/GROUP/REQUEST/    finished references (engine/jobs/references.py); GROUP is of data, settings and version
    results/KEY.json             where the finished run of a model is; KEY is of model, data, settings and version

Names are digests that this program took of the bytes. Into references only the job writes that makes them, which opens the samples and
no model, and only into the one folder named after these samples: who makes samples can spoil what is compared on them, and nothing
else. What is known of a model is written by this process, and believed only as long as the run that it names holds the same report.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError, unwritable
from onnxspect.converters.sandbox.safe_open import read_regular
from onnxspect.converters.whole import write_whole

#: The end of the name of references that are being made.
HALF = ".half"
_MOST = 1 << 16


def default_folder() -> Path:
    """Of this user, where the platform keeps caches."""
    own = os.environ.get("XDG_CACHE_HOME")
    if own and Path(own).is_absolute():
        return Path(own) / "onnxspect"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "onnxspect"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "onnxspect" / "cache"
    return Path.home() / ".cache" / "onnxspect"


@dataclass(frozen=True)
class Known:
    """A finished scan.

    Attributes:
        folder: its run.
        digest: of its report.
    """

    folder: Path
    digest: str


@dataclass(frozen=True)
class Cache:
    """A cache folder.

    Attributes:
        folder: it is made when it is first written to.
        results: which scans are known is kept too.
    """

    folder: Path
    results: bool = True

    def shelf(self, group: str) -> Path:
        """The folder of the references of one group, made where it is missing.

        Raises:
            OnnxspectError: it cannot be made.
        """
        path = self.folder / "references" / group
        self._make(path)
        return path

    def finish(self, half: Path) -> Path:
        """Give references that are finished their name; another process's, where it was quicker, stay."""
        whole = half.with_name(half.name.removesuffix(HALF))
        try:
            half.rename(whole)
        except OSError:
            if not whole.is_dir():
                raise
            shutil.rmtree(half, ignore_errors=True)
        return whole

    def forget(self, references: Path) -> None:
        """Remove references that turned out to be others than those that are wanted."""
        shutil.rmtree(references, ignore_errors=True)

    def known(self, key: str) -> Known | None:
        """The finished scan of that key, as far as is remembered."""
        if not self.results:
            return None
        with contextlib.suppress(OnnxspectError, ValueError, KeyError, TypeError):
            said = json.loads(read_regular(self._result(key), _MOST).data)
            return Known(Path(str(said["folder"])), str(said["digest"]))
        return None

    def remember(self, key: str, known: Known) -> None:
        """Note where the finished scan of a key is."""
        if self.results:
            self._make(self._result(key).parent)
            said = {"folder": str(known.folder.absolute()), "digest": known.digest}
            write_whole(self._result(key), json.dumps(said).encode())

    def _result(self, key: str) -> Path:
        return self.folder / "results" / f"{key}.json"

    def _make(self, path: Path) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error, "--cache DIR, or --no-cache", "cannot be made a folder") from error
