"""Networks trained side by side are the ones that are trained one by one, and a step can be recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIDE, quadrant_images, quadrant_subject
from tolerances import NETWORK_32, OPERATION_32, REORDERED_64, TRAINED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from onnxspect.engine.run import RunContext
from onnxspect.engine.subject import reference, side_by_side
from onnxspect.engine.subject.reference import COUNT, LEARNING_RATE, WEIGHT_DECAY, train_references
from onnxspect.engine.subject.side_by_side import Batch, train_side_by_side
from onnxspect.engine.subject.small_network import SmallNetwork

FIT, CHECK = quadrant_images(16, 0), quadrant_images(10, 1)

Material = tuple[list[SmallNetwork], Tensor, Tensor, list[list[Batch]]]


def material(shape: tuple[int, int, int], n: int, dtype: torch.dtype = torch.float64, count: int = COUNT) -> Material:
    """Networks, images, labels and the training steps of every network, of two batch sizes where n is no multiple."""
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.integers(0, 3, n))
    images = torch.from_numpy(rng.uniform(0, 0.6, (n, *shape))).to(dtype)
    images[torch.arange(n), :, labels] += 0.4  # class k: row k is bright
    generators = [RunContext(seed=5).torch_generator("reference", i) for i in range(count)]
    with torch.random.fork_rng(devices=[]):
        networks = [SmallNetwork(shape, 3, g).to(dtype) for g in generators]
    return networks, images, labels, [list(reference._batches(n, g)) for g in generators]


def one_by_one(networks: list[SmallNetwork], images: Tensor, labels: Tensor, batches: list[list[Batch]]) -> None:
    for network, its in zip(networks, batches, strict=True):
        reference._train(network, images, labels, its)


def together(networks: list[SmallNetwork], images: Tensor, labels: Tensor, batches: list[list[Batch]]) -> None:
    train_side_by_side(networks, images, labels, batches, "cpu", LEARNING_RATE, WEIGHT_DECAY)


def largest_difference(a: list[SmallNetwork], b: list[SmallNetwork]) -> float:
    pairs = [
        (p, q)
        for m, n in zip(a, b, strict=True)
        for p, q in zip(m.state_dict().values(), n.state_dict().values(), strict=True)
    ]
    return max(float((p - q).abs().max()) for p, q in pairs)


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ((1, 8, 8), 61),  # 32 and 29
        ((3, 12, 10), 33),  # 32, and one image that no BatchNorm can do
        ((3, 4, 36), 34),  # three blocks, the last one not pooled; 32 and 2
        ((1, 3, 5), 32),  # the second block is not pooled
    ],
)
def test_the_same_networks_in_float64(shape: tuple[int, int, int], n: int) -> None:
    """All 25 epochs: statistics, the number of steps and weights."""
    alone = material(shape, n)
    one_by_one(*alone)
    beside = material(shape, n)
    untrained = largest_difference(alone[0], beside[0])
    together(*beside)
    assert untrained > 0.1
    assert largest_difference(alone[0], beside[0]) < OPERATION_32


def test_the_same_networks_in_float32_for_two_epochs() -> None:
    """Weights agree to the rounding of four steps.

    Biases of convolutions do not: BatchNorm takes them off again, so that their gradient is rounding alone, which AdamW
    blows up to whole steps; running means carry them. What they stand for cancels in the answers.
    """
    networks = []
    for train in (one_by_one, together):
        found, images, labels, batches = material((1, 8, 8), 61, torch.float32)
        train(found, images, labels, [its[:4] for its in batches])
        networks.append(found)
    for a, b in zip(*networks, strict=True):
        theirs = dict(b.named_parameters())
        for name, parameter in a.named_parameters():
            if not (name.startswith("convolutions") and name.endswith("bias")):
                torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=NETWORK_32)
        torch.testing.assert_close(a.train()(images), b.train()(images), rtol=0, atol=NETWORK_32)


def test_some_of_them_are_the_same_as_all() -> None:
    alone, beside = material((1, 8, 8), 40, count=1), material((1, 8, 8), 40)
    together(*alone)
    together(*beside)
    assert largest_difference(alone[0], beside[0][:1]) < OPERATION_32


class Recorded(TorchDispatchMode):
    """Notes every operator that a step runs, with shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), tuple(tuple(a.shape) for a in args if isinstance(a, Tensor))))
        return func(*args, **(kwargs or {}))


#: What a CUDA graph cannot record: the device's values read by the host, shapes that depend on values, tensors made of host data.
UNRECORDABLE = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "unique",
    "lift_fresh",
    "_to_copy",
    "equal.",
)


def test_a_step_can_be_recorded() -> None:
    """The same kernels every step, on tensors that stay where they are, and nothing that makes the host wait."""
    state = side_by_side._Together(*material((1, 8, 8), 61), "cpu", LEARNING_RATE, WEIGHT_DECAY, contextlib.nullcontext)
    places = [t.data_ptr() for t in state.state]
    seen = []
    for _ in range(3):
        with Recorded() as recorded:
            state.step(32)
        seen.append(recorded.calls)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) > 30
    assert not [name for name, _ in seen[0] if any(word in name for word in UNRECORDABLE)]
    assert [t.data_ptr() for t in state.state] == places
    assert int(state.state[3]) == 3


