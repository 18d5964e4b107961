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
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval
from torch.optim.adamw import adamw

from onnxspect.engine.run import RunContext
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.preprocessing import accuracy_floor
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject

#: Independent networks; the mean of their log statistics is the baseline.
COUNT = 3
EPOCHS = 25
BATCH = 32
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
#: Pixels by which training images are shifted at most, each way.
SHIFT = 2


def train_references(
    subject: Subject, fit: Samples, check: Samples, run: RunContext, folder: Path | None = None
) -> list[Subject]:
    """Small classifiers of the same classes, trained on clean samples alone.

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
    floor = accuracy_floor(check.labels, subject.classes)
    references, accuracies = [], []
    run.observer.start("reference networks", COUNT)
    for i in range(COUNT):
        kept = None if folder is None else folder / f"reference-{i}.npz"
        network = _kept(kept, subject) or _train(subject, fit, run.torch_generator("reference", i), kept)
        # Convolution and pooling run a quarter faster on a CPU in this layout.
        network = network.folded().to(subject.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
        reference = Subject(
            network, InputSpec(), subject.image_shape, subject.classes, subject.device, name=f"reference {i}"
        )
        accuracy = float((reference.predict(check.images).argmax(1) == check.labels).mean())
        accuracies.append(accuracy)
        if accuracy >= floor:
            references.append(reference)
        run.observer.advance("reference networks", f"accuracy {accuracy:.1%}")
    run.observer.finish("reference networks")
    if not references:
        run.observer.notice(
            f"no reference network learned these classes from {len(fit)} samples "
            f"(best accuracy {max(accuracies):.1%}): classes are compared with each other only"
        )
    return references


def _kept(path: Path | None, subject: Subject) -> _Network | None:
    """The network that an earlier run trained, or None."""
    if path is None or not path.is_file():
        return None
    with torch.random.fork_rng(devices=[]):
        network = _Network(subject.image_shape, subject.classes, torch.Generator())
    with np.load(path, allow_pickle=False) as archive:
        network.load_state_dict({k: torch.from_numpy(archive[k]) for k in archive.files})
    return network.eval().requires_grad_(False)


def _train(subject: Subject, fit: Samples, generator: torch.Generator, kept: Path | None) -> _Network:
    with torch.random.fork_rng(devices=[]):  # layers draw their first values from global state before we set them
        network = _Network(subject.image_shape, subject.classes, generator)
    images, labels = torch.from_numpy(fit.images), torch.from_numpy(fit.labels)
    parameters: list[Tensor] = list(network.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = [torch.tensor(0.0) for _ in parameters]
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            if len(rows) < 2:  # BatchNorm needs two
                continue
            shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
            loss = functional.cross_entropy(network(torch.roll(images[rows], shift, (2, 3))), labels[rows])
            with torch.no_grad():
                # The same bits as torch.optim.AdamW, whose class imports torch's compiler: 1.4 seconds of a quick scan.
                adamw(
                    parameters, list(torch.autograd.grad(loss, parameters)), first, second, [], steps, foreach=False,
                    amsgrad=False, maximize=False, beta1=0.9, beta2=0.999, eps=1e-8, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
                )  # fmt: skip
    if kept is not None:
        stream = io.BytesIO()
        np.savez(stream, **{k: v.numpy() for k, v in network.state_dict().items()})
        write_atomically(kept, stream.getvalue())
    return network.eval().requires_grad_(False)


class _Network(nn.Module):
    """Convolution, BatchNorm, ReLU, pooling until at most 8 by 8 are left (at least twice), then one linear layer."""

    def __init__(self, shape: tuple[int, int, int], classes: int, generator: torch.Generator) -> None:
        super().__init__()
        channels, height, width = shape
        blocks, side = 2, max(height, width) // 4
        while side > 8:
            blocks, side = blocks + 1, side // 2
        widths = [channels, 16, *[32] * (blocks - 1)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths[1:])
        self.eval()
        with torch.no_grad():
            features = self._features(torch.zeros(1, channels, height, width)).shape[1]
        self.head = nn.Linear(features, classes)
        with torch.no_grad():
            for parameter in self.parameters():  # torch's own initialisation draws from global state
                if parameter.ndim > 1:
                    bound = (1.0 / parameter[0].numel()) ** 0.5  # as nn.Conv2d and nn.Linear: U(-1/sqrt(fan_in), ...)
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
            for layer in (*self.convolutions, self.head):
                layer.bias.zero_()

    def folded(self) -> _Network:
        """The same function with every BatchNorm folded into the convolution before it: a quarter less to compute."""
        pairs = zip(self.convolutions, self.norms, strict=True)
        fused = [fuse_conv_bn_eval(cast(nn.Conv2d, c), cast(nn.BatchNorm2d, n)) for c, n in pairs]
        self.convolutions, self.norms = nn.ModuleList(fused), nn.ModuleList(nn.Identity() for _ in fused)
        return self.requires_grad_(False)

    def _features(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
            if min(x.shape[-2:]) >= 2:
                x = functional.max_pool2d(x, 2)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of pixels in [0, 1]."""
        return self.head(self._features(x))
