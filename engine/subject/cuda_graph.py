"""One step of a computation that is repeated many times, as the device likes it: recorded once, then replayed.

Launching some hundred small kernels from Python takes longer than they run. A CUDA graph launches all of them at once.
What is recorded has static shapes and addresses: a step reads its inputs from tensors that stay where they are, and
writes its results into such; it asks the host for nothing (no `.item()`, no branch on a value, no copy from the host).
On any other device the step itself is the answer: the eager twin, which computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Runs of the step before it is recorded: libraries make their handles and choose their kernels in these.
WARM_UP = 2


def repeatable(step: Callable[[], None], state: Sequence[Tensor], device: str) -> Callable[[], None]:
    """`step` as a function to be called again and again: on a GPU the replay of its recording.

    Args:
        step: reads and writes tensors at fixed addresses; the same kernels every time.
        state: all tensors that it changes. They are as before when this returns, though the step was run to warm up.
        device: "cpu", "cuda" or "cuda:1"; where those tensors are.

    Raises:
        torch.OutOfMemoryError: the step does not fit in the device's memory.
    """
    if torch.device(device).type != "cuda":
        return step
    with torch.cuda.device(torch.device(device)):
        before = [tensor.detach().clone() for tensor in state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                step()
                _restore(state, before)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay


def _restore(state: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)
