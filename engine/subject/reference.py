"""Reference networks: what is normal for these classes, were there no backdoor?

Classes differ by nature: a dozen dark pixels make a "bag" of almost any Fashion-MNIST image, for *every* classifier of
the data, while no small patch makes a sneaker. An outlier test among the classes of one model takes the first for a
backdoor, and overlooks a backdoor in the second. So a few small networks are trained from scratch on the given clean
samples alone, which the attacker never touched, and the detector runs on them as on the subject. A class is then
judged by how its statistic compares with *its own* on the references.

Measured on the shipped pair (Fashion-MNIST, 500 samples to train on): the log norms of a clean model correlate with
those of a reference at 0.7 to 0.9. Without references the clean model's class "bag" lies 3.7 deviations below the others
and the planted trigger only 3.3; relative to the references the clean model's most extreme class lies at 1.7, the
planted trigger above 5.

The networks are plain (convolution, BatchNorm, ReLU) and lightly regularised on purpose: with GroupNorm, label smoothing
and a one-cycle schedule they were as accurate, but the correlation fell to 0.5.

On a CPU they are trained one after the other. On a GPU all of them are trained at once (side_by_side.py), on the same
draws: the networks are the same up to rounding, which training amplifies.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.adamw import adamw

from onnxspect.converters.sandbox.safe_open import read_beneath
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.null_model import FEWEST_CLASSES
from onnxspect.engine.readers import npz
from onnxspect.engine.run import RunContext
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.preprocessing import accuracy_floor
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.side_by_side import BETA1, BETA2, EPSILON, Batch, train_side_by_side
from onnxspect.engine.subject.small_network import SmallNetwork
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.workers import in_order

#: As observers are told of it.
TRAINING = "reference networks"
#: Independent networks; the mean of their log statistics is the baseline. Of few classes, which are compared with the references
#: alone (judge/few_classes.py), more: each class has but that many values to be compared with.
COUNT = 3
COUNT_OF_FEW = 8
EPOCHS = 25
BATCH = 32
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
#: Pixels by which training images are shifted at most, each way.
SHIFT = 2
#: With fewer images a class than this in the mean, none is trained: it would be near chance, and the time is better spent.
#: History: docs/decisions.md.
FEWEST_OF_EACH = 3
#: A kept network, at most, in bytes: one of a thousand classes takes a million.
_MOST_BYTES = 256 << 20


def train_references(
    subject: Subject, fit: Samples, check: Samples, run: RunContext, folder: Path | None = None
) -> list[Subject]:
    """Small classifiers of the same classes, trained on clean samples alone, on the subject's device.

    Args:
        subject: gives image shape, number of classes and device; its weights and answers are not used.
        fit: clean samples to train on.
        check: other clean samples; a network that is near chance on them is no reference.
        run: seed and observer.
        folder: where trained networks are kept and found again; whoever calls sees to it that a folder belongs to one
            set of samples and one seed.

    Returns:
        those that learned to classify; perhaps none, where samples are few.
    """
    if not len(check) or len(np.unique(fit.labels)) < 2:
        return []
    if not can_train(subject, fit):
        run.observer.notice(
            f"{len(fit)} samples of {subject.classes} classes are too few to train reference networks on: "
            "classes are compared with each other only"
        )
        return []
    floor = accuracy_floor(check.labels, subject.classes)
    references, accuracies = [], []
    run.observer.start(TRAINING, count(subject.classes))
    for i, network in enumerate(_networks(subject, fit, run, folder)):
        # Convolution and pooling run a quarter faster on a CPU in this layout.
        folded = network.folded().to(subject.device)
        folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
        reference = Subject(
            folded, InputSpec(), subject.image_shape, subject.classes, subject.device, name=f"reference {i}"
        )
        accuracy = reference.accuracy(check.images, check.labels)
        accuracies.append(accuracy)
        if accuracy >= floor:
            references.append(reference)
        run.observer.advance(TRAINING, f"accuracy {accuracy:.1%}")
    run.observer.finish(TRAINING)
    if not references:
        run.observer.notice(
            f"no reference network learned these classes from {len(fit)} samples "
            f"(best accuracy {max(accuracies):.1%}): classes are compared with each other only"
        )
    return references


def count(classes: int) -> int:
    """How many reference networks a model of so many classes gets."""
    return COUNT if classes >= FEWEST_CLASSES else COUNT_OF_FEW


def can_train(subject: Subject, fit: Samples) -> bool:
    """Whether there are enough images of enough classes to train a network on."""
    return len(np.unique(fit.labels)) >= 2 and len(fit) >= FEWEST_OF_EACH * subject.classes


def untrained(subject: Subject) -> Subject:
    """A network such as `train_references` trains, before any training: as fast as these, and as large."""
    network = _new(subject, torch.Generator().manual_seed(0)).eval().requires_grad_(False).folded().to(subject.device)
    return Subject(
        network, InputSpec(), subject.image_shape, subject.classes, subject.device, name="a reference network"
    )


def training_passes(images: int, classes: int) -> float:
    """Passes of one image that training all of them takes, on `images` images of so many classes."""
    return float(count(classes) * EPOCHS * images)


def _networks(subject: Subject, fit: Samples, run: RunContext, folder: Path | None) -> Iterator[SmallNetwork]:
    """The trained networks, on the CPU, in evaluation mode: found in the folder, or trained and kept there."""
    wanted = count(subject.classes)
    files = [None if folder is None else folder / f"reference-{i}.npz" for i in range(wanted)]
    networks = {i: found for i, file in enumerate(files) if (found := _kept(file, subject)) is not None}
    missing = [i for i in range(wanted) if i not in networks]
    trained = _trained(subject, fit, [run.torch_generator("reference", i) for i in missing])
    for i in range(wanted):
        if i not in networks:
            networks[i] = next(trained)
            _keep(networks[i], files[i])
        yield networks[i].eval().requires_grad_(False)


def _side_by_side(device: str) -> bool:
    """Whether all networks are trained as one: a core of a CPU has enough to do with one of them."""
    return device != "cpu"


def _kept(path: Path | None, subject: Subject) -> SmallNetwork | None:
    """The network that an earlier run trained; None where there is none, or its file is damaged."""
    if path is None or not path.is_file():
        return None
    network = _new(subject, torch.Generator())
    wanted = network.state_dict()
    try:
        data = read_beneath(path.parent, path.name, _MOST_BYTES).data
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # stored as they are: one that unpacks to more is not ours
            stored = sum(i.file_size for i in archive.infolist() if i.compress_type == zipfile.ZIP_STORED)
        if stored > len(data):
            return None
        values = {k: torch.from_numpy(v) for k, v in npz.arrays(io.BytesIO(data), path.name).items()}
        if any(v.shape != wanted[k].shape or v.dtype != wanted[k].dtype for k, v in values.items()):
            return None
        network.load_state_dict(values)
    except (
        OnnxspectError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        zipfile.BadZipFile,
    ):
        return None  # cut short or damaged: it is trained again, as if the run had been killed before
    return network


def _keep(network: SmallNetwork, path: Path | None) -> None:
    if path is not None:
        stream = io.BytesIO()
        np.savez(stream, **{k: v.numpy() for k, v in network.state_dict().items()})
        write_atomically(path, stream.getvalue())


def _new(subject: Subject, generator: torch.Generator) -> SmallNetwork:
    with torch.random.fork_rng(devices=[]):  # layers draw their first values from global state before we set them
        return SmallNetwork(subject.image_shape, subject.classes, generator)


def _batches(n: int, generator: torch.Generator) -> Iterator[Batch]:
    """The training steps of one network on `n` images, drawn as they are asked for."""
    for _ in range(EPOCHS):
        for rows in torch.randperm(n, generator=generator).split(BATCH):
            if len(rows) < 2:  # BatchNorm needs two
                continue
            down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
            yield rows, (down, right)


def _trained(subject: Subject, fit: Samples, generators: Sequence[torch.Generator]) -> Iterator[SmallNetwork]:
    """One new network a generator, in that order. On a GPU they are trained as one, where memory does not do one by one, and then on the
    CPU; there each has a thread of its own.

    Training only searches: `train_side_by_side` takes the numerics policy's arithmetic for that. What it led to is judged
    (`train_references` measures the accuracy of the folded network).
    """
    networks = [_new(subject, g) for g in generators]
    images, labels = torch.from_numpy(fit.images), torch.from_numpy(fit.labels)
    left: list[tuple[SmallNetwork, Iterable[Batch]]] = [
        (network, _batches(len(labels), g)) for network, g in zip(networks, generators, strict=True)
    ]
    if _side_by_side(subject.device):
        waiting = [(network, list(batches)) for network, batches in left]
        for at_once in (len(waiting), 1):
            while waiting:
                some, theirs = zip(*waiting[:at_once], strict=True)
                try:
                    train_side_by_side(some, images, labels, theirs, subject.device, LEARNING_RATE, WEIGHT_DECAY)
                except torch.OutOfMemoryError:
                    break
                waiting = waiting[at_once:]
        left = list(waiting)
    yield from networks[: len(networks) - len(left)]

    def train(_: None, one: tuple[SmallNetwork, Iterable[Batch]]) -> SmallNetwork:
        network, its = one
        _train(network, images, labels, its)
        return network

    cores = torch.get_num_threads()
    places = max(1, min(cores, len(left)))
    yield from in_order(train, left, (None,) * places, cores // places)


def _train(network: SmallNetwork, images: Tensor, labels: Tensor, batches: Iterable[Batch]) -> None:
    parameters: list[Tensor] = list(network.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = [torch.tensor(0.0) for _ in parameters]
    network.train()
    for rows, shift in batches:
        loss = functional.cross_entropy(network(torch.roll(images[rows], shift, (2, 3))), labels[rows])
        with torch.no_grad():
            # The same bits as torch.optim.AdamW, whose class imports torch's compiler: 1.4 seconds of a quick scan.
            adamw(
                parameters, list(torch.autograd.grad(loss, parameters)), first, second, [], steps, foreach=False,
                amsgrad=False, maximize=False, beta1=BETA1, beta2=BETA2, eps=EPSILON, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
            )  # fmt: skip
