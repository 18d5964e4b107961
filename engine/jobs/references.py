"""Reference networks and their searches, made once for many models of the same data.

They depend on samples and settings alone, not on the model, and are most of a scan's cost. `search_references` makes them from the
samples, without any model at hand, in a folder of their own. `Shelf` is what a scan gets to read of such folders: a finished
one is copied into its run, which then goes on as if it had made it. So nothing that a scan writes is ever read by another scan:
a stranger's model cannot change what the next one is compared with.

What of the model counts is in the `Request`: the shape of its images and the number of its classes, and by what order of
classes and which way of resizing the samples were read. A scan that lacks its references leaves the request in its run folder
and ends; whoever started it has them made, and starts it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta

from onnxspect.converters.sandbox.safe_open import read_beneath, read_regular
from onnxspect.converters.text import printable
from onnxspect.engine.detectors.base import AtHand, Detector
from onnxspect.engine.detectors.cepa import Cepa
from onnxspect.engine.errors import MachineError, OnnxspectError
from onnxspect.engine.jobs.case import Reading
from onnxspect.engine.jobs.choice import SEARCH_SHARE, settings_of, wanted_detectors
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.report.progress import watched
from onnxspect.engine.run import RunContext, prepare_process
from onnxspect.engine.run_folder import ARRAYS, FILE, MOST_ARRAY, MOST_LEDGER, REFERENCES, REQUEST, Snapshot
from onnxspect.engine.store import Ledger, write_atomically
from onnxspect.engine.subject.datasets import Data, samples_from
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.reference import train_references
from onnxspect.engine.subject.resizing import Resize, Resizing
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.version import tool_version

#: A request, in bytes at most: a million class names.
MOST_REQUEST = 64 << 20
#: Digits of a request's digest that name its folder.
DIGITS = 32
_Side = Annotated[int, Meta(ge=1, le=1 << 16)]
_Shape = Annotated[list[_Side], Meta(min_length=3, max_length=3)]


class ReferencesWantedError(MachineError):
    """A scan that is to take its references from others found none; what it needs is in its run folder, as REQUEST."""


class _Way(msgspec.Struct, forbid_unknown_fields=True):
    how: Literal["crop", "stretch", "try"]
    shorter: _Side | None
    crop: _Side | None


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    shape: _Shape
    classes: Annotated[int, Meta(ge=2, le=1_000_000)]
    size: _Shape | None
    way: _Way | bool
    names: list[str] | None


@dataclass(frozen=True)
class Request:
    """What references depend on beside samples and settings.

    Attributes:
        shape: (channels, height, width) of the model's images.
        classes: how many the model has.
        reading: how the samples were read.
    """

    shape: tuple[int, int, int]
    classes: int
    reading: Reading

    def text(self) -> str:
        """As JSON; the same for equal requests."""
        names, way = self.reading.classes, self.reading.way
        document = {
            "shape": list(self.shape),
            "classes": self.classes,
            "size": None if self.reading.size is None else list(self.reading.size),
            "way": way.describe() if isinstance(way, Resize) else way,
            "names": None if names is None else list(names.names),
        }
        return json.dumps(document, sort_keys=True)

    @property
    def key(self) -> str:
        """The name of the folder that holds what is wanted."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:DIGITS]

    @classmethod
    def read(cls, path: Path) -> Request:
        """From a file, which a scan of a stranger's model may have written.

        Raises:
            OnnxspectError: it is no request.
        """
        try:
            found = msgspec.json.decode(read_regular(path, MOST_REQUEST).data, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise OnnxspectError(
                f"{printable(str(path), 200)}: no request for references ({printable(str(error), 200)})",
                "a scan leaves it in its run folder",
            ) from error
        way = Resize(found.way.how, found.way.shorter, found.way.crop) if isinstance(found.way, _Way) else found.way
        names = None if found.names is None else ClassList(tuple(found.names), "the model", certain=False)
        size = None if found.size is None else (found.size[0], found.size[1], found.size[2])
        return cls((found.shape[0], found.shape[1], found.shape[2]), found.classes, Reading(size, way, names))


@dataclass(frozen=True)
class Shelf:
    """Finished references of one set of samples and settings, a folder a request; a scan reads it and never writes to it."""

    folder: Path

    def fetch(self, request: Request, fingerprint: Mapping[str, Any], run_folder: Path) -> None:
        """Copy the references that are wanted into a run that has none yet.

        Args:
            request: of the model.
            fingerprint: of the references; others under the same name are not taken.
            run_folder: of the scan.

        Raises:
            ReferencesWantedError: there are none.
        """
        target = run_folder / REFERENCES
        if target.exists():
            return
        source = self.folder / request.key
        if not _belongs(source, fingerprint):
            write_atomically(run_folder / REQUEST, request.text().encode())
            raise ReferencesWantedError(f"{run_folder}: its references are still to be made")
        half = run_folder / f".{REFERENCES}"
        shutil.rmtree(half, ignore_errors=True)
        (half / ARRAYS).mkdir(parents=True)
        for name in _files(source):
            most = MOST_LEDGER if name == FILE else MOST_ARRAY
            (half / name).write_bytes(read_beneath(source, name, most).data)
        half.rename(target)
        (run_folder / REQUEST).unlink(missing_ok=True)


def _files(folder: Path) -> list[str]:
    """The files that a finished folder of references holds."""
    arrays = sorted(p.name for p in (folder / ARRAYS).glob("*.npy"))
    networks = sorted(p.name for p in folder.glob("reference-*.npz"))
    return [FILE, *networks, *(f"{ARRAYS}/{name}" for name in arrays)]


def _belongs(folder: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether there is a ledger in the folder, of that fingerprint."""
    return _fingerprint_in(folder) == json.dumps(dict(fingerprint), sort_keys=True)


def _fingerprint_in(folder: Path) -> str | None:
    """The fingerprint of the ledger in the folder, as text; None where there is none that can be read."""
    if not (folder / FILE).is_file():
        return None
    try:
        with contextlib.closing(Snapshot(folder)) as snapshot:
            rows = snapshot.db.execute("SELECT value FROM facts WHERE name = 'fingerprint'").fetchall()
    except (OnnxspectError, sqlite3.Error):
        return None
    return str(rows[0][0]) if len(rows) == 1 else None


def _holds_references(folder: Path) -> bool:
    """Whether the ledger in the folder is one of references, of whatever fingerprint."""
    found = _fingerprint_in(folder)
    try:
        known = json.loads(found or "null")
    except ValueError:
        return False
    return isinstance(known, dict) and "image" in known and "model" not in known


def reference_fingerprint(
    samples: Samples,
    training: Samples | None,
    preset: str,
    detectors: Sequence[Detector],
    resize: Resizing,
    run: RunContext,
    shape: Sequence[int],
    classes: int,
) -> dict[str, Any]:
    """What references depend on: of the detectors those that are compared with them, and of the model its form alone."""
    found = {
        "tool": tool_version(),
        "data": samples.sha256,
        "preset": preset,
        "detectors": {d.name: settings_of(d) for d in detectors if d.traits.references},
        "resize": resize.describe() if isinstance(resize, Resize) else resize,
        "seed": run.seed,
        "device": run.device,
        "threads": torch.get_num_threads() if run.device == "cpu" else 0,
        "torch": torch.__version__,
        "classes": classes,
        "image": list(shape),
    }
    # Where there is a training set, detectors search on it, on the references too.
    return found if training is None else found | {"training set": training.sha256}


@judging()
def search_references(
    request: Request,
    data: Data,
    out: str | Path,
    preset: str = "standard",
    detectors: str | Detector | Sequence[str | Detector] = (),
    resize: Resizing = False,
    run: RunContext | None = None,
    train: Data | None = None,
    taps: Sequence[str] = (),
    perturb_at: str = "",
) -> int:
    """Train the reference networks that scans of such models need, and search them as those scans would.

    What depends on the model (which pairs of classes are looked at more closely) is left to the scan. A run that was
    killed goes on where it stopped.

    Args:
        request: what of the models counts.
        data: clean samples, as for `scan`.
        out: the folder to fill; other references that it holds are removed first. A scan's run folder is refused.
        preset, detectors, resize, run, train, taps, perturb_at: as for `scan`.

    Returns:
        how many networks learned the classes; perhaps none.

    Raises:
        OnnxspectError: samples that cannot be read, a folder that holds a scan, or too little memory or disk.
    """
    run, folder = run or watched(), Path(out)
    prepare_process(run.device)
    reading = request.reading
    samples = samples_from(data, reading.size, reading.way, reading.classes)
    training = None
    if train is not None:
        training = samples_from(train, reading.size, reading.way, reading.classes, training=True)
    if samples.shape != request.shape:
        raise OnnxspectError(
            f"samples of {samples.shape}, but references for {request.shape} are wanted",
            "give samples of the size that the request names",
        )
    able = wanted_detectors(preset, detectors, train is not None, None, request.classes, taps, perturb_at)
    fingerprint = reference_fingerprint(samples, training, preset, able, resize, run, request.shape, request.classes)
    if (folder / FILE).exists() and not _belongs(folder, fingerprint):
        own = [folder / name for name in (*_files(folder), f"{FILE}-wal", f"{FILE}-shm")]
        others = [p for p in folder.rglob("*") if p not in own and not p.is_dir() and not p.name.startswith(".")]
        if others or not _holds_references(folder):
            raise OnnxspectError(f"{folder}: holds a scan or other files, not references alone", "choose another --out")
        for path in own:
            path.unlink(missing_ok=True)
    search_samples, held_out = samples.split(SEARCH_SHARE, run.numpy_generator("split"))
    form = Subject(lambda x: x, InputSpec(), request.shape, request.classes, run.device, name="no model")
    with Ledger(folder, fingerprint) as ledger:
        networks = train_references(form, search_samples, held_out, run, folder)
        if networks:
            at_hand = AtHand(
                networks[0], search_samples, held_out, run, None, networks, ledger, training, references_alone=True
            )
            for detector in able:
                # A tensor inside the model, which no reference has, is not compared with any.
                if detector.traits.references and not (isinstance(detector, Cepa) and detector.perturb_at):
                    detector.run(at_hand)
    return len(networks)
