"""Searches side by side: the same results in the same order as one after the other, where a model can be shared and memory allows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, quadrant_images, quadrant_model, quadrant_subject, saved
from torch import nn

from onnxspect.engine.detectors.reverse_engineering import Climb
from onnxspect.engine.run import RunContext
from onnxspect.engine.search import search as search_module
from onnxspect.engine.search.common_embedding import Consensus
from onnxspect.engine.search.embedding import PIXELS, embed
from onnxspect.engine.search.perturbation import MaskPattern
from onnxspect.engine.search.search import SearchConfig, Unit, UnitResult, places_for, search
from onnxspect.engine.subject import memory
from onnxspect.engine.subject.memory import COPIES, CPU_BUDGET, PEAK, devices_of, searches_at_once
from onnxspect.engine.subject.reference import train_references
from onnxspect.engine.subject.subject import Subject

SAMPLES = quadrant_images(12)
CONFIG = SearchConfig(steps=60, samples=24, settle=20)
ALL = [(Unit(t),) for t in range(CLASSES)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny classifier, from a file."""
    return Subject.from_onnx(saved(quadrant_model(2), tmp_path_factory.mktemp("model") / "m.onnx"))


@pytest.fixture
def cores() -> Iterator[int]:
    """torch has three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def searched(subject: Subject, batches: list[tuple[Unit, ...]] = ALL) -> list[UnitResult]:
    return [r for rs in search(subject, SAMPLES, batches, MaskPattern(), CONFIG, RunContext(), "test") for r in rs]


def same(a: list[UnitResult], b: list[UnitResult]) -> None:
    assert [replace(r, trigger={}, seconds=0) for r in a] == [replace(r, trigger={}, seconds=0) for r in b]
    for one, other in zip(a, b, strict=True):
        assert all(np.array_equal(v, other.trigger[k]) for k, v in one.trigger.items())


def test_the_same_bits_on_one_core_and_on_three(subject: Subject) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = searched(subject)
        torch.set_num_threads(3)
        assert len(places_for(subject, CLASSES, 24)[0]) == 3
        started = time.perf_counter()
        together = searched(subject)
        same(together, alone)
        # What a search took is its share: three that run at once for a second took a third each.
        assert 0 < sum(r.seconds for r in together) <= time.perf_counter() - started
    finally:
        torch.set_num_threads(before)


def test_reference_networks_have_the_same_bits_too(subject: Subject) -> None:
    before, trained = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = train_references(subject, quadrant_images(20), SAMPLES, RunContext())
            trained.append([p for r in found for p in r.module.state_dict().values()])  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(before)
    assert trained[0]
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_where_a_cpu_searches(subject: Subject, cores: int) -> None:
    def places(of: Subject, batches: int = 9, images: int = 24, bound: bool = False) -> tuple[int, int]:
        found, threads = places_for(of, batches, images, bound)
        assert set(map(id, found)) == {id(of)}
        return len(found), threads

    assert places(subject) == (cores, 1)
    assert places(subject, batches=2) == (2, 1)
    assert places(subject, batches=1) == (1, 0)
    assert places(subject, bound=True) == (cores, 1)  # a tap of a graph is a graph of its own
    live = Subject.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), subject.image_shape)
    assert places(live) == (1, 0)
    large = replace(subject)
    vars(large)["kept_bytes"] = CPU_BUDGET // 24  # what one search may take
    assert places(large) == (1, 0)
    vars(large)["kept_bytes"] = CPU_BUDGET // 24 // 2 - 2**16
    assert places(large) == (2, 1)
    side = int(
        (PEAK * CPU_BUDGET / (24 * COPIES * 4 * 2.4)) ** 0.5
    )  # of pictures so large that two searches keep enough copies of them
    pictures = replace(subject, image_shape=(1, side, side))
    vars(pictures)["kept_bytes"] = 1
    assert places(pictures) == (2, 1)
    torch.set_num_threads(6)  # what is over goes to each
    assert places(subject, batches=2) == (2, 3)
    assert places(subject, batches=4) == (4, 1)


def test_a_reference_is_shared_but_not_under_a_hook(subject: Subject, cores: int) -> None:
    (reference, *_) = train_references(subject, quadrant_images(20), SAMPLES, RunContext())
    assert len(places_for(reference, 9, 24)[0]) == cores
    assert len(places_for(reference, 9, 24, bound=True)[0]) == 1


@pytest.mark.parametrize(("kept", "image"), [(0, 1), (10**5, 3072), (10**7, 150528), (CPU_BUDGET, 150528), (10**12, 4)])
def test_searches_side_by_side_take_no_more_than_one_large_one(kept: int, image: int) -> None:
    n = searches_at_once(kept, image, 48)
    assert n >= 1
    assert n == 1 or n * 48 * PEAK * kept <= PEAK * CPU_BUDGET


def test_the_gpus_that_cuda_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "another" if i == 2 else "one")
    assert devices_of("cuda") == ("cuda", "cuda:1", "cuda:3")
    assert devices_of("cuda:1") == ("cuda:1",)
    assert devices_of("cpu") == ("cpu",)


def test_a_share_of_all_gpus_is_each_ones() -> None:
    with memory.memory_share("cuda", 0.5, lambda *_: None):
        assert memory._planned_share("cuda:1") == 0.5
        with memory.memory_share("cuda:1", 0.25, lambda *_: None):
            assert (memory._planned_share("cuda:1"), memory._planned_share("cuda:2")) == (0.25, 0.5)
    assert memory._planned_share("cuda:1") == 1.0


def test_what_is_bound_to_one_gpu_stays_there(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Climb().bound
    assert Climb(labelled=torch.zeros(2, 3, 1, 8, 8)).bound
    assert Consensus(embed(subject, PIXELS)).bound
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "one")
    monkeypatch.setattr(Subject, "on", lambda self, device: replace(self, device=device))
    there = replace(subject, device="cuda")
    assert [p.device for p in places_for(there, 9, 24)[0]] == ["cuda", "cuda:1"]
    assert [p.device for p in places_for(there, 1, 24)[0]] == ["cuda"]
    assert [p.device for p in places_for(there, 9, 24, bound=True)[0]] == ["cuda"]
    assert [p.device for p in places_for(replace(subject, device="cuda:1"), 9, 24)[0]] == ["cuda:1"]


def test_a_gpu_that_others_have_filled_is_left_out(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def on(self: Subject, device: str) -> Subject:
        if device == "cuda:1":
            raise torch.OutOfMemoryError("emulated")
        return replace(self, device=device)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "one")
    monkeypatch.setattr(Subject, "on", on)
    assert [p.device for p in places_for(replace(subject, device="cuda"), 9, 24)[0]] == ["cuda", "cuda:2"]


def _on_two_devices(monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
    """A machine of two devices, emulated: the second holds a copy of the subject."""
    made: list[Subject] = []

    def places(subject: Subject, *_: object, **__: object) -> tuple[tuple[Subject, ...], int]:
        copy = subject.on("cpu")
        assert copy is not None
        made.append(copy)
        return (subject, copy), 0

    monkeypatch.setattr(search_module, "places_for", places)
    return made


def test_the_same_bits_on_two_devices(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = searched(subject)
    made = _on_two_devices(monkeypatch)
    same(searched(subject), alone)
    assert made
    assert made[0].module is not subject.module


def test_a_device_that_runs_out_of_memory_halves_the_batches(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever batch it is: every unit is searched once, in order, and the search goes on with smaller ones."""
    _on_two_devices(monkeypatch)
    monkeypatch.setattr(memory, "_share", {})
    plain = search_module._searched
    batches = [tuple(Unit(t, None, str(i)) for t in range(CLASSES)) for i in range(3)]

    def full(subject: Subject, units: tuple[Unit, ...], *rest: object) -> list[UnitResult]:
        if len(units) > CLASSES // 2 and units[0].key != batches[0][0].key:
            raise torch.OutOfMemoryError("emulated")
        return plain(subject, units, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(search_module, "_searched", full)
    found = searched(subject, batches)
    assert [r.unit.key for r in found] == [u.key for b in batches for u in b]


def test_the_subject_of_a_plain_function_is_not_copied() -> None:
    assert quadrant_subject(2).on("cpu") is None
