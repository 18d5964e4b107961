"""A report as it is found in a run folder: untrusted text until its shape and its digest are checked.

`checked` lets nothing through that a reader could trip over: every field that any reader uses has the type and range that
docs/report.schema.json gives it. Fields that it does not know are left alone, so that reports of earlier and later versions are
read as well; what they say is covered by the digest like everything else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

#: Longest report that is read, in bytes: a thousand classes and five detectors take three million.
MOST_BYTES = 256 << 20
_SHA256 = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Count = Annotated[int, Meta(ge=0, le=2**53)]
#: What a clock says, and so differs from run to run.
_TIMES = ("seconds", "finished")
_Text = Annotated[str, Meta(min_length=1)]
_Number = Annotated[float, Meta(ge=-1e9, le=1e9)]
_Size = Annotated[int, Meta(ge=1, le=1 << 20)]
_Positive = Annotated[float, Meta(gt=0, le=1e9)]


class _Tool(msgspec.Struct):
    name: Literal["onnxspect"]
    version: _Text


class _Input(msgspec.Struct):
    shape: Annotated[list[Annotated[int, Meta(ge=1, le=1 << 20)]], Meta(min_length=3, max_length=3)]


class _Model(msgspec.Struct):
    path: str
    sha256: _SHA256
    classes: Annotated[int, Meta(ge=2, le=1 << 24)]
    input: _Input


class _Data(msgspec.Struct):
    path: str
    sha256: _SHA256
    samples: _Count


class _Chosen(msgspec.Struct):
    name: str
    layout: str
    channel_order: str
    scale: _Positive
    mean: Annotated[list[_Number], Meta(min_length=1, max_length=4)]
    std: Annotated[list[_Positive], Meta(min_length=1, max_length=4)]


class _Preprocessing(msgspec.Struct):
    chosen: _Chosen
    why: str
    clean_accuracy: _Share


class _Class(msgspec.Struct):
    index: _Count
    name: str
    p_value: _Share
    log10_p: Annotated[float, Meta(le=0)]
    p_values: dict[str, _Share]
    statistic: dict[str, float | None]
    reference: dict[str, float | None]
    anomaly: dict[str, float | None]
    mad_index: dict[str, float | None]
    held_out_success: dict[str, _Share | None]
    kind: str


class _Budget(msgspec.Struct):
    units: _Count
    gradient_steps: _Count
    found: _Count
    converged: _Count


class _Traits(msgspec.Struct):
    family: Literal["replaced", "added", "moved", "sample-wise", "samples", "graph", "open", "any input", "other"]
    references: bool
    training_set: bool
    convicts: bool
    leads_to_target: bool
    validated: bool
    smallest: bool
    tested: bool = False


class _Calibration(msgspec.Struct):
    bank: str
    models: _Count
    covered: bool
    note: str
    score: Annotated[float, Meta(ge=0)]
    p_value: _Share | None
    interval: Annotated[list[_Share], Meta(min_length=2, max_length=2)] | None
    prior: _Share
    p_backdoored: _Share | None
    suspicion: float = 0.0  # early reports have none


class _Ran(msgspec.Struct, tag_field="status", tag="ran"):
    name: _Text
    statistic: str
    judged: str
    settings: dict[str, Any]
    budget: _Budget
    evidence: str
    seconds: Annotated[float, Meta(ge=0)]
    traits: _Traits | None = None


class _Skipped(msgspec.Struct, tag_field="status", tag="skipped"):
    name: _Text
    reason: str


class _Box(msgspec.Struct):
    top: _Count
    left: _Count
    height: _Size
    width: _Size


class _Found(msgspec.Struct):
    target: _Count = msgspec.field(name="class")
    detector: str
    form: Literal["mask", "delta", "displacement", "inner", "none"]
    source: _Count | None
    shared: bool
    held_out: _Count
    held_out_success: _Share | None
    size: Annotated[list[_Size], Meta(min_length=2, max_length=2)] | None
    box: _Box | None
    changed: _Share | None


class _Report(msgspec.Struct):
    schema: Annotated[str, Meta(pattern=r"\Aonnxspect-report/[0-9]{1,3}\Z")]
    tool: _Tool
    model: _Model
    data: _Data
    preprocessing: _Preprocessing
    verdict: Literal["clean", "backdoored", "inconclusive"]
    targets: list[_Count]
    p_value: _Share
    reasons: list[str]
    classes: list[_Class]
    detectors: list[_Ran | _Skipped]
    limits: list[str]
    preset: str
    device: str
    seed: int
    seconds: Annotated[float, Meta(ge=0)]
    digest: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    calibration: _Calibration | None = None
    # Reports of version 0.1.0 have none of these.
    found: list[_Found] = []
    hidden: list[str] = []
    notes: list[str] = []
    finished: Annotated[str, Meta(pattern=r"\A[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}Z\Z")] | None = None


def checked(text: str) -> dict[str, Any]:
    """The report that a text holds.

    Raises:
        ValueError: it is no report, or its digest is another's: one line that says where.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"a report of {len(text)} characters")
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    try:
        report = msgspec.convert(document, _Report)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error) or "nested too deeply") from None
    names = [d.name for d in report.detectors]
    if len(set(names)) != len(names):
        raise ValueError("a detector is listed twice")
    if report.classes and len(report.classes) != report.model.classes:
        raise ValueError(f"{len(report.classes)} rows for {report.model.classes} classes")
    if [c.index for c in report.classes] != list(range(len(report.classes))):
        raise ValueError("the rows are not those of the classes in their order")
    if any(k >= len(report.classes) for k in report.targets):
        raise ValueError("a target that is no class")
    if any(f.target not in report.targets or (f.source or 0) >= len(report.classes) for f in report.found):
        raise ValueError("a trigger to a class that is not named, or from one that there is not")
    if any((f.box is None) != (f.size is None) for f in report.found):
        raise ValueError("a trigger's place without the image's size")
    if (report.verdict == "backdoored") != bool(report.targets):
        raise ValueError(f"the verdict {report.verdict} with {len(report.targets)} targets")
    if report.digest not in (digest(document), _with_paths(document)):
        raise ValueError("its digest is not that of its content: it was changed after it was written")
    return dict(document)


def digest(report: dict[str, Any]) -> str:
    """SHA-256 of a document without `seconds`, `finished` and `digest`, at any depth, and without its own signature; of a `path`, its last
    name alone counts.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    return _sha256(_timeless({k: v for k, v in report.items() if k != "signature"}))


def _with_paths(report: dict[str, Any]) -> str:
    """The digest as it was until version 0.1.0: it depended on how a path was spelled."""
    return _sha256(_timeless(report, whole_paths=True))


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _timeless(value: Any, whole_paths: bool = False) -> Any:
    if isinstance(value, dict):
        kept = {k: _timeless(v, whole_paths) for k, v in value.items() if k not in _TIMES and k != "digest"}
        if not whole_paths and isinstance(kept.get("path"), str):
            kept["path"] = PurePath(kept["path"]).name
        return kept
    return [_timeless(v, whole_paths) for v in value] if isinstance(value, list) else value
