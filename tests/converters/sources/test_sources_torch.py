"""PyTorch's ways to save a model, converted; and pickles that would run code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from framework_factories import settled_cnn, verazuo_mnist
from framework_models import Touch
from safetensors.torch import save_file
from sources_support import converted, needs, reference_folder, refused, verify
from tolerances import AMPLIFIED_32, NETWORK_32, OPERATION_32, SUM_32

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sources.convert import Conversion
from onnxspect.converters.sources.exported import Source
from onnxspect.converters.sources.formats import detect
from onnxspect.converters.sources.from_torch import export

pytestmark = needs("torch")

SHAPE = (1, 28, 28)
FACTORY = "framework_factories:torch_cnn"


@pytest.fixture(scope="module")
def network() -> Any:
    return settled_cnn()


def check(made: Conversion, network: Any) -> None:
    """The file computes what the network in this process computes; all three ways agree."""
    images = np.random.default_rng(1).random((4, *SHAPE), np.float32)
    session = onnxruntime.InferenceSession(made.out, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=NETWORK_32, atol=SUM_32)
    verify(made)


def test_state_dict(tmp_path: Path, network: Any) -> None:
    source = tmp_path / "weights.pth"
    torch.save(network.state_dict(), source)
    made = converted(source, tmp_path / "m.onnx", factory=FACTORY, input_shape=SHAPE)
    check(made, network)
    assert (made.format.name, made.layout, made.sample_shape, made.batch) == ("torch-pickle", "NCHW", SHAPE, 0)
    facts = json.loads(made.sidecar.read_text())
    assert facts["schema"] == "onnxspect-sidecar-1"
    assert facts["model"]["sha256"] == made.sha256
    assert facts["input"] == {"layout": "NCHW", "range": None, "sample_shape": [1, 28, 28]}
    assert facts["parity"]["max_abs_difference"] <= facts["parity"]["allowed"]
    assert facts["source"] == {"name": "weights.pth", "sha256": made.source_sha256, "format": "torch-pickle"}


def test_torch_script(tmp_path: Path, network: Any) -> None:
    """Twice, because a conversion is repeatable to the byte."""
    source = tmp_path / "model.pt"
    torch.jit.trace(network, torch.rand(2, *SHAPE)).save(source)
    first = converted(source, tmp_path / "a.onnx", input_shape=SHAPE)
    check(first, network)
    assert first.sandbox.complete
    second = converted(source, tmp_path / "b.onnx", input_shape=SHAPE)
    assert first.out.read_bytes() == second.out.read_bytes()
    assert first.sidecar.read_text() == second.sidecar.read_text()


def test_torch_script_needs_a_shape(tmp_path: Path, network: Any) -> None:
    source = tmp_path / "model.pt"
    torch.jit.trace(network, torch.rand(2, *SHAPE)).save(source)
    assert "--input-shape" in refused(source, tmp_path).hint


def _save_safetensors(network: Any, path: Path) -> str:
    save_file(network.state_dict(), path)
    return "safetensors"


def _save_wrapped(network: Any, path: Path) -> str:
    torch.save({"epoch": 3, "model": {"state_dict": network.state_dict()}}, path)
    return "torch-pickle"


def _save_parallel_in_the_old_format(network: Any, path: Path) -> str:
    weights = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, path, _use_new_zipfile_serialization=False)
    return "torch-pickle"


@pytest.mark.parametrize("save", [_save_safetensors, _save_wrapped, _save_parallel_in_the_old_format])
def test_weights_are_found(tmp_path: Path, network: Any, save: Callable[[Any, Path], str]) -> None:
    """In this process and up to the export, which is the same for all of them."""
    path = tmp_path / "weights.bin"
    kind = save(network, path)
    assert detect(path).name == kind
    opened = export(_source(path, FACTORY, SHAPE, kind=kind))
    images = np.random.default_rng(1).random((4, *SHAPE), np.float32)
    with torch.no_grad():
        np.testing.assert_array_equal(opened.run(images), network(torch.from_numpy(images)).numpy())
    assert any("DataParallel" in w for w in opened.warnings) == (save is _save_parallel_in_the_old_format)


@pytest.mark.parametrize(
    "free",
    [pytest.param(True, id="free batch"), pytest.param(False, id="batch of one", marks=pytest.mark.heavy)],
)
def test_exported_program(tmp_path: Path, network: Any, free: bool) -> None:
    source = tmp_path / "model.pt2"
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    program = torch.export.export(network, (torch.rand(2 if free else 1, *SHAPE),), dynamic_shapes=shapes)
    torch.export.save(program, source)
    made = converted(source, tmp_path / "m.onnx")
    assert made.batch == (0 if free else 1)
    if free:
        check(made, network)
    else:
        verify(made)


def test_model_that_returns_a_dict(tmp_path: Path, network: Any) -> None:
    source = tmp_path / "weights.pth"
    torch.save({f"inner.{k}": v for k, v in network.state_dict().items()}, source)
    opened = export(_source(source, "framework_factories:torch_dict_output", SHAPE))
    images = np.random.default_rng(1).random((4, *SHAPE), np.float32)
    with torch.no_grad():
        np.testing.assert_array_equal(opened.run(images), network(torch.from_numpy(images)).numpy())


def test_export_that_computes_something_else_is_refused(tmp_path: Path, network: Any) -> None:
    source = tmp_path / "weights.pth"
    torch.save({f"inner.{k}": v for k, v in network.state_dict().items()}, source)
    factory = "framework_factories:torch_unsteady"
    error = refused(source, tmp_path, factory=factory, input_shape=SHAPE)
    assert "its outputs differ from the framework's" in error.message


@pytest.mark.parametrize(
    ("factory", "shape", "words"),
    [
        (None, SHAPE, "holds 9 tensors"),
        (FACTORY, None, "does not say how large its images are"),
        (FACTORY, (3, 28, 28), "does not run on an input of shape"),
        ("framework_factories:absent", SHAPE, "cannot be imported"),
        ("no_such_module:build", SHAPE, "cannot be imported"),
        ("framework_factories.torch_cnn", SHAPE, "not of the form package.module:function"),
        ("os:system('true')#", SHAPE, "not of the form package.module:function"),
        ("framework_factories:returns_a_number", SHAPE, "returned int, not a torch.nn.Module"),
        ("framework_factories:raises", SHAPE, "no such dataset"),
        ("framework_factories:verazuo_mnist", SHAPE, "do not fit"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, network: Any, factory: str | None, shape: tuple[int, ...] | None, words: str
) -> None:
    """Run in this process (the child's errors are passed on as they are), so that ten cases cost no ten imports."""
    source = tmp_path / "weights.pth"
    torch.save(network.state_dict(), source)
    with pytest.raises(OnnxspectError) as caught:
        export(_source(source, factory=factory or "", input_shape=shape or ()))
    assert words in caught.value.message
    assert caught.value.hint or "raises" in (factory or "")


def _source(
    path: Path,
    factory: str = "",
    input_shape: tuple[int, ...] = (),
    missing: tuple[str, ...] = (),
    kind: str = "torch-pickle",
) -> Source:
    here = (str(Path(__file__).parents[2]),)
    return Source(path, kind, factory, input_shape, path.parent, here, missing)


# --- pickles --------------------------------------------------------------------------------------------------------------


def evil_checkpoint(path: Path, mark: Path) -> Path:
    """A .pth whose pickle makes the folder `mark` when it is opened."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Touch(mark)}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


def test_code_in_a_pickle_does_nothing_outside_its_folder(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    source = evil_checkpoint(tmp_path / "evil.pth", mark)
    error = refused(source, tmp_path, input_shape=SHAPE)
    assert "mkdir" in error.message
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark)))  # noqa: S301 - shows that this pickle does run code where nothing holds it
    assert mark.is_dir()


def test_code_in_a_pickle_is_not_run_where_there_is_no_sandbox(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    source = evil_checkpoint(tmp_path / "evil.pth", mark)
    with pytest.raises(OnnxspectError, match="cannot lock a process in") as caught:
        export(_source(source, missing=("Landlock",)))
    assert "state_dict" in caught.value.hint
    assert not mark.exists()


def test_pickled_module(tmp_path: Path, network: Any) -> None:
    """torch's own classes can be imported in the sandbox, so a pickled Sequential opens there."""
    source = tmp_path / "whole.pt"
    torch.save(network, source)
    made = converted(source, tmp_path / "m.onnx", input_shape=SHAPE)
    check(made, network)
    assert any("in the sandbox only" in w for w in made.warnings)


def test_pickled_module_of_an_unknown_class(tmp_path: Path) -> None:
    source = tmp_path / "whole.pt"
    torch.save(verazuo_mnist().conv1, source)
    archive = zipfile.ZipFile(source)
    data = archive.read("whole/data.pkl").replace(b"torch.nn.modules.activation", b"torch.nn.modules.nctivation")
    renamed = tmp_path / "renamed.pt"
    with zipfile.ZipFile(renamed, "w") as copy:
        for item in archive.infolist():
            copy.writestr(item, data if item.filename == "whole/data.pkl" else archive.read(item))
    error = refused(renamed, tmp_path, input_shape=SHAPE)
    assert "nctivation" in error.message
    assert "--factory" in error.hint


INFECTED = reference_folder() / "infected"


@pytest.mark.skipif(not INFECTED.is_dir(), reason="needs the reference files (ONNXSPECT_DATA)")
def test_weights_as_their_author_saved_them(tmp_path: Path) -> None:
    """The same network exists as an ONNX export of others: the conversion computes what that file computes."""
    source = INFECTED / "verazuo_mnist_badnet.pth"
    assert "conv1.0.weight (16, 1, 5, 5)" in refused(source, tmp_path).message
    made = converted(source, tmp_path / "m.onnx", factory="framework_factories:verazuo_mnist", input_shape=SHAPE)
    images = np.random.default_rng(2).random((16, *SHAPE), np.float32)
    found = []
    for path in (made.out, INFECTED / "verazuo_mnist_badnet.onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {session.get_inputs()[0].name: images})[0])
    np.testing.assert_allclose(found[0], found[1], rtol=AMPLIFIED_32, atol=OPERATION_32)


def test_damaged_archive(tmp_path: Path, network: Any) -> None:
    source = tmp_path / "weights.pth"
    torch.save(network.state_dict(), source)
    data = bytearray(source.read_bytes())
    data[200:300] = bytes(100)
    source.write_bytes(data)
    with pytest.raises(OnnxspectError) as caught:
        export(_source(source, FACTORY, SHAPE))
    assert "\n" not in str(caught.value)
