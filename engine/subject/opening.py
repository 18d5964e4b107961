"""A model in whatever form a caller has it, opened: a path, bytes, a ModelProto, a torch module, a Keras model, a Subject.

What is no file yet becomes one where it can: bytes and a ModelProto are written to a scratch file that lives as long as the
model is used, and a Keras model (or a file of another framework) is converted by a locked-in child, as `convert` does it. All then
go the way of an untrusted ONNX file. A live torch module has no file: it is searched as it stands, and cannot be patched.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto
from torch import nn

from onnxspect.converters.file.bound_inputs import bound
from onnxspect.converters.file.external_data import tensors
from onnxspect.converters.file.input_face import with_face
from onnxspect.converters.file.malice import refuse_hostile
from onnxspect.converters.file.onnx_file import Limits, OnnxFile, check_onnx, read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.sources.convert import convert, sidecar_path
from onnxspect.converters.sources.formats import detect
from onnxspect.converters.sources.others import OtherFormatError
from onnxspect.engine.errors import OnnxspectError, caused_by, writing
from onnxspect.engine.readers.labels import ClassList
from onnxspect.engine.subject.class_scores import ModelView
from onnxspect.engine.subject.file_facts import class_list, conversion_notes
from onnxspect.engine.subject.heads import at, likeliest
from onnxspect.engine.subject.onnx_model import OpenedModel, open_file, open_onnx
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

ACCEPTED = "the path of a model file, the bytes of an ONNX file, an onnx.ModelProto, a torch.nn.Module, a Keras model, a Subject"
#: What errors and reports call a model that came without a file.
IN_MEMORY = "model in memory"
#: An option of `convert` in a hint, with what is to be given.
_ASKED_FOR = re.compile(r"--(?:input-shape|factory|head) [\w.:,-]*\w")
#: Files of other frameworks that say all of the model, so that `scan` converts them by itself. For the others (weights
#: alone), `convert` asks for more than a path.
SELF_CONTAINED = frozenset({"keras", "keras-h5", "keras2-h5", "saved-model", "tflite", "torch-pt2", "torch-script"})
#: What a caller may give as a model. A Keras model is known by what it can do, since Keras need not be installed.
Model: TypeAlias = str | Path | bytes | onnx.ModelProto | nn.Module | Subject | Any


class Opened(Protocol):
    """A model that is open; a Subject as soon as the size of its images is known."""

    @property
    def size(self) -> tuple[int, int, int] | None:
        """(channels, height, width) that it takes; None where it takes any."""

    @property
    def known_spec(self) -> InputSpec | None:
        """Its preprocessing, where the caller knows it."""

    @property
    def class_names(self) -> ClassList | None:
        """Its classes in order, where its file names them."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed, guessed or left out in opening it, in sentences."""

    def subject(self, image_shape: tuple[int, int, int] | None = None) -> Subject:
        """The classifier, for images of that shape where it takes any."""

    def fitting(self, samples: Samples) -> Opened:
        """The same, at the output whose class scores the samples are about, where there are several and none was named."""


@dataclass(frozen=True)
class _File:
    """An ONNX file."""

    opened: OpenedModel
    known_spec: InputSpec | None
    chosen: bool = False

    @property
    def size(self) -> tuple[int, int, int] | None:
        return self.opened.size

    @property
    def class_names(self) -> ClassList | None:
        return class_list(self.opened.file)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*_of_file(self.opened.file), *self.opened.said)

    def subject(self, image_shape: tuple[int, int, int] | None = None) -> Subject:
        return self.opened.subject(image_shape)

    def fitting(self, samples: Samples) -> Opened:
        return self if self.chosen else replace(self, opened=likeliest(self.opened, samples))


@dataclass(frozen=True)
class _Live:
    """A torch module; what size of images it takes, it does not say."""

    module: nn.Module
    known_spec: InputSpec | None
    device: str

    @property
    def size(self) -> None:
        return None

    @property
    def class_names(self) -> None:
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def subject(self, image_shape: tuple[int, int, int] | None = None) -> Subject:
        if image_shape is None:
            raise OnnxspectError(
                f"{type(self.module).__name__}: a torch module does not say which images it takes",
                "Subject.from_module(module, (channels, height, width))",
            )
        return Subject.from_module(self.module, image_shape, self.known_spec, self.device)

    def fitting(self, samples: Samples) -> Opened:
        return self


