"""One such file: how it is made, how a user gives it to the program, and what becomes of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.bound_inputs import bound
from onnxspect.converters.file.input_face import with_face
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.onnx_file import OnnxFile, read_onnx
from onnxspect.converters.sources import convert_job
from onnxspect.converters.sources.convert import convert
from onnxspect.converters.sources.formats import detect
from onnxspect.converters.sources.others import OtherFormatError
from onnxspect.engine.subject.onnx_model import OpenedModel, open_onnx

TESTS = Path(__file__).resolve().parent.parent
#: Modules of this folder, in the order of the page.
GROUPS = (
    "of_torch",
    "of_exporters",
    "of_runtimes",
    "of_packages",
    "of_keras",
    "of_tensorflow",
    "of_jax",
    "of_sklearn",
    "of_others",
)


@dataclass(frozen=True)
class Wild:
    """A file as somebody ships it.

    Attributes:
        name: what it is and who writes such, in words.
        make: writes it (and what lies beside it) into an empty folder, and gives its path.
        works: what is right: opened with parity, or refused by name with the next step.
        factory, shape, head: options of `convert`.
        output, bind: options of `scan` and `info`.
        image: (channels, height, width) of real images, where the file leaves them open.
    """

    name: str
    make: Callable[[Path], Path]
    works: bool = True
    factory: str = ""
    shape: tuple[int, ...] = ()
    head: str = ""
    output: str = ""
    bind: tuple[tuple[str, float], ...] = ()
    image: tuple[int, int, int] = (3, 32, 32)


@dataclass(frozen=True)
class Became:
    """What became of it.

    Attributes:
        works: it was opened, and torch and onnxruntime (and its framework, where it has another one) agree.
        said: which class scores were found; or why it was refused.
        hint: the next step, of a refusal.
        notes: what was changed, taken off or left, in sentences.
    """

    works: bool
    said: str
    hint: str = ""
    notes: tuple[str, ...] = ()


def group(name: str) -> tuple[str, tuple[Wild, ...]]:
    """(heading, files) of a module of this folder."""
    module = importlib.import_module(f"wild_files.{name}")
    return module.HEADING, module.FILES


def became(file: Wild, path: Path, scratch: Path, locked_in: bool = True) -> Became:
    """Open a file as `onnxspect scan` does, after `onnxspect convert` where it is of another framework.

    Args:
        file: how it is given.
        path: where it is.
        scratch: an empty folder.
        locked_in: in child processes, as the commands do; else the same work is done in this process, which takes a tenth of the
            time, and is for files of our own.
    """
    try:
        refuse_hostile(path)
        if _kind(path) != "onnx":
            made, how, notes = _converted(file, path, scratch, locked_in)
            opened = open_onnx(made if locked_in else read_onnx(made), output=file.output)
        else:
            how, notes = "", ()
            given: Path | OnnxFile = path if locked_in else with_face(bound(read_onnx(path), dict(file.bind)))
            opened = open_onnx(given, output=file.output, bind=dict(file.bind))
        subject = opened.subject(_image_of(opened, file))
    except OnnxspectError as error:
        return Became(False, _plain(error.message, path), _plain(error.hint, path))
    scores = f"{subject.classes} classes, {opened.spec.layout}: {opened.logits.how.replace('_', ' ')}"
    others = ", ".join(o.output for o in opened.others)
    scores += f"; not looked at: {others}" if others else ""
    said = (_plain(n, path) for n in (*notes, *opened.file.warnings))
    return Became(True, f"{scores}; by {how}" if how else scores, "", tuple(dict.fromkeys(said)))


def _kind(path: Path) -> str:
    """The format of a file; what is of none that is known by name is left to the reader of ONNX files, as `scan` leaves it."""
    try:
        return detect(path).name
    except OtherFormatError:
        raise
    except OnnxspectError:
        return "onnx"


def _converted(file: Wild, path: Path, scratch: Path, locked_in: bool) -> tuple[Path, str, tuple[str, ...]]:
    """(the ONNX file, who wrote it, notes)."""
    out, places = scratch / "model.onnx", (TESTS, path.parent)
    if locked_in:
        made = convert(
            path,
            out,
            factory=file.factory or None,
            input_shape=file.shape or None,
            head=file.head,
            search_path=places,
        )
        return out, made.exporter, made.warnings
    kind = detect(path)
    request = {
        "path": str(path),
        "format": kind.name,
        "title": kind.title,
        "module": kind.module,
        "factory": file.factory,
        "input_shape": list(file.shape),
        "search_path": [str(p) for p in places],
        "sandbox_missing": [],
        "seed": 0,
        "head": file.head,
    }
    found = convert_job.run(request, scratch)
    return scratch / convert_job.MODEL, found["exporter"], tuple(found["warnings"])


def _image_of(opened: OpenedModel, file: Wild) -> tuple[int, int, int]:
    if opened.numbers:
        side = round(opened.numbers**0.5)
        return (1, side, side) if side * side == opened.numbers else (1, 1, opened.numbers)
    return file.image


def _plain(text: str, path: Path) -> str:
    """Without the folder that it happened in."""
    for folder in (str(path.parent.resolve()), str(path.parent)):
        text = text.replace(f"{folder}/", "")
    return text.removeprefix(f"{path.name}: ")
