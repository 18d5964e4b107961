"""What a cleansing leaves on disk: scores by sample, the kept samples, a contact sheet of the most suspicious ones.

Every file is written whole or not at all, and none of them is held in memory with all its images.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from onnxspect.converters.text import visible
from onnxspect.converters.whole import whole
from onnxspect.engine.cleansing.scores import Scores
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.activations import TrainingSet

#: Samples on the contact sheet.
SHOWN = 40
#: Marks that turn the direction of writing (Unicode Standard Annex 9): a name that holds one reads as another.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
#: How every method's scores are to be read; they compare within a class only.
DIRECTION = "higher is more suspicious"


def write_scores(scores: Iterable[Scores], training: TrainingSet, folder: Path) -> None:
    """scores.csv, and scores.parquet where pyarrow is installed: a row for every sample that a method scored, and no others."""
    columns: dict[str, list[Any]] = {k: [] for k in ("index", "label", "score", "decision", "detector", "direction")}
    for one in scores:
        rows = np.flatnonzero(~np.isnan(one.score))
        columns["index"] += rows.tolist()
        columns["label"] += training.labels[rows].tolist()
        columns["score"] += one.score[rows].tolist()
        columns["decision"] += ["remove" if r else "keep" for r in one.removed[rows]]
        columns["detector"] += [one.detector] * len(rows)
        columns["direction"] += [DIRECTION] * len(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    write_atomically(folder / "scores.csv", text.getvalue().encode())
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    write_atomically(folder / "scores.parquet", buffer.getvalue())


def write_kept(training: TrainingSet, keep: np.ndarray, folder: Path) -> Path:
    """kept.npz (images as they were stored, labels, index in the original), or kept.txt with the paths of a folder's files.

    Written whole or not at all; images pass through one batch at a time. A name that would make lines of its own, or that a terminal
    would obey (`unlisted`), stands there escaped: no file has that name, so that nothing is read for it.
    """
    if training.files:
        kept = [name for name, wanted in zip(training.files, keep, strict=True) if wanted]
        lines = [visible(name) if _has_controls(name) else name for name in kept]
        write_atomically(folder / "kept.txt", os.fsencode("\n".join(lines) + "\n" if lines else ""))
        return folder / "kept.txt"
    with whole(folder / "kept.npz") as part, zipfile.ZipFile(part.file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as stream:
            _stream_array(stream, training.raw(keep), int(keep.sum()))
        others = {"labels": training.labels[keep], "index": np.flatnonzero(keep)}
        if training.names:
            others["classes"] = np.array(training.names)
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
    return folder / "kept.npz"


def unlisted(training: TrainingSet, keep: np.ndarray) -> list[str]:
    """The kept files of a folder that kept.txt cannot name: those with control characters or line ends in their names."""
    return [name for name, kept in zip(training.files or (), keep, strict=False) if kept and _has_controls(name)]


def _has_controls(name: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _TURNING for c in name)


def _stream_array(stream: Any, parts: Iterator[np.ndarray], count: int) -> None:
    begun = False
    for part in parts:
        if not begun:
            described = {"descr": part.dtype.str, "fortran_order": False, "shape": (count, *part.shape[1:])}
            np.lib.format.write_array_header_1_0(stream, described)
            begun = True
        stream.write(np.ascontiguousarray(part).tobytes())


def contact_sheet(scores: Scores, training: TrainingSet) -> Figure:
    """The removed samples with the highest scores; where nothing is removed, the highest scores."""
    order = np.lexsort((np.arange(len(training)), -np.nan_to_num(scores.score, nan=-np.inf), ~scores.removed))
    chosen = order[:SHOWN]
    pictures = training.take(chosen)
    position = {int(i): k for k, i in enumerate(np.unique(chosen))}
    columns = min(10, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(1.1 * columns, 1.45 * rows + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, chosen, strict=False):
        pixels = pictures.images[position[int(i)]].transpose(1, 2, 0)
        grey = pixels.shape[-1] == 1
        axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1)
        label = int(training.labels[i])
        named = training.names[label][:10] if label < len(training.names) else str(label)
        axes.set_title(f"#{i}\n{visible(named)}", fontsize=7, color="#c0392b" if scores.removed[i] else "black")
    figure.suptitle(f"{scores.detector}: {int(scores.removed.sum())} of {len(training)} removed", fontsize=9)
    return figure
