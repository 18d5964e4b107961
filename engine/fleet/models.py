"""Which models are meant: paths, folders, patterns and lists of them, each with the options of its scan.

A list (manifest) is TOML, CSV or JSON lines, told by its ending. Of each model it names the path, relative to its own folder, and any
of `scan`'s options that say what is looked at and how; what it leaves out is taken from the command line:

    data = "clean.npz"                     path,data,preset
    [[model]]                              a.onnx,clean.npz,quick
    path = "models/*.onnx"                 b.onnx,other/,
    [[model]]
    path = "b.onnx"                        {"path": "a.onnx", "data": "clean.npz", "resize": "crop"}
    data = "other/"
"""

from __future__ import annotations

import csv
import glob
import io
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sandbox.safe_open import read_regular
from onnxspect.converters.sandbox.walk import walk
from onnxspect.converters.text import printable

#: How files of models end that a scan opens by itself; what else lies in a folder is not taken for a model.
MODELS = (".onnx", ".keras", ".h5", ".hdf5", ".tflite", ".pt2")
LISTS = (".toml", ".csv", ".jsonl", ".ndjson")
#: What makes a folder a model itself: a SavedModel, an Orbax checkpoint (which `scan` refuses with the way to convert it).
_OF_A_MODEL = ("saved_model.pb", "saved_model.pbtxt", "_METADATA", "_CHECKPOINT_METADATA")
#: What makes it a run, in which models are copies.
_RUN = "run.sqlite"
#: Options that a list may give, as on the command line without the dashes; those of PATHS count from the list's folder.
PATHS = frozenset({"data", "train", "classes"})
OPTIONS = PATHS | {
    *("preset", "budget", "detector", "tap", "perturb-at", "prior", "output", "bind", "resize", "crop"),
    *("scale", "mean", "std", "channel-order", "device", "seed", "max-memory", "max-seconds"),
}
_MANY = frozenset({"detector", "tap", "bind"})
#: A list, in bytes at most.
_MOST = 256 << 20


@dataclass(frozen=True)
class Wanted:
    """One model to be scanned.

    Attributes:
        path: of the model.
        options: of its scan, name (without dashes) -> values in order, or () for a flag; without those of the command line.
    """

    path: Path
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()


def is_many(given: Sequence[str]) -> bool:
    """Whether these arguments mean more than one model, or may: several, a folder that is none, a pattern, or a list."""
    if len(given) != 1:
        return len(given) > 1
    path = Path(given[0])
    if not is_there(given[0]):
        return glob.has_magic(given[0])
    if path.is_dir():
        return not _is_model(path)
    return path.is_file() and path.suffix.lower() in LISTS


def found(given: Iterable[str]) -> list[Wanted]:
    """All models that are meant, each once for the same options, in the order in which they were named.

    Raises:
        OnnxspectError: an argument names none, or a list is not one.
    """
    models: dict[Wanted, None] = {}
    for text in given:
        path = Path(text)
        listed = path.suffix.lower() in LISTS and is_there(text) and path.is_file()
        models |= dict.fromkeys(_of_list(path) if listed else map(Wanted, _of_path(text)))
    return list(models)


def _of_path(text: str) -> list[Path]:
    """The models of a path, a folder or a pattern."""
    path, there = Path(text), is_there(text)
    if there and path.is_dir():
        inside = _in_folder(path)
        if not inside:
            raise OnnxspectError(
                f"{printable(text, 200)}: no model in this folder",
                f"files are looked for that end in {', '.join(MODELS)}",
            )
        return inside
    if there or not glob.has_magic(text):
        return [path]  # one that is not there is a row that says so
    matching = [Path(p) for p in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207  # of any folder
    inside = [m for p in matching for m in (_in_folder(p) if p.is_dir() else [p])]
    if not inside:
        raise OnnxspectError(
            f"{printable(text, 200)}: nothing matches this pattern", "** stands for folders of any depth, * for a name"
        )
    return inside


def _in_folder(folder: Path) -> list[Path]:
    """The models beneath a folder, or itself; hidden ones and links are left out."""
    if _is_model(folder):
        return [folder]
    models: list[Path] = []
    for root, folders, names in walk(folder):
        here = Path(root)
        own = [f for f in folders if _is_model(here / f)]
        other = (f for f in folders if not f.startswith(".") and f not in own)
        folders[:] = sorted(f for f in other if not (here / f / _RUN).exists())
        models += [here / f for f in own]
        models += [
            here / n
            for n in names
            if n.lower().endswith(MODELS) and not n.startswith(".") and not (here / n).is_symlink()
        ]
    return sorted(models)


def _is_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OF_A_MODEL)


