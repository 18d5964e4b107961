"""`onnxspect.scan_many`: the library call behind `onnxspect scan MODELS...`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import printable
from onnxspect.engine.fleet import models as of_models
from onnxspect.engine.fleet.cache import Cache, default_folder
from onnxspect.engine.fleet.executor import Executor
from onnxspect.engine.fleet.fleet import Fleet, Watching
from onnxspect.engine.fleet.forked import Forkserver
from onnxspect.engine.fleet.index import Result
from onnxspect.engine.fleet.local import LocalProcesses, Size
from onnxspect.engine.fleet.machine import usable_memory
from onnxspect.engine.fleet.plan import Options, planned

if TYPE_CHECKING:
    from onnxspect.engine.report.result import Report

#: Of the output folder, what is kept there where the user's cache is not used.
OWN_CACHE = ".cache"


@dataclass(frozen=True)
class Scanned:
    """One model of many.

    Attributes:
        path: of the model, as it was found.
        outcome: "clean", "backdoored" or "inconclusive", or why there is no verdict: "hostile", "refused", "failed".
        cause: the first reason of the verdict, or what stopped the scan.
        result: all that the index says.
        folder: of the run; it need not exist where there is no report.
    """

    path: Path
    outcome: str
    cause: str
    result: Result
    folder: Path

    @property
    def report(self) -> Report:
        """The report, read from the run folder.

        Raises:
            OnnxspectError: there is none; says why.
        """
        from onnxspect.engine.report.result import Report

        if not self.result.digest:
            raise OnnxspectError(
                f"{self.path}: there is no report: {self.cause}",
                "mend that, and give the same command again: what is done is not done twice",
            )
        return Report.open(self.folder)


def scan_many(
    models: str | Path | Iterable[str | Path],
    data: str | Path | None = None,
    out: str | Path = "runs",
    jobs: int | None = None,
    cache: bool | str | Path = True,
    ray: str = "",
    watching: Watching | None = None,
    **options: Any,
) -> list[Scanned]:
    """Scan many models: each in a process of its own that is locked in, with references that are made once.

    What is known already is not scanned again; what fails is an outcome, and costs no other model's; the same call goes on where
    it was interrupted. See docs/many-models.md.

    Args:
        models: paths of models, folders of them, patterns, or lists (engine/fleet/models.py).
        data: path of clean samples, for every model whose list names no other.
        out: output folder: a run folder a model, and index.sqlite.
        jobs: how many at a time on this machine; by default as many as its cores, GPUs and memory hold.
        cache: keep references and known results in the user's cache folder, or in that one; False keeps references beside the
            runs, and asks and tells nobody of results.
        ray: address of a Ray cluster that carries the scans out; "" for this machine.
        watching: is told how it goes.
        options: further options of `onnxspect scan` by their names, with _ for -: ``preset="quick", detector=["cepa"]``.

    Returns:
        one a model, in their order.

    Raises:
        OnnxspectError: no model is meant, an unknown option, or a folder that cannot be written.
    """
    given = [models] if isinstance(models, str | Path) else list(models)
    wanted = of_models.found(map(str, given))
    common = dict(of_models.options_of(options, "scan_many"))
    if data is not None:
        common["data"] = (str(data),)
    fleet_folder = Path(out)
    where = default_folder() if cache is True else fleet_folder / OWN_CACHE if cache is False else Path(cache)
    return run(wanted, common, fleet_folder, Cache(where, results=cache is not False), jobs, ray, watching)


def run(
    wanted: Sequence[of_models.Wanted],
    common: Options,
    out: Path,
    cache: Cache,
    jobs: int | None = None,
    ray: str = "",
    watching: Watching | None = None,
) -> list[Scanned]:
    """The same, of models and options that are known to be such."""
    _check_paths(wanted, common)
    (device,) = common.get("device") or ("auto",)
    size = Size.of(usable_memory(), jobs, device)
    common = {"max-memory": (str(size.memory_bytes),)} | dict(common)
    with executor_for(size, ray, device) as executor:
        scans = list(planned(wanted, common, size.threads))
        fleet = Fleet(scans, out, cache, executor, watching, check=True)
        results = fleet.run()
    return [Scanned(s.wanted.path, r.outcome, r.cause, r, fleet.folder(r)) for s, r in zip(scans, results, strict=True)]


def _check_paths(wanted: Sequence[of_models.Wanted], common: Options) -> None:
    """Refuse what no scan of these could read: said once, and before any work."""
    for name in sorted(of_models.PATHS):
        (given,) = common.get(name) or ("",)
        if given and not (name == "classes" and "," in given) and not Path(given).exists():
            raise OnnxspectError(
                f"--{name} {printable(given, 200)}: no such file or folder", "a path from where the command is run"
            )
    if not common.get("data") and not any(dict(w.options).get("data") for w in wanted):
        raise OnnxspectError("no clean samples are given", "--data PATH, or data in the list")


def executor_for(size: Size, ray: str, device: str) -> AbstractContextManager[Executor]:
    """Who carries the scans out."""
    if not ray:
        return nullcontext(Forkserver(size) if sys.platform == "linux" else LocalProcesses(size))
    from onnxspect.engine.fleet.on_ray import on_ray

    return on_ray(ray, size, device)
