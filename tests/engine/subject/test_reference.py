"""Reference networks: learned from the clean samples alone, the same bits every time, none where none can be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIDE, quadrant_images, quadrant_weights
from tolerances import NETWORK_32, SUM_32

from onnxspect.engine.run import RunContext, Silent
from onnxspect.engine.subject.reference import COUNT, _keep, _kept, _new, train_references
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

FIT, CHECK = quadrant_images(16, 0), quadrant_images(10, 1)


def subject(scale: float = 1.0) -> Subject:
    weights = scale * torch.from_numpy(quadrant_weights(2))
    return Subject(lambda x: x.flatten(1) @ weights, InputSpec(), (1, SIDE, SIDE), CLASSES, name="tiny")


@pytest.fixture(scope="module")
def references() -> list[Subject]:
    return train_references(subject(), FIT, CHECK, RunContext())


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.advances: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, task: str, detail: str = "") -> None:
        self.advances.append(f"{task}: {detail}")


def test_they_classify(references: list[Subject]) -> None:
    assert len(references) == COUNT
    unseen = quadrant_images(20, 7)
    for reference in references:
        assert (reference.classes, reference.image_shape) == (CLASSES, (1, SIDE, SIDE))
        assert (reference.predict(unseen.images).argmax(1) == unseen.labels).mean() > 0.95
        pixels = torch.full((2, 1, SIDE, SIDE), 0.5, requires_grad=True)
        (gradient,) = torch.autograd.grad(reference(pixels).square().sum(), [pixels])
        assert bool(torch.isfinite(gradient).all())
    a, b, *_ = (r.predict(unseen.images) for r in references)
    assert not np.allclose(a, b)


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "flip", "text", "other shapes", "other type", "bomb", "link", "fifo"]
)
def test_a_damaged_file_of_an_earlier_run_is_as_if_it_were_not_there(damage: str, tmp_path: Path) -> None:
    """A resumed scan must not end at what a full disk, or a stranger, left."""
    network = _new(subject(), torch.Generator().manual_seed(1))
    path = tmp_path / "reference-0.npz"
    _keep(network, path)
    assert _kept(path, subject()) is not None
    data = path.read_bytes()
    arrays = {k: v.numpy() for k, v in network.state_dict().items()}
    if damage in ("cut", "empty", "text"):
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"not at all"}[damage])
    elif damage == "flip":
        path.write_bytes(data[:500] + bytes([data[500] ^ 255]) + data[501:])
    elif damage == "other shapes":
        np.savez(path, **{k: np.zeros((2, 2), np.float32) for k in arrays})  # type: ignore[arg-type]
    elif damage == "other type":
        np.savez(path, **{k: np.array(["x"] * 3) for k in arrays})  # type: ignore[arg-type]
    elif damage == "bomb":
        np.savez_compressed(path, **{k: np.zeros((1 << 20, 4), np.float32) for k in arrays})  # type: ignore[arg-type]
    else:
        path.rename(tmp_path / "elsewhere")
        if damage == "link":
            path.symlink_to(tmp_path / "elsewhere")
        else:
            os.mkfifo(path)
    assert _kept(path, subject()) is None


def test_same_bits_whatever_the_global_state(references: list[Subject]) -> None:
    torch.manual_seed(4)
    again = train_references(subject(), FIT, CHECK, RunContext())
    for a, b in zip(references, again, strict=True):
        assert a.predict(CHECK.images).tobytes() == b.predict(CHECK.images).tobytes()


def test_kept_networks_are_found_again_and_are_the_same(references: list[Subject], tmp_path: Path) -> None:
    trained = train_references(subject(), FIT, CHECK, RunContext(), tmp_path)
    files = sorted(tmp_path.glob("reference-*.npz"))
    assert len(files) == COUNT
    times = [f.stat().st_mtime_ns for f in files]
    # Samples that would train other networks: what is kept is used, and nothing is trained or written again.
    kept = train_references(subject(), quadrant_images(16, 5), CHECK, RunContext(), tmp_path)
    assert [f.stat().st_mtime_ns for f in files] == times
    for a, b, c in zip(references, trained, kept, strict=True):
        assert a.predict(CHECK.images).tobytes() == b.predict(CHECK.images).tobytes()
        assert b.predict(CHECK.images).tobytes() == c.predict(CHECK.images).tobytes()


def test_global_random_state_is_not_moved() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    train_references(subject(), FIT, CHECK, RunContext())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_subjects_answers_play_no_part(references: list[Subject]) -> None:
    other = train_references(subject(scale=-3.0), FIT, CHECK, RunContext())
    assert references[0].predict(CHECK.images).tobytes() == other[0].predict(CHECK.images).tobytes()


def test_another_seed_is_another_network(references: list[Subject]) -> None:
    other = train_references(subject(), FIT, CHECK, RunContext(seed=1))
    assert not np.array_equal(references[0].predict(CHECK.images), other[0].predict(CHECK.images))


def test_folding_keeps_the_answers() -> None:
    """The BatchNorms are folded away: the network has none left, and its answers do not depend on the batch."""
    (reference, *_) = train_references(subject(), FIT, CHECK, RunContext(seed=2))
    whole = reference.predict(CHECK.images)
    np.testing.assert_allclose(reference.predict(CHECK.images, batch_size=1), whole, rtol=NETWORK_32, atol=SUM_32)
    assert isinstance(reference.module, torch.nn.Module)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in reference.module.modules())


def test_what_was_not_learned_is_no_reference() -> None:
    """Every label is another class's. (Shuffled ones would not do: of four classes a network gets two right by chance.)"""
    wrong = Samples(FIT.images, (FIT.labels + 1) % CLASSES)
    listener = Listener()
    assert train_references(subject(), wrong, CHECK, RunContext(observer=listener)) == []
    assert len(listener.advances) == COUNT
    assert any("no reference network learned" in n for n in listener.notices)


def test_too_little_to_learn_from() -> None:
    nobody = np.array([], np.int64)
    assert train_references(subject(), FIT, CHECK.take(nobody), RunContext()) == []
    one = FIT.take(np.flatnonzero(FIT.labels == 0))
    assert train_references(subject(), one, CHECK, RunContext()) == []
