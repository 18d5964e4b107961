"""Models too large for one message, on small ones under a lowered limit: every part sees the same model as in one piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import quadrant_images
from onnx import TensorProto, numpy_helper
from patch_support import UNSEEN, case_of, neuron_model, opened

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file import oversized
from onnxspect.converters.file.external_layout import is_kept
from onnxspect.converters.file.onnx_file import Limits, read_onnx
from onnxspect.converters.file.probe import probe
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.jobs.export import Provenance, patched_model, write_model
from onnxspect.engine.jobs.patch import named
from onnxspect.engine.mitigation.input_filter import InputFilter
from onnxspect.engine.mitigation.neurons import layers, named_layer, switch_off
from onnxspect.engine.mitigation.verification import Goals
from onnxspect.engine.mitigation.verify import verify
from onnxspect.engine.subject.subject import Subject


def call_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every model counts as oversized, every tensor as large."""
    monkeypatch.setattr(oversized, "WHOLE", 0)
    monkeypatch.setattr(oversized, "SMALL", 1)


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the test's start on."""
    call_large(monkeypatch)


def beside(folder: Path) -> Path:
    """`neuron_model` with its weights in a data file."""
    path = folder / "model.onnx"
    onnx.save(neuron_model(), path, save_as_external_data=True, location="model.data", size_threshold=64)
    return path


@pytest.mark.usefixtures("all_are_large")
def test_the_parts_make_up_the_whole(tmp_path: Path) -> None:
    model = neuron_model()
    light, large, places = oversized.parted(model, "weights.bin")
    assert set(large) == {"first", "bias", "second"}
    assert not any(t.HasField("raw_data") for t in light.graph.initializer)
    (tmp_path / "light.onnx").write_bytes(light.SerializeToString())
    with (tmp_path / "weights.bin").open("wb") as file:
        file.writelines(oversized.data_file(large, places))
    again = onnx.load(tmp_path / "light.onnx")
    for before, after in zip(model.graph.initializer, again.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))
    assert again.graph.node == model.graph.node


def test_what_is_small_stays_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oversized, "WHOLE", 0)
    monkeypatch.setattr(oversized, "SMALL", 100)
    light, large, _ = oversized.parted(neuron_model(), "weights.bin")
    assert set(large) == {"first"}
    assert next(t for t in light.graph.initializer if t.name == "bias").HasField("raw_data")


def test_a_usual_model_is_one_message() -> None:
    assert not oversized.oversized(neuron_model())
    assert oversized.copied(neuron_model()) == neuron_model()


def test_onnxruntime_answers_as_it_does_from_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = neuron_model(), UNSEEN.images
    inner = ["hidden", "logits"]
    whole = Oracle(model, outputs=inner).run({"image": images})
    call_large(monkeypatch)
    for found, expected in zip(Oracle(model, outputs=inner).run({"image": images}), whole, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [o.name for o in model.graph.output] == ["logits"]  # the caller's model is left alone


def test_the_child_checks_and_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe(beside(tmp_path))
    call_large(monkeypatch)
    parts = probe(tmp_path / "model.onnx")
    assert (parts.checker, parts.run_error, parts.finite) == ("", "", True)
    assert (parts.inputs, parts.outputs, parts.run_shapes) == (whole.inputs, whole.outputs, whole.run_shapes)
    assert parts.value_info == whole.value_info


@pytest.mark.usefixtures("all_are_large")
def test_a_damaged_one_is_refused_by_the_child(tmp_path: Path) -> None:
    model = neuron_model()
    model.graph.node[1].input[1] = "second"  # shapes that do not fit
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxspectError, match="onnxruntime cannot"):
        probe(tmp_path / "model.onnx")


def test_patches_are_written_and_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that changes weights and one that adds nodes: the same bytes as in one piece, beside the model as they were."""
    path = beside(tmp_path)
    files = {}
    for name in ("whole", "parts"):
        if name == "parts":
            call_large(monkeypatch)
        subject = Subject.from_onnx(path, image_shape=(1, 8, 8))
        assert subject.file is not None
        case = case_of(subject)
        layer = named_layer(layers(subject), "hidden")
        for method, edit in (
            ("pruned", switch_off(subject, layer, np.arange(5) == 4)),
            ("guarded", InputFilter().edit(case)),
        ):
            model, _ = patched_model(subject, edit.values, Provenance("0" * 64, "1", "m", "e"), edit.additions)
            kept = {t.name for t in model.graph.initializer if is_kept(t)}
            assert ("second" in kept) == (name == "parts")
            out = tmp_path / name / f"{method}.onnx"
            out.parent.mkdir(exist_ok=True)
            write_model(model, subject.file, out)
            proof = verify(out, path, UNSEEN, subject.spec, named(case.triggers), Goals(rejected=0.12))
            assert proof.holds, proof.failures
            assert proof.checker == ""
            files[name, method] = (out.read_bytes(), out.with_name(f"{method}.onnx.data").read_bytes())
    for method in ("pruned", "guarded"):
        assert files["parts", method] == files["whole", method]


@pytest.mark.usefixtures("all_are_large")
def test_what_was_inside_the_file_is_written_inside(tmp_path: Path) -> None:
    subject = opened(neuron_model(), tmp_path)
    assert subject.file is not None
    layer = named_layer(layers(subject), "hidden")
    edit = switch_off(subject, layer, np.arange(5) == 4)
    model, changes = patched_model(subject, edit.values, Provenance("0" * 64, "1", "m", "e"))
    write_model(model, subject.file, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert all(t.data_location == TensorProto.DEFAULT for t in written.graph.initializer)
    changed = {c.initializer for c in changes}
    for before, after in zip(subject.file.proto.graph.initializer, written.graph.initializer, strict=True):
        same = np.array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))
        assert same == (before.name not in changed)


@pytest.mark.usefixtures("all_are_large")
def test_a_scan_sees_it(tmp_path: Path) -> None:
    subject = Subject.from_onnx(beside(tmp_path), image_shape=(1, 8, 8))
    samples = quadrant_images(10, 3)
    subject.check(samples.images)  # every tap, torch against onnxruntime
    assert (subject.predict(samples.images).argmax(1) == samples.labels).all()


def test_a_tensor_over_two_gibibytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = beside(tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "first")
    del tensor.dims[:]
    tensor.dims.extend([64, 1 << 25])
    next(e for e in tensor.external_data if e.key == "length").value = str(64 << 27)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxspectError, match="over the 2 GiB of a protobuf message"):
        read_onnx(path)
    with pytest.raises(OnnxspectError, match="over the limit"):
        read_onnx(beside(tmp_path), Limits(external_bytes=100))