@dataclass(frozen=True)
class _Made:
    """A Subject that the caller made."""

    made: Subject
    known_spec: InputSpec | None

    @property
    def size(self) -> tuple[int, int, int]:
        return self.made.image_shape

    @property
    def class_names(self) -> ClassList | None:
        return None if self.made.file is None else class_list(self.made.file)

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.made.file is None else _of_file(self.made.file)

    def subject(self, image_shape: tuple[int, int, int] | None = None) -> Subject:
        return self.made

    def fitting(self, samples: Samples) -> Opened:
        return self


def _of_file(file: OnnxFile) -> tuple[str, ...]:
    """What was repaired in a file, or guessed where it was converted."""
    return (*conversion_notes(file), *file.warnings)


def open_model(model: Model, spec: InputSpec | None = None, device: str = "cpu") -> Opened:
    """Open a model in any of the accepted forms.

    Args:
        model: see `ACCEPTED`.
        spec: its preprocessing, where the caller knows it.
        device: "cpu" or "cuda".

    Raises:
        OnnxspectError: another type, or no usable image classifier; says why.
    """
    if isinstance(model, ModelView):
        return _viewed(model, spec, device)
    if isinstance(model, str | Path):
        return _of_path(Path(model), model, spec, device)
    if isinstance(model, bytes | bytearray | memoryview):
        return _File(_of_bytes(bytes(model), spec, device), spec)
    if isinstance(model, onnx.ModelProto):
        return _File(_of_bytes(_serialized(model), spec, device), spec)
    if isinstance(model, Subject):
        if model.device != device:
            raise OnnxspectError(f"the subject is on {model.device}, the run on {device}", "make both on one device")
        return _Made(model if spec is None else model.with_spec(_laid_out(spec, model)), spec or _own_spec(model))
    if _is_keras(model):  # asked first: with Keras's torch backend it is a torch module too, which wants its own layout
        return _File(_of_keras(model, spec, device), spec)
    if isinstance(model, nn.Module):
        return _Live(model, spec, device)
    kind = type(model)
    raise OnnxspectError(f"a {kind.__module__}.{kind.__qualname__} is no model", f"accepted are {ACCEPTED}")


def _viewed(view: ModelView, spec: InputSpec | None, device: str) -> Opened:
    """A model of which an output or the value of an input is named."""
    given, bind = view.model, dict(view.bind)
    if isinstance(given, str | Path) and not converted_first(Path(given)):
        refuse_weights_alone(Path(given))
        file = open_file(given, bind)
        return _File(open_onnx(file, spec, device, view.output, name=str(given)), spec, bool(view.output))
    if isinstance(given, bytes | bytearray | memoryview | onnx.ModelProto):
        data = _serialized(given) if isinstance(given, onnx.ModelProto) else bytes(given)
        return _File(_of_bytes(data, spec, device, output=view.output, bind=bind), spec, bool(view.output))
    opened = open_model(given, spec, device)
    if isinstance(opened, _File) and not bind:
        named = at(opened.opened, view.output) if view.output else opened.opened
        return replace(opened, opened=named, chosen=bool(view.output))
    if isinstance(opened, _Made) and opened.made.file is not None:
        made = opened.made
        if dict(made.origin.file.bound) == bind and view.output in ("", made.origin.logits.output):
            return opened
    if bind:
        raise OnnxspectError("inputs are bound of an ONNX file, given by its path", "convert the model first")
    raise OnnxspectError("outputs are named of a model with a file", "choose the output in the module's own forward")


def open_file_of(model: Model, device: str = "cpu") -> OpenedModel:
    """A model that has an ONNX file behind it, or gets one by conversion.

    Raises:
        OnnxspectError: it has none, or is no usable image classifier; says why.
    """
    opened = open_model(model, None, device)
    if not isinstance(opened, _File):
        raise OnnxspectError(f"{type(model).__name__}: no ONNX file behind this model", "export it first")
    return opened.opened


def _own_spec(subject: Subject) -> InputSpec | None:
    """The preprocessing that a Subject was made with; None where that is only the first guess."""
    return None if subject.spec == InputSpec(layout=subject.spec.layout) else subject.spec


def _laid_out(spec: InputSpec, subject: Subject) -> InputSpec:
    return replace(spec, layout=subject.spec.layout)


def _of_path(path: Path, given: str | Path, spec: InputSpec | None, device: str) -> _File:
    if converted_first(path):
        with _scratch() as folder:
            out = folder / "model.onnx"
            _converted(path, out)
            opened = _of_bytes(out.read_bytes(), spec, device, str(given))
            _keep_sidecar(out, opened.file)
            return _File(opened, spec)
    refuse_weights_alone(path)
    return _File(open_onnx(given, spec, device), spec)


