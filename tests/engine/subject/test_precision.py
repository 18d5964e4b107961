"""The numerics policy, on a CPU that computes as a GPU does: what TF32 and bfloat16 may touch, and what they may not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import SUM_32
from torch import nn

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, Unit, choose_images, search
from onnxspect.engine.subject import precision
from onnxspect.engine.subject import subject as subject_module
from onnxspect.engine.subject.precision import (
    BFLOAT16,
    FLOAT32,
    emulated,
    is_judging,
    is_searching,
    judging,
    precision_on,
    searching,
    to_tf32,
)
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import stamp
from onnxspect.models import zoo


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_tf32_keeps_ten_bits_of_the_mantissa(value: float) -> None:
    """Within half a unit in the tenth place, and what has ten bits stays as it is."""
    given_ = torch.tensor([value], dtype=torch.float32)
    rounded = to_tf32(given_)
    if bool(torch.isfinite(rounded)):
        assert abs(float(rounded) - float(given_)) <= abs(float(given_)) * 2.0**-11 + 2.0**-136
    assert int(rounded.view(torch.int32)) & 0x1FFF == 0
    assert torch.equal(to_tf32(rounded), rounded)


def test_tf32_leaves_infinity_and_nan() -> None:
    assert to_tf32(torch.tensor([torch.inf, -torch.inf])).tolist() == [np.inf, -np.inf]
    assert bool(to_tf32(torch.tensor([torch.nan])).isnan())


@pytest.mark.parametrize("raises", [False, True])
def test_judging_is_scoped_nested_and_restored(raises: bool) -> None:
    before = precision._settings()
    with contextlib.suppress(KeyError), judging():
        assert is_judging()
        assert set(precision._settings().values()) <= {"ieee", False}
        with judging():
            pass
        assert is_judging()
        if raises:
            raise KeyError
    assert not is_judging()
    assert precision._settings() == before
    assert isinstance(torch.backends.cudnn.allow_tf32, bool)  # the older switch can still be read


def test_a_cpu_searches_in_float32() -> None:
    assert precision_on("cpu") == precision.Precision(FLOAT32, FLOAT32)
    with searching("cpu"):
        assert not is_searching("cpu")


def test_the_emulated_device_searches_in_bfloat16_and_judges_in_float32() -> None:
    a, b = torch.rand(8, 8), torch.rand(8, 8)
    exact = a @ b
    with emulated():
        assert precision_on("cpu").search == BFLOAT16
        assert not torch.equal(a @ b, exact)  # TF32, the default
        with judging():
            assert torch.equal(a @ b, exact)
            with searching("cpu"):
                assert (a @ b).dtype is torch.bfloat16
            assert torch.equal(a @ b, exact)
    assert torch.equal(a @ b, exact)


def test_a_gradient_is_judged_too() -> None:
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    (exact,) = torch.autograd.grad(layer(x).square().sum(), x)
    with emulated():
        (rounded,) = torch.autograd.grad(layer(x).square().sum(), x)
        with judging():
            (judged,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert not torch.equal(rounded, exact)
    assert torch.equal(judged, exact)


def test_a_model_opens_on_a_device_that_convolves_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity allows 1e-4: with TF32 every model was refused. The emulated device shows the fault where the policy leaks."""
    path = zoo.path("fashion_mnist_clean")
    with emulated():
        assert Subject.from_onnx(path).classes == 10

    @contextlib.contextmanager
    def leaking() -> Iterator[None]:
        yield

    monkeypatch.setattr(subject_module, "judging", leaking)
    with emulated(), pytest.raises(OnnxspectError, match="differs from onnxruntime"):
        Subject.from_onnx(path)


def test_what_a_fast_search_finds_is_measured_in_float32(clean_samples: Samples) -> None:
    """Cost and success are those of the trigger that is handed over, in IEEE float32, and it meets the constraint."""
    subject = Subject.from_onnx(zoo.path("fashion_mnist_badnets"))
    config, run = SearchConfig(steps=60, samples=24, settle=15), RunContext()
    unit = Unit(7)
    with emulated():
        ((fast,),) = search(subject, clean_samples, [(unit,)], MaskPattern(), config, run, "test")
    ((exact,),) = search(subject, clean_samples, [(unit,)], MaskPattern(), config, run, "test")
    rows = choose_images(unit, clean_samples, config.samples, run, "test")
    answers = subject.predict(stamp(clean_samples.images[rows], fast.trigger)).argmax(1)
    assert fast.found
    assert fast.success == pytest.approx((answers == 7).mean())
    assert fast.success >= config.success
    assert fast.cost == pytest.approx(fast.trigger["mask"].sum(), rel=SUM_32)
    assert fast.cost != exact.cost
    assert fast.cost == pytest.approx(exact.cost, rel=0.35)