def test_what_makes_the_host_wait_is_noticed() -> None:
    with Recorded() as recorded:
        bool(torch.ones(1).sum() > 0)
    assert any(word in name for name, _ in recorded.calls for word in UNRECORDABLE)


def test_in_another_arithmetic() -> None:
    """As on a GPU: logits in bfloat16; the networks stay in float32 and learn what they learn alone."""
    images, labels = torch.from_numpy(FIT.images), torch.from_numpy(FIT.labels)

    def bfloat16(device: str) -> torch.autocast:
        return torch.autocast(device, torch.bfloat16, cache_enabled=False)

    found = []
    for arithmetic in (bfloat16, contextlib.nullcontext):
        generator = torch.Generator().manual_seed(1)
        networks = [SmallNetwork((1, SIDE, SIDE), CLASSES, generator) for _ in range(2)]
        batches = [list(reference._batches(len(labels), generator)) for _ in networks]
        train_side_by_side(networks, images, labels, batches, "cpu", LEARNING_RATE, WEIGHT_DECAY, arithmetic)
        found.append(networks)
    assert largest_difference(*found) > 1e-3
    for network in found[0]:
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        answers = network.eval()(torch.from_numpy(CHECK.images)).argmax(1).numpy()
        assert (answers == CHECK.labels).mean() > 0.95


@pytest.fixture
def side_by_side_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_side_by_side", lambda _: True)


@pytest.mark.usefixtures("side_by_side_on_cpu")
def test_references_trained_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(networks: Any, *rest: Any) -> None:
        asked.append(len(networks))
        train_side_by_side(networks, *rest)

    monkeypatch.setattr(reference, "train_side_by_side", counted)
    found = train_references(quadrant_subject(), FIT, CHECK, RunContext(), tmp_path)
    assert asked == [COUNT]
    monkeypatch.setattr(reference, "_side_by_side", lambda _: False)
    alone = train_references(quadrant_subject(), FIT, CHECK, RunContext())
    assert len(found) == len(alone) == COUNT
    for a, b in zip(found, alone, strict=True):
        assert a.image_shape == (1, SIDE, SIDE)
        assert a.classes == CLASSES
        np.testing.assert_allclose(a.predict(CHECK.images), b.predict(CHECK.images), rtol=TRAINED, atol=TRAINED)

    # Those that are kept are not trained again, and the one that is gone becomes the same.
    monkeypatch.setattr(reference, "_side_by_side", lambda _: True)
    (tmp_path / "reference-1.npz").unlink()
    again = train_references(quadrant_subject(), FIT, CHECK, RunContext(), tmp_path)
    assert asked == [COUNT, 1]
    for i, (a, b) in enumerate(zip(found, again, strict=True)):
        same = a.predict(CHECK.images).tobytes() == b.predict(CHECK.images).tobytes()
        assert same or i == 1
        np.testing.assert_allclose(a.predict(CHECK.images), b.predict(CHECK.images), rtol=TRAINED, atol=TRAINED)


@pytest.mark.usefixtures("side_by_side_on_cpu")
@pytest.mark.parametrize(("fits", "expected"), [(1, [3, 1, 1, 1]), (0, [3, 1])])
def test_too_little_memory_on_the_device(fits: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one on the device, and then on the CPU: the references are the same."""
    asked: list[int] = []

    def allocator(networks: Any, *rest: Any) -> None:
        asked.append(len(networks))
        if len(networks) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        train_side_by_side(networks, *rest)

    monkeypatch.setattr(reference, "train_side_by_side", allocator)
    monkeypatch.setattr(reference, "EPOCHS", 8)
    found = train_references(quadrant_subject(), FIT, CHECK, RunContext())
    assert len(found) == COUNT
    assert asked == expected
    monkeypatch.setattr(reference, "_side_by_side", lambda _: False)
    for a, b in zip(found, train_references(quadrant_subject(), FIT, CHECK, RunContext()), strict=True):
        np.testing.assert_allclose(a.predict(CHECK.images), b.predict(CHECK.images), rtol=TRAINED, atol=TRAINED)


@pytest.mark.usefixtures("side_by_side_on_cpu")
def test_memory_that_runs_out_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three fails: the first stays trained, the others are trained on the CPU, none twice."""
    asked: list[int] = []

    def allocator(networks: Any, *rest: Any) -> None:
        asked.append(len(networks))
        if len(asked) != 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        train_side_by_side(networks, *rest)

    monkeypatch.setattr(reference, "train_side_by_side", allocator)
    found = train_references(quadrant_subject(), FIT, CHECK, RunContext())
    assert asked == [3, 1, 1]
    for a in found:
        assert (a.predict(CHECK.images).argmax(1) == CHECK.labels).mean() > 0.95


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_recording_is_the_eager_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, in float64: replays against plain calls of the same step, and against the CPU."""

    def eager(step: Callable[[], None], *_: Any) -> Callable[[], None]:
        return step

    networks = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(side_by_side, "make_stepper", eager)
        found, images, labels, batches = material((3, 12, 10), 61)
        train_side_by_side(found, images, labels, batches, "cuda", LEARNING_RATE, WEIGHT_DECAY)
        networks.append(found)
    on_cpu = material((3, 12, 10), 61)
    one_by_one(*on_cpu)
    assert largest_difference(networks[0], networks[1]) < REORDERED_64
    assert largest_difference(networks[0], on_cpu[0]) < OPERATION_32
