"""Many models scanned: what is known is skipped, references are made once, what fails is noted, what was begun goes on.

Each scan is a command of its own, which an executor carries out. One that lacks references leaves a request for them in its run
folder and ends (engine/jobs/references.py); they are made by another command, which opens no model, and the scan is started
again. The first model of each group (same data, same settings) goes ahead where a group has no references yet, so that not every
one of them asks.

What is finished is a commit in the index, and a finished run is taken for it even where this process was killed in between: so
nothing is lost, and nothing is done twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError, unwritable
from onnxspect.converters.sandbox.safe_open import read_beneath
from onnxspect.converters.whole import write_whole
from onnxspect.engine.fleet.cache import HALF, Cache, Known
from onnxspect.engine.fleet.executor import Ended, Executor, Job
from onnxspect.engine.fleet.index import FAILED, HOSTILE, INCONCLUSIVE, REFUSED, Index, Result
from onnxspect.engine.fleet.plan import KEY_DIGITS, Options, Scan, as_arguments, reads
from onnxspect.engine.fleet.report_of import now, report_of, result_of, units_of
from onnxspect.engine.run_folder import FILE as LEDGER
from onnxspect.engine.run_folder import REFERENCES, REQUEST

#: Tries of a command that is killed before it finished anything new; and of any, for what a worker finished it says itself.
TRIES, MOST_TRIES = 3, 25
#: Seconds after which a folder that another process holds is tried again.
_BUSY_SECONDS = 10.0
#: Options that the making of references takes too.
_OF_REFERENCES = (
    *("data", "train", "preset", "detector", "tap", "perturb-at", "resize", "crop", "classes", "device", "seed"),
    *("max-memory", "max-seconds", "require-sandbox"),
)
_OUTCOME = {1: HOSTILE, 2: REFUSED, 3: INCONCLUSIVE}
_REFUSED = 2
_BUSY = "another scan is running in this folder"
_MOST_REQUEST = 64 << 20
_LOOK = 0.5


@dataclass
class _Group:
    """Scans that share references, and how far these are.

    Attributes:
        shelf: where they lie; None where they are not shared.
        open: its scans may start.
        first: the key of the scan that went ahead.
        waiting: by request, the scans that need it.
        made: requests that were made by this process, or cannot be had.
    """

    shelf: Path | None
    open: bool
    first: str = ""
    waiting: dict[str, list[str]] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)


class Watching:
    """Who is told how it goes; this one says nothing."""

    def planned(self, total: int, known: int) -> None:
        """So many models, of which so many need no scan."""

    def references(self, group: str, begins: bool, cause: str = "") -> None:
        """References of a group are being made, or are made, or cannot be had because of `cause`."""

    def ended(self, scan: Scan, result: Result, done: int, total: int) -> None:
        """A model has its result."""

    def again(self, scan: Scan, cause: str) -> None:
        """A scan was killed, and will be tried again."""


class Fleet:
    """The scans of many models, into one output folder.

    Args:
        scans: what is planned.
        out: output folder; made where it is missing.
        cache: of references and known results.
        executor: who carries commands out.
        watching: who is told.
        check: ask once about options that several models have in common, before any of these is scanned.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        out: Path,
        cache: Cache,
        executor: Executor,
        watching: Watching | None = None,
        check: bool = False,
    ) -> None:
        self._check = check
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(out, error, "choose another --out", "cannot be made a folder") from error
        self.scans, self.out = scans, out
        self._cache, self._executor, self._watching = cache, executor, watching or Watching()
        self._by_key: dict[str, Scan] = {}
        for scan in scans:
            self._by_key.setdefault(scan.key, scan)
        self._groups: dict[str, _Group] = {}
        self._pending: deque[str] = deque()
        self._held: dict[str, deque[str]] = {}
        self._references: deque[str] = deque()
        self._making: dict[str, tuple[str, str]] = {}  # by key: group and request
        self._alone: set[str] = set()  # scans that make their own references
        self._asking: set[str] = set()  # scans that have asked for references: each may once
        self._tries: dict[str, tuple[int, int, int]] = {}  # in all, since anything was finished, what was finished
        self._later: list[tuple[float, str]] = []
        self._running: set[str] = set()
        self._results: dict[str, Result] = {}

    def run(self) -> list[Result]:
        """Scan what is not known yet; the result of every scan, in order.

        Raises:
            OnnxspectError: the output folder or the cache cannot be written. What one model does to its own scan is its result.
        """
        with Index(self.out) as self._index:
            self._index.add(
                (str(s.wanted.path), json.dumps(sorted(s.options.items())), s.key, s.model, s.data) for s in self.scans
            )
            for key, scan in self._by_key.items():
                result = self._known(scan)
                if result is not None:
                    self._results[key] = result
            unknown = [s for k, s in self._by_key.items() if k not in self._results]
            try:
                for scan in self._with_good_options(unknown) if self._check else unknown:
                    self._enter(scan)
                self._watching.planned(len(self._by_key), len(self._results))
                while len(self._results) < len(self._by_key):
                    self._start()
                    over = self._executor.wait(_LOOK)
                    self._running -= {job.key for job, _ in over}
                    if over:
                        self._start()  # what comes next need not wait until all is written down
                    for job, ended in over:
                        self._ended(job, ended)
                    self._look()
            finally:
                self._executor.stop()
        return [self._results[s.key] for s in self.scans]

    def folder(self, result: Result) -> Path:
        """Where a result's run is."""
        return self.out / result.folder

    def _known(self, scan: Scan) -> Result | None:
        """A result that needs no scan: refused, finished here, or finished elsewhere and still there."""
        if scan.problem:
            result = Result(scan.key, REFUSED, cause=scan.problem, finished=now())
            self._index.keep(result)
            return result
        report = report_of(self.out / scan.name)
        if report is not None:
            result = result_of(scan.key, report, scan.name)
            if self._index.result(scan.key) != result:
                self._index.keep(result)
                self._remember(result)
            return result
        known = self._cache.known(scan.key)
        if known is not None:
            report = report_of(known.folder)
            if report is not None and report["digest"] == known.digest:
                result = result_of(scan.key, report, str(known.folder))
                self._index.keep(result)
                return result
        return None

    def _with_good_options(self, scans: Sequence[Scan]) -> list[Scan]:
        """The scans but those whose options a command refuses that looks at no model; each of these has its result.

        Raises:
            OnnxspectError: no scan is left: what is wrong is said once.
        """
        by_options: dict[str, list[Scan]] = {}
        for scan in scans:
            by_options.setdefault(json.dumps(sorted(scan.options.items())), []).append(scan)
        left: list[Scan] = []
        for alike in by_options.values():
            ended = self._asked_for(alike[0].options) if len(alike) > 1 else None
            if ended is None or ended.status != _REFUSED:
                left += alike
            elif len(alike) == len(scans):
                raise OnnxspectError(ended.cause, ended.hint)
            else:
                for scan in alike:
                    self._results[scan.key] = Result(scan.key, REFUSED, cause=ended.cause, finished=now())
                    self._index.keep(self._results[scan.key])
        return left

    def _asked_for(self, options: Options) -> Ended:
        """How a command ends that checks options and looks at no model."""
        with tempfile.TemporaryDirectory(prefix="onnxspect-") as folder:
            out = Path(folder)
            arguments = [
                "scan",
                *as_arguments(options),
                f"--out={out}",
                "-q",
                "--check-only",
                "--",
                str(out / "no-model.onnx"),
            ]
            self._executor.start(Job("options", tuple(arguments), out, None, reads(options)))
            while not (over := self._executor.wait(_LOOK)):
                pass
        return over[0][1]

    def _enter(self, scan: Scan) -> None:
        """Put a scan into the queue of its group."""
        if scan.group not in self._groups:
            shelf = None if scan.options.get("budget") else self._cache.shelf(scan.group)
            ready = shelf is None or any(not p.name.endswith((HALF, ".json")) for p in shelf.iterdir())
            self._groups[scan.group] = _Group(shelf, ready)
            self._held[scan.group] = deque()
        (self._pending if self._groups[scan.group].open else self._held[scan.group]).append(scan.key)

    def _start(self) -> None:
        """Fill the free slots: references first, for others wait for them; then what is ready; then who goes ahead."""
        for when, key in list(self._later):
            if when <= time.monotonic():
                self._later.remove((when, key))
                (self._references if key in self._making else self._pending).append(key)
        while len(self._running) < self._executor.slots:
            if self._references:
                self._make(self._references.popleft())
            elif self._pending:
                self._begin(self._by_key[self._pending.popleft()])
            else:
                able = [n for n, g in self._groups.items() if not g.open and not g.first and self._held[n]]
                if not able:
                    return
                group = self._groups[able[0]]
                group.first = self._held[able[0]].popleft()
                self._begin(self._by_key[group.first])

    def _begin(self, scan: Scan) -> None:
        group = self._groups[scan.group]
        shelf = None if scan.key in self._alone else group.shelf
        folder = self.out / scan.name
        self._tries.setdefault(scan.key, (0, 0, units_of(folder)))
        arguments = ["scan", *as_arguments(scan.options), f"--out={folder}", "-q"]
        arguments += [*([] if shelf is None else [f"--shelf={shelf}"]), "--", str(scan.wanted.path)]
        self._running.add(scan.key)
        self._executor.start(Job(scan.key, tuple(arguments), folder, scan.wanted.path, reads(scan.options), shelf))

    def _make(self, key: str) -> None:
        """Begin with references that are asked for."""
        group, request = self._making[key]
        shelf = self._groups[group].shelf
        scan = next(s for s in self.scans if s.group == group)
        if shelf is None:
            raise ValueError(f"group {group} shares no references")
        half = shelf / f"{request}{HALF}"
        chosen = {k: scan.options[k] for k in _OF_REFERENCES if k in scan.options}
        asked = shelf / f"{request}.json"
        arguments = ("references", *as_arguments(chosen), f"--out={half}", "-q", "--", str(asked))
        self._tries.setdefault(key, (0, 0, units_of(half)))
        self._running.add(key)
        self._watching.references(group, True)
        self._executor.start(Job(key, arguments, half, None, reads(scan.options), None, asked))

    def _ended(self, job: Job, ended: Ended) -> None:
        self._index.attempt(job.key, now(), ended.status, ended.cause if ended.status else "")
        if job.key in self._making:
            self._references_ended(job, ended)
        else:
            self._scan_ended(self._by_key[job.key], ended)

    def _scan_ended(self, scan: Scan, ended: Ended) -> None:
        folder = self.out / scan.name
        report = report_of(folder)
        if report is not None:
            result = result_of(scan.key, report, scan.name)
            self._remember(result)
            self._finish(scan, result)
            return
        request = self._request(scan, folder) if ended.status == 4 else None
        if request is not None:
            self._asked(scan, request)
        elif (ended.killed or _BUSY in ended.said) and self._may_try(scan.key, folder, ended):
            self._watching.again(scan, ended.cause)
        else:
            # A Python that could not even begin ends with 1 too; a command of ours says why it ended.
            outcome = FAILED if ended.killed or not ended.said_why else _OUTCOME.get(ended.status, FAILED)
            cause = ended.cause if ended.status else "it ended without a report"
            name = scan.name if folder.is_dir() else ""
            self._finish(
                scan, Result(scan.key, outcome, cause=cause, folder=name, seconds=ended.seconds, finished=now())
            )

    def _finish(self, scan: Scan, result: Result) -> None:
        self._index.keep(result)
        self._results[scan.key] = result
        group = self._groups[scan.group]
        if group.first == scan.key and not group.open:
            group.first = ""  # where it failed, another goes ahead
            if result.final:
                self._open(scan.group)
        self._watching.ended(scan, result, len(self._results), len(self._by_key))

    def _open(self, group: str) -> None:
        """Let all scans of a group start."""
        self._groups[group].open = True
        self._pending += self._held[group]
        self._held[group].clear()

    def _look(self) -> None:
        """Open the groups whose first scan has its references: it needs no others, or found them."""
        for name, group in self._groups.items():
            first = group.first if not group.open and group.first in self._running else ""
            if first and (self.out / self._by_key[first].name / REFERENCES / LEDGER).exists():
                self._open(name)

    def _request(self, scan: Scan, folder: Path) -> bytes | None:
        """What a scan asks for: text of whoever made the model, which only the making of references reads."""
        if scan.key in self._alone or self._groups[scan.group].shelf is None or not (folder / REQUEST).exists():
            return None
        with contextlib.suppress(OnnxspectError):
            return read_beneath(folder, REQUEST, _MOST_REQUEST).data
        return None

    def _asked(self, scan: Scan, text: bytes) -> None:
        """Have references made, or wait for them; of a scan that asks again after that, its own scan makes its own."""
        group = self._groups[scan.group]
        name = hashlib.sha256(text).hexdigest()[:KEY_DIGITS]
        shelf = group.shelf
        if shelf is None:
            raise ValueError(f"group {scan.group} shares no references")
        with contextlib.suppress(OSError):
            (self.out / scan.name / REQUEST).unlink()
        if name in group.waiting:
            group.waiting[name].append(scan.key)
        elif name in group.made or scan.key in self._asking:
            self._alone.add(scan.key)
            self._pending.append(scan.key)
        else:
            self._cache.forget(shelf / name)  # others lie there: an image beside a list was changed
            write_whole(shelf / f"{name}.json", text)
            group.waiting[name] = [scan.key]
            key = f"{scan.group}/{name}"
            self._making[key] = (scan.group, name)
            self._references.append(key)
        self._asking.add(scan.key)

    def _references_ended(self, job: Job, ended: Ended) -> None:
        name, request = self._making[job.key]
        group = self._groups[name]
        if ended.status == 0:
            self._cache.finish(job.out)
        elif (ended.killed or _BUSY in ended.said) and self._may_try(job.key, job.out, ended):
            return
        else:
            self._alone |= set(group.waiting[request])
        self._watching.references(name, False, ended.cause if ended.status else "")
        group.made.add(request)
        self._pending += group.waiting.pop(request)
        if not group.open:
            self._open(name)

    def _may_try(self, key: str, folder: Path, ended: Ended) -> bool:
        """Whether a command that was killed, or came too late for its folder, is tried again; then it is in its queue."""
        total, since, before = self._tries[key]
        now = units_of(folder)
        since = 1 if now > before else since + 1
        self._tries[key] = (total + 1, since, now)
        if total + 1 >= MOST_TRIES or (since >= TRIES and ended.killed):
            return False
        self._later.append((time.monotonic() + (0 if ended.killed else _BUSY_SECONDS), key))
        return True

    def _remember(self, result: Result) -> None:
        self._cache.remember(result.key, Known(self.folder(result), result.digest))
