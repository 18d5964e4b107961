"""Any framework's model to ONNX, in one call: `convert`.

What happens, and where:

1. parent: what is this file? (formats.py, by content); its digest;
2. a child of its own: the framework opens the model, writes ONNX, and computes its outputs on seeded inputs
   (convert_job.py and one from_<framework>.py; guard.py locks the child in);
3. a second child that never saw the framework's file: onnxruntime, optimisations off, computes the same inputs on the
   written ONNX bytes, which are treated as an untrusted file (probe.py);
4. parent: compares the two, by one table of tolerances, and only then puts the file at its place, with a sidecar.

So neither a framework's exporter that silently writes a wrong graph nor a file that took over the first child can
produce an accepted model that computes something else than what the framework showed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import EncodeError

from onnxspect.converters import plugins
from onnxspect.converters.errors import OnnxspectError, caused_by
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.onnx_file import OnnxFile, check_onnx, read_onnx
from onnxspect.converters.file.probe import probe, read_array, run_on
from onnxspect.converters.proof.tolerances import TOLERANCES, allowed_difference
from onnxspect.converters.sandbox.guard import GuardedRun, GuardLimits, guarded
from onnxspect.converters.sources.conversion import (
    Conversion,
    ConvertLimits,
    Parity,
    sidecar,
    sidecar_path,
    sidecar_text,
)
from onnxspect.converters.sources.formats import FORMATS, Format, brought_in, detect
from onnxspect.converters.sources.source_digest import source_digest
from onnxspect.converters.text import printable
from onnxspect.converters.whole import write_whole

__all__ = ["Conversion", "ConvertLimits", "Parity", "convert", "sidecar_path"]

_MAX_CLASSES = 100_000


def convert(
    source: str | Path,
    out: str | Path,
    *,
    factory: str | None = None,
    input_shape: Sequence[int] | None = None,
    framework: str | None = None,
    limits: ConvertLimits | None = None,
    require_sandbox: bool = False,
    search_path: Sequence[Path] | None = None,
    seed: int = 0,
    head: str = "",
) -> Conversion:
    """Turn a model of any framework into an ONNX file, and prove that it computes the same.

    Args:
        source: the model's file, or its folder (SavedModel, Orbax).
        out: where the ONNX file goes; its folder must exist. A sidecar ``<out>.json`` is written beside it.
        factory: "package.module:function" of the user's own code, where the source holds weights alone. For PyTorch and
            Keras it takes nothing and returns the network; for JAX it takes the tree of arrays and returns a function.
        input_shape: of one sample, without the batch, where the source does not say.
        framework: a name in `formats.FORMATS`, or of an installed package's format, to override what the content looks like.
        limits: default `ConvertLimits()`.
        require_sandbox: refuse where the system cannot lock the child in completely. Formats that run code on opening
            are refused there in any case.
        search_path: folders in which the factory's module is looked for; the current folder by default. The child can
            read them.
        seed: of the inputs that are compared.
        head: name of the output that is meant, where the model has several; the first by default.

    Raises:
        OnnxspectError: one line with the file's name and the cause, and a hint.
    """
    limits = limits or ConvertLimits()
    source, out = Path(source), Path(out)
    shown = printable(str(source), 200)
    shape = _shape(input_shape)
    _require_place(out, source)
    refuse_hostile(source, shown)
    kind = _format(source, framework, shown)
    digest = source_digest(source, limits.source_bytes)
    refusal: OnnxspectError | None = None
    if kind.name == "onnx":
        made, refusal = _copy_onnx(source, out, shape, limits, require_sandbox, digest, seed)
        if made is not None:
            return made
    request = {
        "path": str(source.resolve()),
        "format": kind.name,
        "title": kind.title,
        "module": kind.module,
        "factory": factory or "",
        "input_shape": list(shape),
        "search_path": [str(p) for p in _search_path(search_path)] if factory else [],
        "seed": seed,
        "head": head,
    }
    try:
        return _convert(kind, request, source, out, limits, require_sandbox, digest)
    except OnnxspectError as error:
        if refusal is None:
            raise
        also = error.message.removeprefix(f"{shown}: ")
        raise caused_by(error, f"{refusal.message}; and {also}", error.hint) from None
    except _Legacy as legacy:
        kind = FORMATS["keras2-h5"]
        request = {**request, "format": kind.name, "title": kind.title, "module": kind.module}
        try:
            return _convert(kind, request, source, out, limits, require_sandbox, digest)
        except OnnxspectError as error:
            message = f"{legacy.error.message}; and with tf_keras: {error.message}"
            raise caused_by(error, message, error.hint) from None


class _Legacy(Exception):
    """An .h5 file of Keras 2 that Keras 3 cannot load: the next attempt is tf_keras."""

    def __init__(self, error: OnnxspectError) -> None:
        super().__init__(str(error))
        self.error = error


def _convert(
    kind: Format,
    request: Mapping[str, Any],
    source: Path,
    out: Path,
    limits: ConvertLimits,
    require_sandbox: bool,
    digest: str,
) -> Conversion:
    shown = printable(str(source), 200)
    readable = [Path(request["path"]), *map(Path, request["search_path"])]
    try:
        with guarded(
            "convert",
            request,
            shown=shown,
            limits=GuardLimits(limits.seconds, limits.memory_bytes),
            readable=readable,
            environment=dict(kind.environment),
            require_sandbox=require_sandbox or kind.runs_code,
        ) as run:
            return _accept(run, kind, source, out, limits, require_sandbox, digest, int(request["seed"]))
    except OnnxspectError as error:
        if kind.name == "keras-h5" and "Keras" in error.message and "cannot load it" in error.message:
            raise _Legacy(error) from None
        raise


def _accept(
    run: GuardedRun,
    kind: Format,
    source: Path,
    out: Path,
    limits: ConvertLimits,
    require_sandbox: bool,
    digest: str,
    seed: int,
) -> Conversion:
    """Check what the child left, as any untrusted file is checked; then put it in place."""
    found = _facts(run)
    data = run.read("model.onnx", limits.onnx.file_bytes)
    shown = f"{run.shown}: the exported model"
    # Its external data, should it have any, is what the child wrote beside it, never a file of the output's folder.
    file = check_onnx(data, run.folder / "model.onnx", limits.onnx, shown)
    if file.external:
        data = _one_message(file, shown)
    file = replace(file, path=source)
    pairs = [(read_array(run, f"input_{i}.npy"), read_array(run, f"output_{i}.npy")) for i in range(found["pairs"])]
    name = _image_input(file, shown)
    with run_on(file, name, [images for images, _ in pairs], limits.onnx, require_sandbox=require_sandbox) as checked:
        outputs, report = checked
    parity = compare([logits for _, logits in pairs], outputs, found["tolerance"], seed, found["precision"])
    if not parity.difference <= parity.allowed:
        raise OnnxspectError(
            f"{run.shown}: the ONNX file that {found['exporter']} wrote does not compute what the framework computes: "
            f"outputs differ by {parity.difference:.3g}, {parity.allowed:.3g} is allowed",
            "export it with the framework's own tools",
        )
    warnings = [*found["warnings"], *report.warnings]
    if parity.difference >= 0.05 * parity.spread:
        warnings.append(
            f"the framework's outputs hardly vary over the inputs that were compared (by {parity.spread:.2g}), "
            "so their equality proves little"
        )
    made = Conversion(
        out=out,
        sidecar=sidecar_path(out),
        sha256=hashlib.sha256(data).hexdigest(),
        source_sha256=digest,
        format=kind,
        exporter=found["exporter"],
        versions=found["framework"],
        sandbox=run.sandbox,
        parity=parity,
        layout=found["layout"],
        value_range=found["range"],
        classes=found["classes"],
        sample_shape=found["sample_shape"],
        batch=found["batch"],
        warnings=tuple(warnings),
    )
    return _written(made, data, source, file)


def _copy_onnx(
    source: Path,
    out: Path,
    shape: tuple[int, ...],
    limits: ConvertLimits,
    require_sandbox: bool,
    digest: str,
    seed: int,
) -> tuple[Conversion | None, OnnxspectError | None]:
    """An ONNX file that runs as it is, copied (external data moved inside); or why it does not run, where an upgrade of
    its operator set may help."""
    file = read_onnx(source, limits.onnx)
    try:
        name = _image_input(file, printable(str(source), 200))
        shapes = {name: [1, *shape]} if shape else None
        report = probe(file, limits.onnx, input_shapes=shapes, require_sandbox=require_sandbox)
    except OnnxspectError as error:
        if file.opset < 7:  # older than onnxruntime promises to run
            return None, error
        raise
    untouched = not file.external and not file.warnings
    data = source.read_bytes() if untouched else _one_message(file, printable(str(source), 200))
    declared = report.inputs[0].shape or ()
    sizes = tuple(d if isinstance(d, int) else 0 for d in declared[1:])
    image = (sizes[0] in (1, 3, 4)) - (sizes[2] in (1, 3, 4)) if len(sizes) == 3 else 0
    made = Conversion(
        out=out,
        sidecar=sidecar_path(out),
        sha256=hashlib.sha256(data).hexdigest(),
        source_sha256=digest,
        format=FORMATS["onnx"],
        exporter="copied" if untouched else "copied, repaired",
        versions={},
        sandbox=report.sandbox,
        parity=Parity(math.nan, math.nan, math.nan, (), math.nan, math.nan, seed),
        layout={1: "NCHW", -1: "NHWC", 0: "flat" if len(sizes) == 1 else ""}[image],
        value_range=None,
        classes=(),
        sample_shape=sizes,
        batch=declared[0] if declared and isinstance(declared[0], int) else 0,
        warnings=report.warnings,
    )
    return _written(made, data, source, file), None


def compare(
    references: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    tolerance: float | None,
    seed: int,
    precision: str = "float32",
) -> Parity:
    """Two runtimes' outputs on the same inputs.

    Args:
        references: the framework's, each ``(batch, classes)``.
        outputs: onnxruntime's, the same shapes.
        tolerance: largest absolute difference that is allowed; from the table of tolerances if None.
        seed: that made the inputs; passed on.
        precision: row of `parity_table.TOLERANCES` that counts where `tolerance` is None.
    """
    difference = 0.0
    same = total = 0
    for reference, found in zip(references, outputs, strict=True):
        if reference.shape != found.shape:
            raise OnnxspectError(
                f"the exported model gives shape {list(found.shape)}, the framework {list(reference.shape)}",
                "export it with the framework's own tools",
            )
        gap = np.abs(reference.astype(np.float64) - found.astype(np.float64))
        difference = math.inf if np.isnan(gap).any() else max(difference, float(gap.max(initial=0.0)))
        rows = len(reference)
        same += int((reference.reshape(rows, -1).argmax(1) == found.reshape(rows, -1).argmax(1)).sum())
        total += rows
    everything = np.concatenate([r.ravel() for r in references]) if references else np.zeros(0)
    return Parity(
        difference=difference,
        allowed=tolerance or allowed_difference(everything, precision),
        scale=float(np.abs(everything).max(initial=0.0)),
        batches=tuple(len(r) for r in references),
        spread=float(np.ptp(np.concatenate([r.reshape(len(r), -1) for r in references]), axis=0).max(initial=0.0)),
        same_class=same / max(total, 1),
        seed=seed,
    )


def _one_message(file: OnnxFile, shown: str) -> bytes:
    """The model with all its data in one file.

    Raises:
        OnnxspectError: it is too large for that.
    """
    try:
        return bytes(file.proto.SerializeToString())
    except EncodeError:
        raise OnnxspectError(
            f"{shown}: too large for one ONNX file, which ends at 2 GiB",
            "an ONNX model with external data needs no conversion: scan and patch take it as it is",
        ) from None


def _facts(run: GuardedRun) -> dict[str, Any]:
    """The child's report, with every value of the type it must have."""
    found = run.result
    try:
        low_high = found["range"]
        tolerance = found["tolerance"]
        classes = tuple(printable(str(c), 200) for c in found["classes"][:_MAX_CLASSES])
        layout = str(found["layout"])
        return {
            "exporter": printable(str(found["exporter"]), 200),
            "framework": {printable(str(k), 40): printable(str(v), 40) for k, v in dict(found["framework"]).items()},
            "layout": layout if layout in ("NCHW", "NHWC", "flat") else "",
            "range": (float(low_high[0]), float(low_high[1])) if low_high else None,
            "classes": classes,
            "batch": max(int(found["batch"]), 0),
            "sample_shape": tuple(int(d) for d in found["sample_shape"][:8]),
            # What the file's quantisation allows is a fact that only the child can read; a child that lies about it
            # deceives about a file that it could as well have read wrongly.
            "tolerance": None if tolerance is None else abs(float(tolerance)),
            "precision": found["precision"] if found["precision"] in TOLERANCES else "float32",
            "pairs": min(max(int(found["pairs"]), 1), 4),
            "warnings": [printable(str(w), 400) for w in found["warnings"][:20]],
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise OnnxspectError(
            f"{run.shown}: the child left no readable result ({type(error).__name__})",
            "this is a fault of onnxspect; please report it",
        ) from None


def _image_input(file: OnnxFile, shown: str) -> str:
    given = {t.name for t in file.proto.graph.initializer}
    names = [i.name for i in file.proto.graph.input if i.name not in given]
    if len(names) != 1:
        listed = ", ".join(printable(n, 40) for n in names[:5])
        raise OnnxspectError(
            f"{shown} has {len(names)} inputs ({listed}); one image is expected",
            "an ONNX file needs no conversion: scan and info take it with --bind NAME=VALUE for what is no image",
        )
    return names[0]


def _format(source: Path, framework: str | None, shown: str) -> Format:
    if framework is None:
        return detect(source)
    brought = plugins.names(plugins.SOURCES)
    if framework not in FORMATS and framework not in brought:
        raise OnnxspectError(f"{printable(framework)} is not a format", f"one of {', '.join((*FORMATS, *brought))}")
    if not source.exists():
        raise OnnxspectError(f"{shown}: no such file", "give the path of a model file, or of a SavedModel's folder")
    return FORMATS[framework] if framework in FORMATS else brought_in(framework)


def _shape(given: Sequence[int] | None) -> tuple[int, ...]:
    shape = tuple(int(d) for d in given or ())
    if any(d < 1 for d in shape) or math.prod(shape) > 1 << 28:
        raise OnnxspectError(f"input shape {list(shape)} is of no image", "sizes of one sample, such as 3,224,224")
    return shape


def _search_path(given: Sequence[Path] | None) -> list[Path]:
    return [Path(p).resolve() for p in (given if given is not None else [Path.cwd()])]


def _require_place(out: Path, source: Path) -> None:
    shown = printable(str(out), 200)
    if not out.parent.is_dir():
        raise OnnxspectError(f"{shown}: its folder does not exist", "make the folder first")
    if out.exists() and not out.is_file():
        raise OnnxspectError(f"{shown}: exists and is not a file", "give the name of a file with -o")
    if out.exists() and source.exists() and out.samefile(source):
        raise OnnxspectError(f"{shown}: is the source itself", "give another name with -o")


def _written(made: Conversion, data: bytes, source: Path, file: OnnxFile) -> Conversion:
    """Put the model and its sidecar in place, each at once or not at all; the conversion with its facts."""
    facts = sidecar(made, printable(source.name, 200), file.opset)
    write_whole(made.out, data)
    write_whole(made.sidecar, sidecar_text(facts).encode())
    return replace(made, facts=facts)
