"""A certificate from files: what `onnxspect certify` calls. It gathers features, fits the set, and bounds every fraction.

What is certified: the training loss (hinge, averaged over the n clean samples) that poison of a given share can force
on a linear classifier, two classes at a time, when every point that the feasible set excludes is removed first. What
is not: backdoors (the bound is on the loss over all samples, not on one trigger), deep networks end to end (with a
tap, its layers are taken as given), data sets without a clean sample to fit the set and the loss on, and attacks that change
clean samples instead of adding points.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from onnxspect.converters.stages import stage
from onnxspect.engine.certification.data_dependent import Bound, certify_data_dependent
from onnxspect.engine.certification.feasible import FeasibleSet, fit
from onnxspect.engine.certification.fixed import Certificate, certify_fixed
from onnxspect.engine.certification.hinge import hinge, train, with_bias
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.case import open_training_case
from onnxspect.engine.readers import npz
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.report.pictures import png
from onnxspect.engine.report.progress import watched
from onnxspect.engine.run import RunContext
from onnxspect.engine.store import made_folder, write_atomically
from onnxspect.engine.subject.activations import TrainingSet, activations, open_training_set, penultimate
from onnxspect.engine.subject.opening import Model
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.subject import InputSpec

CENTROIDS = ("oracle", "data")
#: Poison fractions by default: Steinhardt et al. (2017) shows 0 to 0.3.
FRACTIONS = (0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3)
#: Radii of the parameter ball that are tried when none is given.
_RADII = tuple(0.25 * 2**i for i in range(8))
CERTIFIES = (
    "the hinge loss, averaged over the clean samples, of a linear classifier that is trained on clean and poisoned points "
    "inside the feasible set, against any attack that adds such points"
)
NOT_CERTIFIED = (
    "backdoors and other attacks aimed at single inputs: the bound is on the loss as a whole",
    "deep networks end to end: with a tap, the layers before it are taken as given",
    "training sets without clean samples: the set's sizes and the loss come from samples taken to be clean",
    "attacks that change clean samples instead of adding points",
    "losses that are not convex",
)


@dataclass(frozen=True)
class Features:
    """Two classes as rows.

    Attributes:
        rows: float32 ``(n, d)``.
        signs: -1 for the first class, 1 for the second ``(n,)``.
        index: position of each row in the file ``(n,)``.
        source: in words.
        sha256: of rows and signs.
    """

    rows: np.ndarray
    signs: np.ndarray
    index: np.ndarray
    source: str
    sha256: str


@dataclass(frozen=True)
class Certified:
    """What `certify` gives: the report, and the folder it lies in."""

    report: dict[str, Any]
    folder: Path


@judging()
def certify(
    data: str | Path,
    classes: tuple[int, int],
    out: str | Path,
    model: Model | None = None,
    tap: str | None = None,
    kind: str = "both",
    centroids: str = "oracle",
    keep: float = 0.9,
    integrity: str = "none",
    fractions: Sequence[float] = FRACTIONS,
    radius: float | None = None,
    limit: int | None = None,
    suspect: str | Path | None = None,
    spec: InputSpec | None = None,
    run: RunContext | None = None,
) -> Certified:
    """Bound what poison can do to a sanitised linear classifier, and find an attack that comes near the bound.

    Args:
        data: clean samples: npz with `images` (pixels are the features) or `features`, and `labels`; or a folder of
            images by class.
        classes: the two class indices.
        out: folder for certificate.json, certificate.png and attack.npz; and for the sanitised set.
        model, tap: take the value at this tap of the model as features; its penultimate layer if no tap is named.
        kind: "sphere", "slab" or "both".
        centroids: "oracle": around the clean means; "data": around the means of clean and poison together.
        keep: share of each clean class that every constraint keeps.
        integrity: "none", "box" ([0, 1]) or "counts" (non-negative integers).
        fractions: poison as shares of the clean samples, 0 to 1.
        radius: of the ball of parameters; by default the smallest whose loss on a fifth of the samples kept apart is within
            one standard error of the best.
        limit: use at most so many samples of each class, drawn at random.
        suspect: a training set to sanitise with the set: kept.npz and removed.csv are written.
        spec: the model's preprocessing, where a model is given.
        run: seed, device, observer.

    Raises:
        OnnxspectError: what does not fit, with a hint.
    """
    run = run or watched()
    if centroids not in CENTROIDS:
        raise OnnxspectError(f"unknown centroids {centroids!r}", f"one of {', '.join(CENTROIDS)}")
    if not fractions or any(not 0 <= f <= 1 for f in fractions):
        raise OnnxspectError("poison fractions must lie in 0..1", "for example 0,0.05,0.1,0.3")
    if radius is not None and not radius > 0:
        raise OnnxspectError(f"the radius of the parameters is {radius}, not above 0", "a number above 0")
    if centroids == "data" and integrity != "none":
        raise OnnxspectError("an integrity constraint is certified with oracle centroids only", "--integrity none")
    if tap and model is None:
        raise OnnxspectError("--tap is a tap of a model, and there is none", "--model MODEL")
    folder = made_folder(Path(out))
    stage("reading the samples")
    found = read_features(Path(data), classes, model, tap, spec, folder, run)
    if limit is not None:
        found = _part(found, limit, run)
    stage("fitting the sanitiser")
    feasible = fit(found.rows, found.signs, kind, keep, integrity)
    chosen = radius if radius is not None else choose_radius(found.rows, found.signs, run)
    rows = _all(found, feasible, centroids, sorted({float(f) for f in fractions}), chosen, run)
    kept = feasible.contains(found.rows, found.signs)
    report: dict[str, Any] = {
        "features": {"source": found.source, "sha256": found.sha256, "dimensions": found.rows.shape[1]},
        "classes": list(classes),
        "samples": [int((found.signs == s).sum()) for s in (-1, 1)],
        "set": {
            "kind": kind,
            "centroids": centroids,
            "keep": keep,
            "integrity": integrity,
            "radii": [float(r) if np.isfinite(r) else None for r in feasible.radii],
            "slabs": [float(s) if np.isfinite(s) else None for s in feasible.slabs],
            "clean_kept": float(kept.mean()),
        },
        "parameter_radius": chosen,
        "certificates": [_row(c, feasible, found) for c in rows],
        "certifies": CERTIFIES,
        "does_not_certify": list(NOT_CERTIFIED),
        "seed": run.seed,
    }
    largest = rows[-1].attack
    if suspect is not None:
        other = read_features(Path(suspect), classes, model, tap, spec, folder, run)
        if other.rows.shape[1] != feasible.centres.shape[1]:
            raise OnnxspectError(
                f"{suspect}: {other.rows.shape[1]} features, not {feasible.centres.shape[1]}",
                "both sets must hold the same features",
            )
        report["sanitised"] = _sanitise(other, feasible, centroids, classes, Path(suspect), folder)
    _write_arrays(folder / "attack.npz", features=largest.features, labels=_labels(largest.signs, classes))
    write_atomically(folder / "certificate.json", to_json(report).encode())
    write_atomically(folder / "certificate.png", png(plot(report)))
    return Certified(report, folder)


def _all(
    found: Features, feasible: FeasibleSet, centroids: str, fractions: Sequence[float], radius: float, run: RunContext
) -> list[Certificate | Bound]:
    run.observer.start("certify", len(fractions))
    rows: list[Certificate | Bound] = []
    for epsilon in fractions:
        rng = run.numpy_generator("certify", centroids, epsilon)
        work = certify_fixed if centroids == "oracle" else certify_data_dependent
        done: Certificate | Bound = work(found.rows, found.signs, feasible, epsilon, radius, rng)
        rows.append(done)
        run.observer.advance("certify", f"{epsilon:.1%}: at most {done.upper:.4f}, attained {done.attack_loss:.4f}")
    run.observer.finish("certify")
    return rows


def read_features(
    path: Path,
    classes: tuple[int, int],
    model: Model | None,
    tap: str | None,
    spec: InputSpec | None,
    folder: Path,
    run: RunContext,
) -> Features:
    """The samples of two classes as rows: pixels, the user's own `features`, or the value at a tap.

    Raises:
        OnnxspectError: not readable, a class is missing, or values are not finite.
    """
    if classes[0] == classes[1]:
        raise OnnxspectError(f"class {classes[0]} is given twice", "two different classes: --classes 1 7")
    matrix = _own_features(path)
    if matrix is not None and model is not None:
        raise OnnxspectError(f"{path}: holds features, and a model takes images", "leave --model out")
    if matrix is not None:
        everything, labels = matrix
        index = np.flatnonzero(np.isin(labels, classes))
        rows, source = everything[index].astype(np.float32), f"{path}: features"
    else:
        case = open_training_case(model, path, spec, run) if model is not None else None
        training = case.samples if case is not None else open_training_set(path)
        labels = training.labels
        index = np.flatnonzero(np.isin(labels, classes))
        if case is not None:
            name = tap or penultimate(case.subject)
            taken = activations(case.subject, training, [name], folder / "cache", run)
            rows = np.asarray(taken[name][index], np.float32)
            source = f"{path}: tap {name} of {case.subject.name}"
        else:
            rows, source = _pixels(training, index), f"{path}: pixels"
    signs = np.where(labels[index] == classes[1], 1, -1)
    for sign, label in zip((-1, 1), classes, strict=True):
        if not (signs == sign).any():
            raise OnnxspectError(f"{path}: no samples of class {label}", "--classes names two classes that the set has")
    rows = rows.reshape(len(rows), -1)
    if not np.isfinite(rows).all():
        raise OnnxspectError(f"{path}: features hold NaN or infinity", "clean them first: np.isfinite(features).all()")
    known = hashlib.sha256(repr(rows.shape).encode() + np.ascontiguousarray(rows).tobytes() + signs.tobytes())
    return Features(rows, signs, index, source, known.hexdigest())


def _pixels(training: TrainingSet, index: np.ndarray) -> np.ndarray:
    wanted = np.zeros(len(training.labels), bool)
    wanted[index] = True
    return np.concatenate([images[wanted[start : start + len(images)]] for start, images in training.batches()])


def _own_features(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(features ``(n, d)``, labels ``(n,)``) of an npz that holds a matrix; None where it holds images."""
    if not path.is_file():
        return None
    found = npz.arrays(path, str(path), ("features", "labels"))
    if "features" not in found:
        return None
    if "labels" not in found:
        raise OnnxspectError(
            f"{path}: has `features` but no `labels`", "save both into it: np.savez(path, features=x, labels=y)"
        )
    rows, labels = found["features"], found["labels"]
    if rows.ndim != 2 or rows.dtype.kind not in "uif":
        raise OnnxspectError(
            f"{path}: features are {rows.dtype} of shape {rows.shape}, not numbers (n, d)",
            "one row a sample: an array (samples, features) of numbers",
        )
    if labels.shape != (len(rows),) or labels.dtype.kind not in "ui":
        raise OnnxspectError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}, not integers ({len(rows)},)",
            "one class index a sample, from 0",
        )
    return rows, labels


