"""Commands as tasks of a Ray cluster: one a model, samples and references put once, each node's own sandbox around every worker.

A task gets the bytes of the files that its command reads, lays them out on its node as they lie here (beneath a folder of its own, so
that relative paths stay what they are and reports come out the same), carries the command out as it would be here, and gives
back the bytes of the one folder that the command fills. Ray runs a task anew whose worker or node is gone; it has one result, however
often it was begun. Nothing but this module knows of Ray.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import printable
from onnxspect.converters.whole import write_whole
from onnxspect.engine.fleet.content import data_files, files_of_folder, model_files, version_digest
from onnxspect.engine.fleet.executor import LOST, SAID, Ended, Executor, Job
from onnxspect.engine.fleet.local import PROGRAM, Size

#: How often Ray begins a task anew whose worker or node is gone.
RETRIES = 20
_FOLDER = re.compile(r"onnxspect-ray-(\d+)-")
#: Bytes of a folder that a task gives back, at most.
_MOST_BACK = 8 << 30

#: Files by their absolute names; only their bytes travel.
Files = dict[str, bytes]


@dataclass(frozen=True)
class Parcel:
    """A command on its way to a node, beside its files.

    Attributes:
        arguments: of onnxspect, with relative paths.
        cwd: the folder that they count from, absolute.
        out: the folder that is to come back, absolute.
        threads: that the command may use.
        version: of code and libraries that the node must have.
    """

    arguments: tuple[str, ...]
    cwd: str
    out: str
    threads: int
    version: str


@dataclass(frozen=True)
class Returned:
    """What a task gives back: how the command ended, on which node, and the folder that it filled, by names inside it."""

    ended: Ended
    node: str
    files: Files


@contextlib.contextmanager
def on_ray(address: str, size: Size, device: str = "auto") -> Iterator[Executor]:
    """An executor on a cluster; afterwards this process has left it.

    Args:
        address: as `ray.init` takes it: "auto", or host:port, or ray://host:port.
        size: threads and memory of a command.
        device: that scans compute on; where the cluster has GPUs, each command gets one unless it is "cpu".

    Raises:
        OnnxspectError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise OnnxspectError(f"--ray: ray cannot be imported ({error})", "pip install 'onnxspect[ray]'") from error
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise OnnxspectError(
                f"--ray {address}: no cluster ({printable(line, 300)})", "`ray start --head`"
            ) from error
    try:
        yield _Cluster(ray, size, device)
    finally:
        if own:
            ray.shutdown()


class _Cluster:
    """An executor (executor.py) on the cluster that this process is part of."""

    def __init__(self, ray: Any, size: Size, device: str) -> None:
        self._ray, self._size = ray, size
        self._gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0
        self._task = ray.remote(carry_out).options(
            num_cpus=size.threads,
            num_gpus=self._gpus,
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
        )
        self._put: dict[str, Any] = {}
        self._running: dict[Any, tuple[Job, float]] = {}

    @property
    def slots(self) -> int:
        """As many as the cluster has cores or GPUs for, now; one at least, which waits."""
        has = self._ray.cluster_resources()
        cores = int(has.get("CPU", 0)) // self._size.threads
        return max(1, min(cores, int(has.get("GPU", 0))) if self._gpus else cores)

    def start(self, job: Job) -> None:
        """Hand it to the cluster."""
        here = Path.cwd()
        files = [self._once(str(p.absolute()), data_files(p)) for p in job.reads]
        if job.shelf is not None:
            for entry in sorted(p for p in job.shelf.iterdir() if p.is_dir() and "." not in p.name):
                files.append(self._once(str(entry.absolute()), files_of_folder(entry)))
        single = [*(model_files(job.model) if job.model is not None else ()), *files_of_folder(job.out)]
        single += [job.request] if job.request is not None else []
        files.append(self._ray.put(_bytes(single)))
        paths = [p for p in (*job.reads, job.shelf, job.model, job.request, job.out) if p is not None]
        parcel = Parcel(
            _relative(job.arguments, paths, here),
            str(here),
            str(job.out.absolute()),
            self._size.threads,
            version_digest(),
        )
        self._running[self._task.remote(parcel, *files)] = (job, time.monotonic())

    def _once(self, name: str, files: Iterable[Path]) -> Any:
        """What many commands read, put into the cluster's store the first time."""
        if name not in self._put:
            self._put[name] = self._ray.put(_bytes(files))
        return self._put[name]

    def wait(self, seconds: float) -> list[tuple[Job, Ended]]:
        """Those that have ended, with their folders back here."""
        if not self._running:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._came(reference) for reference in ready]

    def _came(self, reference: Any) -> tuple[Job, Ended]:
        job, since = self._running.pop(reference)
        try:
            returned: Returned = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            line = next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)
            return job, Ended(LOST, f"onnxspect: the cluster lost it: {printable(line, 300)}", time.monotonic() - since)
        if returned.files:
            _replace(job.out.absolute(), returned.files)
        return job, returned.ended

    def stop(self) -> None:
        """Cancel all."""
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._running.clear()


