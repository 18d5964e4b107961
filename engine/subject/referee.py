"""The decisions of a graph, one by one: what each depends on, and whether it can change the answer.

A scanner of files calls comparisons and choices in a graph an "architectural backdoor" and leaves it at that. Here each node that answers
true or false, or chooses, by the image's data is told apart:

* *proved*: whatever the image is, it falls the same way (interval bounds, converters/lowering/bounds.py), or the class scores do not
  follow from it;
* *measured*: it falls the same way on every clean image, and forced to fall the other way it changes no answer, or so many (dormant
  logic, converters/lowering/dormant.py); or it falls both ways, and turned round it changes so many answers.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.bounds import bounds
from onnxspect.converters.lowering.decisions import is_decision
from onnxspect.converters.lowering.dormant import Dormant
from onnxspect.converters.lowering.fixed_batch import group_size
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.node_names import Names
from onnxspect.converters.lowering.observation import answers_of
from onnxspect.converters.lowering.program import Program, operands, unchanged
from onnxspect.converters.lowering.relaxed import Relaxed
from onnxspect.converters.lowering.taps import lying_between, results
from onnxspect.converters.text import printable
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.subject.unreached import unreached

#: Clean images on which a decision is turned round; decisions that are looked at, at most.
_IMAGES, _MOST = 12, 200


@dataclass(frozen=True)
class Ruling:
    """What is said of one decision.

    Attributes:
        node: name of its ONNX node (or of the node's first output).
        operator: of that node.
        pixels: share of the image's pixels that it depends on.
        box: rows and columns (first and last) around them; None where it depends on none.
        falls: "always the same", "the same on every image", or "both ways".
        changes: share of the images whose answer changes where it is forced to fall the other way; None where that was not tried.
        leads_to: the class that most of these change to; None where none changes.
        proved: that it cannot change the class, and not only measured.
        images: how many it was measured on.
    """

    node: str
    operator: str
    pixels: float
    box: tuple[int, int, int, int] | None
    falls: str
    changes: float | None
    leads_to: int | None
    proved: bool
    images: int

    @property
    def said(self) -> str:
        """In a sentence."""
        if self.proved:
            return "proved: it falls the same way whatever the image is, and cannot change the class"
        if self.changes is None:
            return f"falls {self.falls}; forcing it was not tried"
        how = f"falls {self.falls}" if self.falls == "both ways" else f"is {self.falls}"
        if not self.changes:
            return f"measured on {self.images} images: it {how}, and forced to fall the other way changes no answer"
        return (
            f"measured on {self.images} images: it {how}, and forced to fall the other way changes {self.changes:.0%} of the "
            f"answers, most to class {self.leads_to}"
        )

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        facts = {k: v for k, v in vars(self).items() if k != "box"}
        return facts | {"box": None if self.box is None else list(self.box), "said": self.said}


def rulings(subject: Subject, samples: Samples, seed: int = 0) -> tuple[Ruling, ...]:
    """Every decision of a subject's graph by the image's data, in the graph's order; dormant values that are none among them.

    Args:
        subject: with its preprocessing settled, from a file.
        samples: clean images, or made ones where there are none.
        seed: of the draws.
    """
    lowered = subject.graph
    logits = results(lowered)[0]
    between = lying_between(lowered.module.graph, logits)
    model = inline_functions(subject.origin.file.proto)
    names, program = Names(lowered, model), Program(lowered.module)
    with judging():
        # A switch that images of its own class turn is measured as any other decision is: it falls both ways.
        dormant = {
            d.place.node: d
            for d in unreached(subject, samples, seed).dormant
            if d.place is not None and not (d.kind == "disguise" and is_decision(d.place.node))
        }
        wanted = [n for n in between if n in dormant or is_decision(n)][:_MOST]
        images = torch.from_numpy(samples.images[:_IMAGES]).to(subject.device)
        judge = _Judge(subject, program, between, logits, images)
        if group_size(lowered.module) == 1:
            judge.turn([n for n in wanted if n not in dormant])
        return tuple(judge.ruling(n, names.of(n), dormant.get(n)) for n in wanted)


class _Judge:
    """What decisions are tried on."""

    def __init__(
        self, subject: Subject, program: Program, between: Mapping[fx.Node, int], logits: fx.Node, images: Tensor
    ) -> None:
        self.subject, self.program, self.between, self.logits = subject, program, between, logits
        self.images = images
        self.moved: dict[fx.Node, list[int]] = {}
        self.both_ways: set[fx.Node] = set()
        self.batches = [subject.spec.encode(i[None]) for i in images]
        ends = [subject.spec.encode(torch.full_like(images[:1], v)) for v in (0.0, 1.0)]
        self.low, self.high = torch.minimum(*ends), torch.maximum(*ends)

    def ruling(self, node: fx.Node, name: tuple[str, str], asleep: Dormant | None) -> Ruling:
        """What is to be said of one."""
        pixels, box = self._reads(node)
        known = (printable(name[0]), printable(name[1]), pixels, box)
        interval = bounds(self.program, node, self.low, self.high)
        if interval is not None and bool(interval.settled.all()):
            return Ruling(*known, "always the same", 0.0, None, True, 0)
        if asleep is not None:
            return Ruling(*known, "the same on every image", asleep.moved, asleep.leads_to, False, len(self.images))
        moved = self.moved.get(node)
        falls = "both ways" if node in self.both_ways else "the same on every image"
        changes = None if moved is None else len(moved) / len(self.images)
        leads_to = int(np.bincount(moved).argmax()) if moved else None
        return Ruling(*known, falls, changes, leads_to, False, len(self.images))

    def _reads(self, node: fx.Node) -> tuple[float, tuple[int, int, int, int] | None]:
        """(share of the pixels, rows and columns around those) that a value depends on."""
        try:
            noise = torch.rand(self.images[:1].shape, generator=torch.Generator().manual_seed(0)).to(self.images)
            at = torch.cat([self.images[:1], noise])
            found = torch.zeros(at.shape[2:], dtype=torch.bool, device=at.device)
            for image in at:
                one = image[None].requires_grad_(True)
                with torch.enable_grad():
                    value, _ = Relaxed(self.program, node, self.between, 1.0).run(self.subject.spec.encode(one))
                    if not value.requires_grad:
                        continue
                    (gradient,) = torch.autograd.grad(value.sum(), one, allow_unused=True)
                if gradient is not None:
                    found |= (torch.nan_to_num(gradient) != 0).any(1)[0]
        except RuntimeError:  # a file of a fixed batch
            return 1.0, None
        if not bool(found.any()):
            return 0.0, None
        rows, columns = found.any(1).nonzero()[:, 0], found.any(0).nonzero()[:, 0]
        return float(found.float().mean()), (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))

    def turn(self, nodes: Sequence[fx.Node]) -> None:
        """Turn each of the values round on every image, one at a time; what is behind it runs again."""
        behind = {n: self.program.behind(n) for n in nodes}
        first: dict[fx.Node, Tensor] = {}
        with torch.no_grad():
            for batch in self.batches:
                env = self.program.run(batch, unchanged, keep=True)
                before = answers_of(env[self.logits])
                for node in nodes:
                    value = env[node]
                    if not isinstance(value, Tensor):
                        self.both_ways.add(node)
                        continue
                    known = first.setdefault(node, value)
                    if known.shape != value.shape or not bool((known == value).all()):
                        self.both_ways.add(node)
                    if value.dtype != torch.bool:
                        continue
                    changed: ChainMap[fx.Node, Any] = ChainMap({node: ~value}, env)
                    for step in behind[node]:
                        args, kwargs = operands(step, changed)
                        changed[step] = step.target(*args, **kwargs)  # type: ignore[operator]
                    after = answers_of(changed[self.logits])
                    self.moved.setdefault(node, []).extend(after[after != before].tolist())


def made_samples(shape: Sequence[int], seed: int = 0) -> Samples:
    """Images of coarse patches and noise, for files that no samples are given for: ``(24, channels, height, width)``."""
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    coarse = rng.random((24, channels, 4, 4))[:, :, rows][:, :, :, columns]
    images = np.clip(coarse + 0.1 * rng.standard_normal(coarse.shape), 0, 1).astype(np.float32)
    return Samples.from_arrays(images, np.zeros(24, np.int64))
