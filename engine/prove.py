"""Verification from paths: what `onnxspect verify` calls. It gathers samples, preprocessing and triggers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.mitigation.unlearn import Trigger
from onnxspect.engine.mitigation.verify import Goals, Stamp, Verification, verify
from onnxspect.engine.patch import read_finding, stamps
from onnxspect.engine.preprocessing import preflight
from onnxspect.engine.run import RunContext
from onnxspect.engine.samples import Samples
from onnxspect.engine.subject import InputSpec, Subject


def prove(
    patched: str | Path,
    original: str | Path,
    data: str | Path,
    run_folder: str | Path | None = None,
    trigger: str | Path | None = None,
    spec: InputSpec | None = None,
    goals: Goals | None = None,
    resize: bool = False,
    run: RunContext | None = None,
) -> Verification:
    """Measure a patched file against its original.

    Args:
        patched, original: the files.
        data: clean samples.
        run_folder: of the scan whose triggers are measured; its preprocessing is used too.
        trigger: npz of a trigger of one's own (see `load_trigger`).
        spec: preprocessing where the user knows it; else the run's, else it is found on the original.
        goals: what must hold.
        resize: bring images of another size to the model's.
        run: seed, device, observer.

    Raises:
        OnnxspectError: a file does not fit.
    """
    run = run or RunContext()
    subject = Subject.from_onnx(original, spec, run.device)
    samples = Samples.load(data, subject.size, resize)
    triggers: dict[str, tuple[int, Stamp]] = {}
    finding = read_finding(Path(run_folder)) if run_folder is not None else None
    if finding is not None:
        if subject.file is None or finding.report["model"]["sha256"] != subject.file.sha256:
            raise OnnxspectError(f"{run_folder}: the run belongs to another model ({finding.report['model']['path']})")
        triggers |= stamps(finding.triggers)
    if trigger is not None:
        own = load_trigger(Path(trigger), samples.shape)
        triggers |= {Path(trigger).stem: next(iter(stamps((own,)).values()))}
    if spec is None and finding is not None:
        chosen = finding.spec
    else:
        chosen = preflight(subject, samples, run, spec).subject.spec
    return verify(Path(patched), Path(original), samples, chosen, triggers, goals, run.device)


def load_trigger(path: Path, shape: tuple[int, int, int]) -> Trigger:
    """A user's own trigger: npz with `target` (a class index) and either `mask` and `pattern` or `delta`.

    Arrays are float in [0, 1] (`delta` in [-1, 1]), ``(channels, height, width)``, or ``(height, width)`` for a mask.

    Raises:
        OnnxspectError: not such a file, or another shape.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise OnnxspectError(f"{path}: not a readable npz file") from error
    if "target" not in arrays or not ({"mask", "pattern"} <= set(arrays) or "delta" in arrays):
        raise OnnxspectError(f"{path}: a trigger has `target`, and `mask` and `pattern`, or `delta`")
    names = ("mask", "pattern") if "mask" in arrays else ("delta",)
    kept = {}
    for name in names:
        array = arrays[name].astype(np.float32)
        if array.ndim == 2:
            array = array[None]
        expected = (1, *shape[1:]) if name == "mask" and array.shape[0] == 1 else shape
        if array.shape != expected:
            raise OnnxspectError(f"{path}: {name} has shape {array.shape}, the images {shape}")
        low = -1 if name == "delta" else 0
        if not np.isfinite(array).all() or array.min() < low or array.max() > 1:
            raise OnnxspectError(f"{path}: {name} has values outside [{low}, 1]")
        kept[name] = array
    target = arrays["target"]
    if target.size != 1 or target.dtype.kind not in "ui":
        raise OnnxspectError(f"{path}: `target` is not one class index")
    return Trigger(int(target.reshape(())), kept)
