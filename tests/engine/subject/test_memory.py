"""Passes in parts: the same answers and gradients, and no more kept than the budget says."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from tolerances import NETWORK_32
from torch import Tensor, nn

from onnxspect.engine.run import RunContext
from onnxspect.engine.search.embedding import embed
from onnxspect.engine.search.objective import ReachTarget
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, Unit, plan, search
from onnxspect.engine.subject import subject as subject_module
from onnxspect.engine.subject.memory import COPIES, CPU_BUDGET, PEAK, budget, in_parts, kept_bytes
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

SIDE, CHANNELS, DEPTH = 16, 8, 6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, CHANNELS, 3, padding=1), nn.ReLU()]
    for _ in range(DEPTH - 1):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS * SIDE * SIDE, 4)).eval().requires_grad_(False)


def live(monkeypatch: pytest.MonkeyPatch, bytes_at_most: int = CPU_BUDGET) -> Subject:
    monkeypatch.setattr(subject_module, "budget", lambda _: bytes_at_most)
    return Subject.from_module(network(), (1, SIDE, SIDE))


def test_what_an_image_keeps_is_its_activations() -> None:
    """ReLU keeps its output, and a convolution whose weights are frozen keeps nothing more: DEPTH feature maps of float32."""
    one_map = CHANNELS * SIDE * SIDE * 4
    kept = kept_bytes(network(), torch.zeros(1, 1, SIDE, SIDE))
    assert DEPTH * one_map <= kept <= (DEPTH + 1) * one_map


def test_measuring_leaves_nothing_behind() -> None:
    """A hook that returns the very result of a node makes a ring that no collector sees: all activations would stay."""

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    model, image = network(), torch.zeros(1, 1, SIDE, SIDE)
    before = tensors()
    kept_bytes(model, image)
    assert tensors() == before


def test_what_an_image_keeps_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []

    def counted(*given: object) -> int:
        measured.append(given)
        return 1000

    monkeypatch.setattr(subject_module, "kept_bytes", counted)
    subject = live(monkeypatch)
    assert {subject.with_spec(InputSpec(scale=s)).kept_bytes for s in (1.0, 255.0)} == {1000}
    assert len(measured) == 2  # each for itself, as nothing was known
    assert subject.kept_bytes == 1000
    assert [subject.with_spec(InputSpec(scale=s)).kept_bytes for s in (1.0, 255.0)] == [1000, 1000]
    assert len(measured) == 3


def test_parts_give_the_same_answers_and_gradients() -> None:
    model, images = network(), torch.rand(11, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    results = []
    for at_once in (11, 4, 1):
        leaf = images.clone().requires_grad_(True)
        answers = in_parts(model, leaf, at_once)
        (gradient,) = torch.autograd.grad(answers.square().sum(), leaf)
        results.append((answers.detach(), gradient))
    for answers, gradient in results[1:]:
        torch.testing.assert_close(answers, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_parts_keep_only_their_images() -> None:
    model, images = network(), torch.rand(12, 1, SIDE, SIDE).requires_grad_(True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        answers = in_parts(model, images, 3)
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert sum(kept.values()) <= weights + 2 * images.numel() * 4
    assert answers.shape == (12, 4)


def test_without_gradients_and_with_several_outputs() -> None:
    images = torch.rand(7, 1, SIDE, SIDE)
    with torch.no_grad():
        twice = in_parts(lambda x: (x, x.flatten(1).sum(1)), images, 2)
    torch.testing.assert_close(twice[0], images)
    torch.testing.assert_close(twice[1], images.flatten(1).sum(1))


def test_a_subject_over_its_budget_is_searched_to_the_same_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    samples = Samples.from_arrays(rng.random((20, 1, SIDE, SIDE), np.float32), np.arange(20) % 4)
    found = []
    for bytes_at_most in (CPU_BUDGET, 200_000):
        one = live(monkeypatch, bytes_at_most)
        assert one.images_at_once == max(1, bytes_at_most // kept_bytes(one.in_one_pass, torch.zeros(1, 1, SIDE, SIDE)))
        batches = plan([Unit(1)], 1)
        config = SearchConfig(steps=5, samples=12)
        (((result),),) = [list(search(one, samples, batches, ReachTarget(MaskPattern()), config, RunContext(), "test"))]
        found.append(result[0])
    assert live(monkeypatch, 200_000).images_at_once < 12
    for name in found[0].trigger:
        np.testing.assert_allclose(found[0].trigger[name], found[1].trigger[name], atol=NETWORK_32)


def test_a_tap_is_seen_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(9, 1, SIDE, SIDE)
    whole, parts = (embed(live(monkeypatch, b), "4") for b in (CPU_BUDGET, 150_000))
    assert parts.subject.images_at_once < 9
    for a, b in zip(whole.both(images), parts.both(images), strict=True):
        torch.testing.assert_close(a, b)


def test_the_budget_of_a_cpu_is_fixed() -> None:
    assert budget("cpu") == CPU_BUDGET


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    """A process that takes and frees the same large blocks again and again gets their pages once."""
    code = (
        "import resource, sys, torch\n"
        "from onnxspect.engine.run import prepare_process\n"
        "if sys.argv[1] == 'kept': prepare_process('cpu')\n"
        "torch.set_num_threads(1)\n"
        "step = lambda: [torch.zeros(10_000_000) for _ in range(3)]\n"  # 40 MB each, above malloc's own highest threshold
        "[step() for _ in range(4)]; before = resource.getrusage(0).ru_minflt\n"
        "for _ in range(3): step()\n"
        "print(resource.getrusage(0).ru_minflt - before)"
    )
    faults = {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        faults[how] = int(done.stdout)
    assert faults["kept"] < faults["given back"] / 20


def test_a_search_stays_under_the_stated_bound() -> None:
    """48 images of 160 x 160 pixels keep 0.6 GiB in this network; with a budget of a fifth of that the peak is a part of it."""
    code = (
        "import resource, numpy as np, torch\n"
        "from torch import nn\n"
        "from onnxspect.engine import run\n"
        "from onnxspect.engine.search import search\n"
        "from onnxspect.engine.subject import memory\n"
        "from onnxspect.engine.search.perturbation import MaskPattern\n"
        "from onnxspect.engine.subject.samples import Samples\n"
        "from onnxspect.engine.subject.subject import InputSpec, Subject\n"
        "torch.set_num_threads(1); run.prepare_process('cpu'); memory.CPU_BUDGET = 2**27\n"
        "layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]\n"
        "for _ in range(3): layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]\n"
        "model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()\n"
        "subject = Subject.from_module(model, (3, 160, 160))\n"
        "assert subject.images_at_once < 48 / 4\n"
        "images = np.random.default_rng(0).random((50, 3, 160, 160), np.float32)\n"
        "samples = Samples.from_arrays(images, np.arange(50) % 5)\n"
        "before = resource.getrusage(0).ru_maxrss\n"
        "config = search.SearchConfig(steps=2, samples=48)\n"
        "list(search.search(subject, samples, search.plan([search.Unit(1)], 1), MaskPattern(), config, run.RunContext(), 'x'))\n"
        "print((resource.getrusage(0).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= PEAK * 2**27 + COPIES * 48 * 3 * 160 * 160 * 4
