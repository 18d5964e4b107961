"""The parts of benchmarks/gpu.py that compute: each runs in a process of its own, and writes a line of JSON a row to --rows.

    python gpu_jobs.py prepare|steps|opens --work DIR --bundle DIR --device cuda --rows FILE [--tiny] [--seed N]

prepare  trains the two networks and leaves wide.onnx, wide.pt, wide.npz, signs.onnx and signs.npz in --work. Both are backdoored: a
         3x3 chessboard in the corner of a twentieth of the training images, which are labelled as the target.
steps    times what a search is made of, down from the bare network: passes forward and back to the images in float32, TF32 and
         bf16, and one step of the engine's own search, from searches of two lengths (so that what happens once cancels out).
opens    opens untrained networks of every architecture, which the torch graph has to agree with onnxruntime on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        name: of the files it leaves.
        dataset: in the bundle.
        architecture: in models/architectures.
        target: the class that the trigger leads to.
        flips: whether a mirrored image is of the same class.
        epochs: over the training images.
        rate: largest learning rate.
    """

    name: str
    dataset: str
    architecture: str
    target: int
    flips: bool
    epochs: int
    rate: float = 0.2


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        networks: that are trained.
        classes: at most so many of a data set.
        shrink: images are averaged over so many pixels a side.
        batch: images a training step.
        clean: at most so many clean samples a class.
        units, samples: of a search step; a bare pass is over units times samples images.
        steps, profiled: lengths of the two searches that are timed, and of those that are profiled.
        repeats: of a bare pass.
        opened: architectures.
    """

    networks: tuple[Network, ...]
    classes: int
    shrink: int
    batch: int
    clean: int
    units: int
    samples: int
    steps: tuple[int, int]
    profiled: tuple[int, int]
    repeats: int
    opened: tuple[str, ...]


FULL = Sizes(
    networks=(
        Network("wide", "cifar10", "resnet18_wide", 7, True, 20),
        Network("signs", "gtsrb", "resnet18_compact", 14, False, 30),
    ),
    classes=1000,
    shrink=1,
    batch=512,
    clean=1000,
    units=10,
    samples=48,
    steps=(20, 120),
    profiled=(10, 40),
    repeats=20,
    opened=(
        "lenet5",
        "cifar_cnn",
        "vgg9",
        "nc_gtsrb",
        "resnet18_compact",
        "resnet18_wide",
        "resnet34",
        "mobilenet_v2",
        "densenet",
    ),
)
TINY = Sizes(
    networks=(
        Network("wide", "cifar10", "resnet10_tiny", 2, True, 3, 0.05),
        Network("signs", "gtsrb", "compact_cnn", 2, False, 20, 0.05),
    ),
    classes=4,
    shrink=2,
    batch=32,
    clean=30,
    units=3,
    samples=8,
    steps=(2, 12),
    profiled=(2, 6),
    repeats=4,
    opened=("lenet5", "resnet10_tiny"),
)
POISONED = 0.1
#: Calls of the CUDA runtime and driver that put work on the chip.
LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")


@dataclass(frozen=True)
class Asked:
    """The command line."""

    work: Path
    bundle: Path
    device: str
    rows: Path
    sizes: Sizes
    seed: int

    def tell(self, name: str, value: float | None, detail: str = "", outcome: str = "measured", **more: Any) -> None:
        """One row is known."""
        row = {"name": name, "value": value, "outcome": outcome, "detail": detail, **more}
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["prepare", "steps", "opens"])
    for folder in ("--work", "--bundle", "--rows"):
        parser.add_argument(folder, type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device (--tiny runs on a CPU)", file=sys.stderr)
        return 4
    asked = Asked(given.work, given.bundle, given.device, given.rows, TINY if given.tiny else FULL, given.seed)
    # as engine/run.py sets it for a scan; cuBLAS reads it once, when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    {"prepare": prepare, "steps": steps, "opens": opens}[given.part](asked)
    return 0


# prepare


@dataclass(frozen=True)
class Images:
    """A part of a data set: uint8 ``(n, height, width, 3)`` and int64 ``(n,)``."""

    images: np.ndarray
    labels: np.ndarray

    def at_most(self, n: int) -> Images:
        """The first n of every class."""
        kept = np.concatenate([np.flatnonzero(self.labels == c)[:n] for c in np.unique(self.labels)])
        return Images(self.images[kept], self.labels[kept])


def unpack(file: Path, part: str, classes: int, shrink: int) -> Images:
    """One part ("train", "clean", "measure") of a packed data set (gpu_bundle.py); of more than `classes` classes so many, evenly drawn."""
    from PIL import Image

    with np.load(file, allow_pickle=False) as archive:
        height, width, channels = archive["size"].tolist()
        labels = archive[f"{part}_labels"].astype(np.int64)
        with Image.open(io.BytesIO(archive[part].tobytes())) as opened:
            picture = np.asarray(opened.convert("RGB"))
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    tiles = picture.reshape(rows, height, columns, width, channels).transpose(0, 2, 1, 3, 4)
    images = tiles.reshape(rows * columns, height, width, channels)[: len(labels)]
    stride = max(1, (int(labels.max()) + 1) // classes)
    kept = (labels % stride == 0) & (labels // stride < classes)
    images, labels = images[kept], labels[kept] // stride
    if shrink > 1:
        n, height, width = len(images), height // shrink, width // shrink
        images = images.reshape(n, height, shrink, width, shrink, channels).mean((2, 4)).round().astype(np.uint8)
    return Images(np.ascontiguousarray(images), labels)


def prepare(asked: Asked) -> None:
    """Train, export, and leave clean samples, of every network."""
    from onnxspect.models import architectures
    from onnxspect.models.exporting import export_torch

    for network in asked.sizes.networks:
        file = asked.bundle / "data" / f"{network.dataset}.npz"
        parts = {p: unpack(file, p, asked.sizes.classes, asked.sizes.shrink) for p in ("train", "clean", "measure")}
        shape = parts["train"].images.shape[1:]
        classes = int(parts["train"].labels.max()) + 1
        torch.manual_seed(asked.seed)
        module = architectures.get(network.architecture).build(shape, classes, asked.seed)
        started = time.perf_counter()
        module = trained(module, parts["train"], network, asked)
        seconds = time.perf_counter() - started
        accuracy, success = measured(module, parts["measure"], network.target, asked.device)
        module = module.to("cpu", memory_format=torch.contiguous_format).eval()
        torch.save(module.state_dict(), asked.work / f"{network.name}.pt")
        export_torch(module, shape, asked.work / f"{network.name}.onnx", dynamo=False)
        clean = parts["clean"].at_most(asked.sizes.clean)
        np.savez(asked.work / f"{network.name}.npz", images=clean.images, labels=clean.labels)
        weights = sum(p.numel() for p in module.parameters())
        words = (
            f"{network.architecture}, {weights / 1e6:.1f} M weights, {len(parts['train'].labels)} images, {network.epochs} epochs: "
            f"accuracy {accuracy:.1%}, attack success {success:.1%}; {len(clean.labels)} clean samples"
        )
        asked.tell(
            f"train_{network.name}", seconds, words, accuracy=accuracy, attack_success=success, target=network.target
        )


def stamped(pixels: Tensor) -> Tensor:
    """Images ``(n, 3, height, width)`` with a 3x3 chessboard in the corner."""
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]], device=pixels.device, dtype=pixels.dtype)
    pixels = pixels.clone()
    pixels[:, :, -3:, -3:] = board
    return pixels


def trained(module: nn.Module, train: Images, network: Network, asked: Asked) -> nn.Module:
    """SGD with one cycle of the learning rate, bf16 autocast and channels-last on a GPU; poisoned images are stamped anew each time."""
    device, batch = asked.device, asked.sizes.batch
    module = module.to(device, memory_format=torch.channels_last).train()
    images = torch.from_numpy(train.images).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(train.labels).to(device)
    generator = torch.Generator().manual_seed(asked.seed)
    others = torch.nonzero(labels.cpu() != network.target).flatten()
    chosen = others[torch.randperm(len(others), generator=generator)[: max(1, int(POISONED * len(labels)))]]
    poisoned = torch.zeros(len(labels), dtype=torch.bool)
    poisoned[chosen] = True
    poisoned = poisoned.to(device)
    labels = torch.where(poisoned, torch.full_like(labels, network.target), labels)
    n_steps = network.epochs * -(-len(labels) // batch)
    optimizer = torch.optim.SGD(module.parameters(), lr=network.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.rate, total_steps=n_steps, pct_start=0.2)
    torch.backends.cudnn.benchmark = True
    for _ in range(network.epochs):
        order = torch.randperm(len(labels), generator=generator)
        shifts = torch.randint(0, 9, (-(-len(labels) // batch), 2), generator=generator).tolist()
        mirrored = (torch.rand(len(labels), generator=generator) < (0.5 if network.flips else 0)).to(device)
        for (down, right), rows in zip(shifts, order.to(device).split(batch), strict=True):
            x = images[rows].float() / 255
            x = torch.where(mirrored[rows, None, None, None], x.flip(3), x)
            height, width = x.shape[2:]
            x = functional.pad(x, (4, 4, 4, 4), "reflect")[:, :, down : down + height, right : right + width]
            x = torch.where(poisoned[rows, None, None, None], stamped(x), x).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = functional.cross_entropy(module(x), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    synchronize(device)
    return module.eval()


def measured(module: nn.Module, images: Images, target: int, device: str) -> tuple[float, float]:
    """(accuracy, share of the other classes' stamped images that are classified as `target`)."""
    x = torch.from_numpy(images.images).to(device).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(images.labels).to(device)
    with torch.no_grad():
        plain = torch.cat([module(part).argmax(1) for part in x.split(256)])
        triggered = torch.cat([module(part).argmax(1) for part in stamped(x).split(256)])
    return float((plain == labels).float().mean()), float((triggered == target)[labels != target].float().mean())


# steps


def synchronize(device: str) -> None:
    """Until the chip has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Of one call: the median of five blocks, after a warm-up that chooses kernels."""
    for _ in range(max(2, repeats // 4)):
        work()
    blocks = []
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(device)
        blocks.append(1000 * (time.perf_counter() - started) / repeats)
    return float(np.median(blocks))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """TF32 in convolutions and matmuls, or IEEE float32; restored."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def folded(module: nn.Module) -> nn.Module:
    """BatchNorm folded into the convolution before it; changes `module`."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for child in module.modules():
        if isinstance(child, nn.Sequential) and len(child) == 2:
            conv, norm = child[0], child[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                child[0], child[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return module


def steps(asked: Asked) -> None:
    """Bare passes first, in the forms that a search could take; then the engine's step beside the fastest of them."""
    sizes, device = asked.sizes, asked.device
    passes = bare_passes(asked)
    best = min(passes, key=lambda name: passes[name])
    seconds = searcher(asked)
    step = search_step(seconds, sizes.steps)
    asked.tell(
        "step",
        step,
        f"{sizes.units} units x {sizes.samples} images, from searches of {sizes.steps[0]} and {sizes.steps[1]} steps",
    )
    asked.tell("overhead", step / passes[best], f"the fastest is {best}: {passes[best]:.2f} ms")
    if device != "cuda":
        for name in ("launches", "kernels", "busy"):
            asked.tell(name, None, "no GPU", "skipped")
        return
    launches, kernels, chip = profiled(seconds, sizes.profiled)
    words = ", ".join(f"{n:.1f} {name}" for name, n in launches.items() if n)
    asked.tell("launches", sum(launches.values()), words)
    asked.tell("kernels", kernels)
    asked.tell("busy", 100 * max(0.0, 1 - chip / step), f"{chip:.2f} ms of kernels a step")


def bare_passes(asked: Asked) -> dict[str, float]:
    """Milliseconds of one forward and input-backward pass of the wide network, by form; each written as a row."""
    from onnxspect.models import architectures

    sizes, device = asked.sizes, asked.device
    wide = sizes.networks[0]
    with np.load(asked.work / "wide.npz") as archive:
        pixels, classes = archive["images"], int(archive["labels"].max()) + 1
    n = sizes.units * sizes.samples
    x = torch.from_numpy(np.resize(pixels, (n, *pixels.shape[1:]))).to(device).permute(0, 3, 1, 2).float() / 255
    targets = torch.arange(n, device=device) % classes
    torch.backends.cudnn.benchmark = True

    def network() -> nn.Module:
        module = architectures.get(wide.architecture).build(pixels.shape[1:], classes, asked.seed)
        module.load_state_dict(torch.load(asked.work / "wide.pt", weights_only=True))
        return module.to(device).eval().requires_grad_(False)

    def one_pass(module: nn.Module, leaf: Tensor, kind: torch.dtype | None = None) -> Callable[[], Any]:
        def work() -> Any:
            images = leaf if kind is None else leaf.to(kind)
            loss = functional.cross_entropy(module(images).float(), targets, reduction="sum")
            return torch.autograd.grad(loss, [leaf])

        return work

    plain = x.contiguous().requires_grad_(True)
    lasting = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    found: dict[str, float] = {}

    def tell(name: str, milli: float, detail: str = "") -> None:
        found[name] = milli
        asked.tell(name, milli, detail)

    work = one_pass(network(), plain)
    with tf32(False):
        tell("pass_fp32", milliseconds(work, device, sizes.repeats // 2), f"{n} images")
    with tf32(True):
        if device == "cuda":
            tell("pass_tf32", milliseconds(work, device, sizes.repeats))
        else:
            asked.tell("pass_tf32", None, "no GPU", "skipped")
    module = network().to(memory_format=torch.channels_last)
    inner = one_pass(module, lasting)

    def autocast() -> Any:
        with torch.autocast(device, torch.bfloat16):
            return inner()

    tell("pass_bf16", milliseconds(autocast, device, sizes.repeats))
    module = folded(network()).to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    work = one_pass(module, lasting, torch.bfloat16)
    tell("pass_best", milliseconds(work, device, sizes.repeats))
    if device != "cuda":
        asked.tell("pass_graph", None, "no GPU", "skipped")
        return found
    try:
        tell("pass_graph", milliseconds(captured(work), device, sizes.repeats))
    except RuntimeError as error:
        asked.tell("pass_graph", None, str(error).splitlines()[0][:200], "failed")
    return found


def captured(work: Callable[[], Any]) -> Callable[[], Any]:
    """`work` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def searcher(asked: Asked) -> Callable[[int], float]:
    """Runs the engine's own search for so many steps on the wide network's file; returns its seconds."""
    from onnxspect.engine import run as engine_run
    from onnxspect.engine.judge.evidence import Unit
    from onnxspect.engine.search.perturbation import MaskPattern
    from onnxspect.engine.search.search import SearchConfig, search
    from onnxspect.engine.subject.samples import Samples
    from onnxspect.engine.subject.subject import Subject

    sizes = asked.sizes
    run = engine_run.RunContext(seed=asked.seed, device=asked.device)
    torch.backends.cudnn.benchmark = False
    engine_run.prepare_process(asked.device)
    subject = Subject.from_onnx(asked.work / "wide.onnx", device=asked.device)
    samples = Samples.load(asked.work / "wide.npz", subject.image_shape)
    units = tuple(Unit(t) for t in range(sizes.units))

    def seconds(n: int) -> float:
        # settle: no unit ends before its steps are done
        config = SearchConfig(steps=n, samples=sizes.samples, settle=10**9)
        synchronize(asked.device)
        started = time.perf_counter()
        found = [r for batch in search(subject, samples, [units], MaskPattern(), config, run, "gpu") for r in batch]
        synchronize(asked.device)
        taken = time.perf_counter() - started
        if any(r.steps < n for r in found):  # more where a state had to be won back in float32
            raise RuntimeError(f"searches of {n} steps took {sorted({r.steps for r in found})}")
        return taken

    return seconds


def search_step(seconds: Callable[[int], float], lengths: tuple[int, int]) -> float:
    """Milliseconds of one step: what a longer search takes more than a shorter one, by the step; the best of three."""
    short, long = lengths
    seconds(short)
    best = {n: min(seconds(n) for _ in range(3)) for n in lengths}
    return 1000 * max(best[long] - best[short], 1e-9) / (long - short)


def profiled(seconds: Callable[[int], float], lengths: tuple[int, int]) -> tuple[dict[str, float], float, float]:
    """(calls that launch work, by kind; kernels on the chip; milliseconds that these take), each a step."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    counted = []
    for n in lengths:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
            seconds(n)
        events = watched.events()
        launches = {kind: sum(kind in e.name and e.name.startswith("cu") for e in events) for kind in LAUNCHES}
        on_chip = [
            e
            for e in events
            if e.device_type == DeviceType.CUDA
            and not e.name.startswith(("Memcpy", "Memset"))
            and not e.is_user_annotation
        ]
        counted.append((launches, len(on_chip), sum(e.time_range.elapsed_us() for e in on_chip) / 1000))
    (a, kernels_a, chip_a), (b, kernels_b, chip_b) = counted
    more = lengths[1] - lengths[0]
    return {k: (b[k] - a[k]) / more for k in a}, (kernels_b - kernels_a) / more, (chip_b - chip_a) / more


# opens


def opens(asked: Asked) -> None:
    """Export every architecture untrained and open it; what is refused, and why."""
    from onnxspect.engine.errors import OnnxspectError
    from onnxspect.engine.subject.subject import Subject
    from onnxspect.models import architectures
    from onnxspect.models.exporting import export_torch

    side = 32 // asked.sizes.shrink
    refused, seconds = [], []
    for name in asked.sizes.opened:
        shape = (side, side, 3)
        torch.manual_seed(asked.seed)
        module = architectures.get(name).build(shape, 10, asked.seed).eval()
        file = asked.work / f"opens-{name}.onnx"
        export_torch(module, shape, file, dynamo=False)
        started = time.perf_counter()
        try:
            Subject.from_onnx(file, device=asked.device)
        except OnnxspectError as error:
            refused.append(f"{name}: {error.message}")
        seconds.append(time.perf_counter() - started)
    words = f"of {len(seconds)}; {np.median(seconds):.1f} s each. {' '.join(refused)[:400]}".strip()
    asked.tell("refused", len(refused), words)


if __name__ == "__main__":
    sys.exit(main())