def _converted(path: Path, out: Path) -> None:
    """Convert with nothing but the path; what wants more than that is the matter of `convert`, and its hint says so.

    Raises:
        OnnxspectError: as `convert`.
    """
    try:
        convert(path, out)
    except OnnxspectError as error:
        asked = _ASKED_FOR.search(error.hint)
        if asked is None:
            raise
        what = error.hint.split(":")[0]
        way = f"{what} to convert, and its result here: onnxspect convert {path} -o model.onnx {asked[0]}"
        raise caused_by(error, error.message, way) from error


def _keep_sidecar(converted: Path, kept: OnnxFile) -> None:
    """What the conversion found out (range, class names) lies beside the scratch file too, for as long as that does."""
    there = sidecar_path(kept.path)
    there.write_bytes(sidecar_path(converted).read_bytes())
    weakref.finalize(kept, there.unlink, missing_ok=True)


def refuse_weights_alone(path: Path) -> None:
    """Refuse another framework's file that `convert` can turn into ONNX with more than a path.

    Raises:
        OnnxspectError: it is one; names what it is, and the command. Or it is hostile.
    """
    refuse_hostile(path)
    try:
        kind = detect(path) if path.exists() else None
    except OtherFormatError:
        raise
    except OnnxspectError:
        return  # what it is not, the reader of ONNX files says better
    if kind is None or kind.name in SELF_CONTAINED or kind.name == "onnx":
        return
    extra = "" if kind.module == "sklearn" else " --factory package.module:function"
    shape = " --input-shape 3,224,224" if kind.module in ("torch", "jax") else ""
    raise OnnxspectError(
        f"{path}: {kind.title}, not an ONNX file, and no network that a path alone could open",
        f"onnxspect convert {path} -o model.onnx{extra}{shape}",
    )


def converted_first(path: Path) -> bool:
    """Whether it is another framework's file that says all of its model. What cannot be read says so when it is opened."""
    try:
        return path.exists() and detect(path).name in SELF_CONTAINED
    except OnnxspectError:
        return False


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise OnnxspectError(
            f"{IN_MEMORY}: too large for one message, which ends at 2 GiB",
            "save it with its weights as external data, and give the path",
        ) from error


def _of_bytes(
    data: bytes,
    spec: InputSpec | None,
    device: str,
    name: str = IN_MEMORY,
    output: str = "",
    bind: Mapping[str, float] | None = None,
) -> OpenedModel:
    """A model that has no file of the caller's: it gets one, which goes when the model is no longer used."""
    checked = check_onnx(data, Path(name), Limits(), name, external=False)
    outside = [t.name for t in tensors(checked.proto) if t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise OnnxspectError(
            f"{name}: {len(outside)} of its weights lie in files beside it",
            "give its path, or load it with its weights",
        )
    handle, scratch = tempfile.mkstemp(prefix="onnxspect-", suffix=".onnx")
    with writing(Path(scratch)), os.fdopen(handle, "wb") as file:
        file.write(data)
    try:
        kept = with_face(bound(read_onnx(Path(scratch)), bind))
        probe(kept)
        opened = open_onnx(kept, spec, device, output, name=name)
    except OnnxspectError as error:
        Path(scratch).unlink(missing_ok=True)
        raise type(error)(error.message.replace(scratch, name), error.hint) from error
    weakref.finalize(kept, Path(scratch).unlink, missing_ok=True)
    return opened


def in_scratch(file: OnnxFile) -> bool:
    """Whether a model's file is only the scratch file that `open_model` wrote."""
    return file.path.parent == Path(tempfile.gettempdir()) and file.path.name.startswith("onnxspect-")


def _is_keras(model: Any) -> bool:
    """A live Keras model: of a class that keras or tf_keras defines, or that is derived from one."""
    roots = {base.__module__.split(".")[0] for base in type(model).__mro__}
    return bool(roots & {"keras", "tf_keras"}) and callable(getattr(model, "save", None))


def _of_keras(model: Any, spec: InputSpec | None, device: str) -> OpenedModel:
    """A live Keras model, by the way of its own file: no framework is run in this process but the caller's."""
    name = f"{type(model).__name__} in memory"
    with _scratch() as folder:
        saved, out = folder / "model.keras", folder / "model.onnx"
        try:
            model.save(saved)
        except Exception as error:  # whatever the framework raises is the same finding
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise OnnxspectError(f"{name}: cannot be saved: {line}", "save it yourself, and give the path") from error
        convert(saved, out)
        return _of_bytes(out.read_bytes(), spec, device, name)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="onnxspect-") as folder:
        yield Path(folder)
