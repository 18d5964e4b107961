"""A model in every form that a caller may have it: the same answers come out of each."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, SIDE, quadrant_images, quadrant_model, quadrant_weights, saved
from onnx import TensorProto
from sources_support import needs
from tolerances import NETWORK_32
from torch import nn

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.opening import converted_first, in_scratch, open_model
from onnxspect.engine.subject.subject import InputSpec, Subject

IMAGES = quadrant_images(3).images
LOGITS = IMAGES.reshape(len(IMAGES), -1) @ quadrant_weights(2)
SHAPE = (1, SIDE, SIDE)


def live() -> nn.Module:
    """The planted classifier as a torch module, in training mode."""
    linear = nn.Linear(SIDE * SIDE, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(quadrant_weights(2).T))
        linear.bias.zero_()
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear).train()


def forms(folder: Path) -> dict[str, Any]:
    """The same classifier in every form."""
    path = saved(quadrant_model(2), folder / "model.onnx")
    return {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "proto": quadrant_model(2),
        "module": live(),
        "subject": Subject.from_module(live(), SHAPE),
    }


@pytest.mark.parametrize("form", ["path", "text", "bytes", "proto", "module", "subject"])
def test_every_form_gives_the_same_answers(form: str, tmp_path: Path) -> None:
    opened = open_model(forms(tmp_path)[form])
    assert opened.size == (None if form == "module" else SHAPE)
    subject = opened.subject(SHAPE)
    assert (subject.classes, subject.image_shape) == (CLASSES, SHAPE)
    np.testing.assert_allclose(subject.predict(IMAGES), LOGITS, rtol=NETWORK_32, atol=NETWORK_32)


def test_a_model_in_memory_is_the_file_that_it_would_be(tmp_path: Path) -> None:
    """Its digest, its name in errors, and a file behind it for onnxruntime, which goes when the model is no longer used."""
    path = saved(quadrant_model(2), tmp_path / "model.onnx")
    subject = open_model(path.read_bytes()).subject()
    assert subject.sha256 == Subject.from_onnx(path).sha256
    assert subject.name == "model in memory"
    scratch = subject.origin.file.path
    assert in_scratch(subject.origin.file)
    assert not in_scratch(Subject.from_onnx(path).origin.file)
    assert subject.oracle().outputs.keys() == {"logits"}
    del subject
    gc.collect()
    assert not scratch.exists()


def test_the_callers_proto_is_left_alone() -> None:
    given = quadrant_model(2)
    before = given.SerializeToString()
    open_model(given)
    assert given.SerializeToString() == before


def test_a_bad_model_in_memory_names_no_scratch_file() -> None:
    broken = quadrant_model(2)
    broken.graph.initializer[0].dims[0] = 7  # says less than it holds
    for given in (b"", b"no model", broken):
        with pytest.raises(OnnxspectError) as caught:
            open_model(given)
        assert "model in memory" in str(caught.value)
        assert "/" not in caught.value.message.replace("and/or", "")


def test_weights_beside_a_model_in_memory_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proto names a file; whose folder it lies in is not told, and the current folder is not searched."""
    monkeypatch.chdir(tmp_path)
    proto = quadrant_model(2)
    onnx.save(proto, "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = onnx.load("model.onnx", load_external_data=False)
    assert any(t.data_location == TensorProto.EXTERNAL for t in outside.graph.initializer)
    with pytest.raises(OnnxspectError, match="of its weights lie in files beside it"):
        open_model(outside)
    assert open_model("model.onnx").size == SHAPE


def test_the_preprocessing_of_a_subject_is_the_callers() -> None:
    own = InputSpec("mine", scale=255.0, mean=(3.0,))
    assert open_model(Subject.from_module(live(), SHAPE, own)).known_spec == own
    assert open_model(Subject.from_module(live(), SHAPE)).known_spec is None  # a first guess: to be found out
    given = InputSpec("given", scale=2.0)
    opened = open_model(Subject.from_module(live(), SHAPE, own), given)
    assert opened.known_spec == opened.subject().spec == given


@pytest.mark.parametrize("wrong", [None, 3, [1, 2], object(), nn.Module], ids=lambda w: type(w).__name__)
def test_what_is_no_model_is_told_what_is(wrong: Any) -> None:
    with pytest.raises(OnnxspectError, match=r"is no model.*accepted are the path") as caught:
        open_model(wrong)
    assert "Keras" in caught.value.hint


def test_a_subject_elsewhere() -> None:
    with pytest.raises(OnnxspectError, match="the subject is on cpu, the run on cuda"):
        open_model(Subject.from_module(live(), SHAPE), device="cuda")


@needs("keras")
@pytest.mark.frameworks
def test_a_live_keras_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    import keras

    dense = keras.layers.Dense(CLASSES)
    model = keras.Sequential([keras.layers.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), dense])
    dense.set_weights([quadrant_weights(2), np.zeros(CLASSES, np.float32)])
    subject = open_model(model).subject()
    assert (subject.name, subject.spec.layout) == ("Sequential in memory", "NHWC")
    np.testing.assert_allclose(subject.predict(IMAGES), LOGITS, rtol=NETWORK_32, atol=NETWORK_32)
    path = tmp_path / "model.keras"
    model.save(path)
    assert converted_first(path)  # from there on it goes the same way


def test_which_files_are_converted_first(tmp_path: Path) -> None:
    """None that is ONNX, and none whose weights alone say too little; what cannot be read says so when it is opened."""
    state = tmp_path / "weights.pth"
    torch.save(live().state_dict(), state)
    script = tmp_path / "model.pt"
    torch.jit.trace(live().eval(), torch.zeros(1, *SHAPE)).save(str(script))
    text = tmp_path / "readme.txt"
    text.write_text("no model")
    onnx_file = saved(quadrant_model(2), tmp_path / "model.onnx")
    found = {p.name: converted_first(p) for p in (state, script, text, onnx_file, tmp_path / "nothing")}
    assert [name for name, first in found.items() if first] == ["model.pt"]