def is_there(text: str) -> bool:
    """Whether a path is there; one that no file could have is not."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _of_list(path: Path) -> list[Wanted]:
    shown = printable(str(path), 200)
    try:
        text = read_regular(path, _MOST).data.decode("utf-8-sig")
        rows = _rows(path.suffix.lower(), text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError, csv.Error, RecursionError) as error:
        raise OnnxspectError(f"{shown}: cannot be read as a list ({printable(str(error), 200)})", _HINT) from error
    models: list[Wanted] = []
    for i, row in enumerate(rows):
        models += _of_row(row, path.parent, f"{shown}: model {i + 1}")
    if not models:
        raise OnnxspectError(f"{shown}: names no model", _HINT)
    return models


_HINT = "docs/many-models.md shows one of each form"


def _rows(form: str, text: str) -> list[Mapping[str, Any]]:
    """One mapping a model.

    Raises:
        ValueError: it is of another form.
    """
    if form == ".csv":
        return [{k: v for k, v in row.items() if v not in (None, "")} for row in csv.DictReader(io.StringIO(text))]
    if form == ".toml":
        document = tomllib.loads(text)
        rows = document.pop("model", [])
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise ValueError("model is no list of tables: write [[model]]")
        return [{**document, **row} for row in rows]
    parsed = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in parsed):
        raise ValueError("a line that is no object")
    return parsed


def _of_row(row: Mapping[Any, Any], home: Path, where: str) -> list[Wanted]:
    options = options_of({k: v for k, v in row.items() if k != "path"}, where, home)
    if not isinstance(row.get("path"), str) or not row["path"]:
        raise OnnxspectError(f"{where}: no path", _HINT)
    return [Wanted(p, options) for p in _of_path(str(home / row["path"]))]


def options_of(given: Mapping[str, Any], where: str, home: Path = Path()) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Options of a scan by name, as the command line would have them.

    Args:
        given: name (with - or _) -> a text, a number, or a list of them where the option may be given again.
        where: names the place in errors.
        home: relative paths count from there.

    Raises:
        OnnxspectError: an option that a scan of many models does not have, or no value for one.
    """
    options: dict[str, tuple[str, ...]] = {}
    for key, value in given.items():
        name = str(key).replace("_", "-")
        if name not in OPTIONS:
            raise OnnxspectError(
                f"{where}: unknown option {printable(name, 60)}", f"path, {', '.join(sorted(OPTIONS))}"
            )
        values = list(value) if isinstance(value, list | tuple) else [value]
        values = [str(v) if isinstance(v, Path) else v for v in values]
        if not values or (len(values) > 1 and name not in _MANY) or not all(map(_is_value, values)):
            raise OnnxspectError(f"{where}: {name} is {printable(repr(value), 60)}", "a text or a number")
        if name == "resize" and value is True:
            options[name] = ("try",)
        elif name in PATHS and not (name == "classes" and "," in str(value)):
            options[name] = (str(home / str(value)),)
        else:
            options[name] = tuple(map(_as_text, values))
    return tuple(sorted(options.items()))


def _is_value(value: object) -> bool:
    return isinstance(value, str | int | float) and str(value) != ""


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