def choose_radius(rows: np.ndarray, signs: np.ndarray, run: RunContext) -> float:
    """The smallest radius whose loss on a fifth kept apart is within one standard error of the best."""
    order = run.numpy_generator("certify", "radius").permutation(len(rows))
    apart, rest = order[: max(1, len(rows) // 5)], order[max(1, len(rows) // 5) :]
    biased = with_bias(rows)
    scale = float(np.median(np.linalg.norm(rows, axis=1))) or 1.0
    losses, start = [], None
    for radius in _RADII:
        share = np.full(len(rest), 1 / len(rest))
        # In units of the features: a radius of 10 / (typical norm) gives margins of order ten.
        trained = train(biased[rest], signs[rest], share, 10 * radius / scale, 0.02, start)
        losses.append(hinge(trained.theta, biased[apart], signs[apart]))
        start = trained.theta
    means = [float(x.mean()) for x in losses]
    best = int(np.argmin(means))
    limit = means[best] + float(losses[best].std()) / np.sqrt(len(apart))
    return float(10 * _RADII[next(i for i, m in enumerate(means) if m <= limit)] / scale)


def _part(found: Features, limit: int, run: RunContext) -> Features:
    rng = run.numpy_generator("certify", "part")
    rows = np.sort(np.concatenate([rng.permutation(np.flatnonzero(found.signs == s))[:limit] for s in (-1, 1)]))
    return Features(found.rows[rows], found.signs[rows], found.index[rows], found.source, found.sha256)


def _labels(signs: np.ndarray, classes: tuple[int, int]) -> np.ndarray:
    return np.where(signs == 1, classes[1], classes[0])


def _row(done: Certificate | Bound, feasible: FeasibleSet, found: Features) -> dict[str, Any]:
    error = float((found.signs * (with_bias(found.rows) @ done.attack.trained.theta) <= 0).mean())
    common = {
        "epsilon": done.epsilon,
        "poison_points": len(done.attack.signs),
        "upper_bound": done.upper,
        "attack_loss": done.attack_loss,
        "attack_loss_clean_part": done.clean_loss,
        "attack_error_on_clean": error,
        "gap": done.gap,
        "steps": done.steps,
    }
    if isinstance(done, Certificate):
        regret = {"regret_per_step": done.regret, "regret_bound_per_step": done.regret_bound}
        inside = bool(feasible.contains(done.attack.features, done.attack.signs).all())
        return common | regret | {"attack_inside_the_set": inside}
    return common | {"upper_bound_any_split": done.any_split}


def _sanitise(
    suspect: Features, feasible: FeasibleSet, centroids: str, classes: tuple[int, int], path: Path, folder: Path
) -> dict[str, Any]:
    """Keep what lies inside; with data centroids, inside the set around the suspect set's own means."""
    if centroids == "data":
        centres = np.stack([suspect.rows[suspect.signs == s].mean(0, dtype=np.float64) for s in (-1, 1)])
        feasible = feasible.at(centres)
    inside = feasible.contains(suspect.rows, suspect.signs)
    excess = feasible.excess(suspect.rows, suspect.signs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "score", "decision", "detector"])
    for i, sign, score, kept in zip(suspect.index, suspect.signs, excess, inside, strict=True):
        writer.writerow([int(i), classes[int(sign == 1)], f"{score:.6g}", "keep" if kept else "remove", feasible.kind])
    write_atomically(folder / "sanitised.csv", text.getvalue().encode())
    _write_arrays(folder / "sanitised.npz", index=suspect.index[inside], labels=_labels(suspect.signs[inside], classes))
    return {"path": str(path), "samples": len(inside), "removed": int((~inside).sum())}


def _write_arrays(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def plot(report: dict[str, Any]) -> Figure:
    """Bound, attack and the regret bound between them, over the poison fraction."""
    rows = report["certificates"]
    x = [r["epsilon"] for r in rows]
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    upper, attack = ([r[k] for r in rows] for k in ("upper_bound", "attack_loss"))
    axes.plot(x, upper, "o-", color="#2c3e50", label="upper bound U*")
    axes.plot(x, attack, "s--", color="#c0392b", label="attack found: training loss")
    axes.plot(x, [r["attack_loss_clean_part"] for r in rows], ":", color="#c0392b", label="its loss on clean samples")
    axes.fill_between(x, attack, upper, color="#7f8c8d", alpha=0.25, label="gap")
    if all("regret_per_step" in r for r in rows):
        most = [a + r["regret_per_step"] for a, r in zip(attack, rows, strict=True)]
        axes.plot(x, most, "-", color="#7f8c8d", linewidth=1, label="attack + measured regret (Prop. 1)")
    axes.set_xlabel("poison, as a share of the clean samples")
    axes.set_ylabel("hinge loss / clean samples")
    axes.set_ylim(bottom=0)
    described = report["set"]
    axes.set_title(f"{described['kind']}, {described['centroids']} centroids, classes {report['classes']}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
