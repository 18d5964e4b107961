"""The answers where a node has another value, everything else staying; where that does not run, with smaller values in its place.

A value that no image makes need not fit what follows: it may be an index out of range, or the size of a shape. What does not run shows
nothing, neither that the value changes answers nor that it does not. So values between the usual one and that are tried, and what a node
rounds to a whole number behind it is moved by single steps. Where none of these moves an answer, nothing is known of the node.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.observation import answers_of
from onnxspect.converters.lowering.program import operands

#: A value is brought nearer to the usual one by halves, so many times at most.
HALVES = 24
#: Whole numbers behind a value are moved by so many steps, up and down; so many of them, those that come first.
STEPS, WHOLE = (1, -1, 2, -2), 2
#: Runs that smaller values may take in all, in runs of the whole graph.
MOST = 24.0


class DoesNotRun(Exception):
    """What follows does not run.

    Attributes:
        at: the node that raised.
    """

    def __init__(self, at: fx.Node) -> None:
        super().__init__(at.name)
        self.at = at


def answers_with(
    node: fx.Node, value: Tensor, behind: Sequence[fx.Node], env: Mapping[fx.Node, Any], logits: fx.Node
) -> Tensor:
    """The answers where the node has another value: what is behind it runs again.

    Raises:
        DoesNotRun: what is behind it does not run, or gives other than one row of scores an image.
    """
    changed: ChainMap[fx.Node, Any] = ChainMap({node: value}, env)  # type: ignore[arg-type]
    for step in behind:
        try:
            args, kwargs = operands(step, changed)
            changed[step] = step.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:  # an index out of range, a shape: each operator has its own
            raise DoesNotRun(step) from error
    return answers_of(changed[logits])


class Smaller:
    """Tries smaller values of nodes where what they were made to be does not run."""

    def __init__(self, logits: fx.Node, steps: int) -> None:
        self.logits, self._all = logits, max(1, steps)
        self._left = MOST

    def answers(
        self,
        node: fx.Node,
        value: Tensor,
        behind: Sequence[fx.Node],
        env: Mapping[fx.Node, Any],
        plain: Tensor,
    ) -> Tensor | None:
        """The answers of the first smaller value that moves any; None where none does.

        Args:
            node: whose value it is.
            value: that does not run.
            behind: the nodes that read it, directly or not.
            env: all values on the images.
            plain: the answers to these.
        """
        for at, instead in self._values(node, value, behind, env):
            follow = behind if at is node else behind[behind.index(at) + 1 :]
            self._left -= max(1, len(follow)) / self._all
            if self._left < 0:
                return None
            try:
                after = answers_with(at, instead, follow, env, self.logits)
            except DoesNotRun:
                continue
            if after.shape == plain.shape and bool((after != plain).any()):
                return after
        return None

    def _values(
        self, node: fx.Node, value: Tensor, behind: Sequence[fx.Node], env: Mapping[fx.Node, Any]
    ) -> Iterator[tuple[fx.Node, Tensor]]:
        """(a node, what it is made to be)."""
        whole = [n for n in (node, *behind) if _is_whole(env.get(n))][:WHOLE]
        for step in STEPS:
            yield from ((n, env[n] + step) for n in whole)
        usual = env[node]
        if value.shape == usual.shape and value.is_floating_point():
            for half in range(1, HALVES + 1):
                yield node, usual + 2.0**-half * (value - usual)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