def carry_out(parcel: Parcel, *files: Files) -> Returned:
    """On a node: one command, in a folder that looks like the place where it was given."""
    node = os.uname().nodename
    if version_digest() != parcel.version:
        differs = f"onnxspect: {node} has another version of onnxspect, or of its libraries"
        return Returned(Ended(4, differs, 0.0), node, {})
    _sweep()
    since = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix=f"onnxspect-ray-{os.getpid()}-")).resolve()
    try:
        for some in files:
            _lay_out({_beneath(root, name): data for name, data in some.items()}, root)
        cwd, out = Path(_beneath(root, parcel.cwd)), Path(_beneath(root, parcel.out))
        cwd.mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [sys.executable, "-P", "-m", PROGRAM, *parcel.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                cwd=cwd,
                env={**os.environ, "OMP_NUM_THREADS": str(parcel.threads)},
                check=False,
            )
            end = said.seek(0, os.SEEK_END)
            said.seek(max(0, end - SAID))
            text = said.read().decode("utf-8", "replace")
        back = {p.relative_to(out).as_posix(): p.read_bytes() for p in _filled(out)}
        return Returned(Ended(done.returncode, text, time.monotonic() - since), node, back)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _filled(out: Path) -> list[Path]:
    """The files of a folder that a worker filled: regular ones, with one name, and not too much of them."""
    found, total = [], 0
    for path in files_of_folder(out):
        status = path.lstat()
        total += status.st_size
        if status.st_nlink == 1 and total <= _MOST_BACK:
            found.append(path)
    return found


def _sweep() -> None:
    """Remove what tasks have left on this node that were killed."""
    for path in Path(tempfile.gettempdir()).glob("onnxspect-ray-*"):
        match = _FOLDER.match(path.name)
        if match is not None and not Path(f"/proc/{match[1]}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def _relative(arguments: Sequence[str], paths: Iterable[Path], here: Path) -> tuple[str, ...]:
    """Arguments whose absolute paths count from `here`: on a node they lie beneath another root."""
    names = {str(p): os.path.relpath(p, here) for p in paths if p.is_absolute()}
    changed = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        whole = names.get(argument)
        changed.append(whole or (f"{option}={names[value]}" if equals and value in names else argument))
    return tuple(changed)


def _beneath(root: Path, name: str) -> str:
    return os.path.normpath(f"{root}/{name}")


def _bytes(files: Iterable[Path]) -> Files:
    return {str(p.absolute()): p.read_bytes() for p in files}


def _replace(folder: Path, files: Files) -> None:
    """Put the files, by their names inside it, in the place of all that a folder holds: a ledger goes with its own journal."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    _lay_out({f"{new}/{name}": data for name, data in files.items()}, new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _lay_out(files: Files, within: Path) -> None:
    """Write files by their absolute names; none outside of a folder, whoever named it."""
    for name, data in files.items():
        path = Path(os.path.normpath(name))
        if not path.is_relative_to(within):
            raise OnnxspectError(f"{printable(name, 200)}: leads out of {within}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
