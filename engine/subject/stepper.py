"""How a step that is repeated many times is run: by the host, operation by operation, or as a CUDA graph recorded once.

A step of a search, or of training a small network, launches hundreds of small kernels; launched one by one, it is the host's
time and not the chip's. `Recorded` runs the first steps by the host (they are steps like any other, and let libraries choose their
algorithms and allocate their work spaces), records one step without running it, and replays it from then on. What a step
reads and writes must therefore be tensors that stay where they are, and it must ask the host nothing.

Both give the same results: the same kernels on the same values, in the same order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

#: A recorded step pays from about so many steps on: recording costs the host what a few steps cost it.
WORTH_RECORDING = 48
#: Steps that the host runs before one is recorded.
WARM_UP = 3

#: Networks with an operation that cannot be recorded (it asks the host for a number, say).
_unrecordable: weakref.WeakSet[Any] = weakref.WeakSet()


def make_stepper(body: Callable[[], None], network: object, device: str, steps: int) -> Callable[[], None]:
    """What runs `body` once at every call.

    Args:
        body: one step.
        network: whose step it is; where it could not be recorded once, it is not tried again.
        device: "cpu", "cuda" or "cuda:1".
        steps: how many are to come at most.
    """
    if not device.startswith("cuda") or steps < WORTH_RECORDING or network in _unrecordable:
        return body
    return Recorded(body, network, device)


class Recorded:
    """A step that is recorded as a CUDA graph after `WARM_UP` calls and replayed at every further one.

    Args:
        body: one step.
        network: whose step it is.
        device: "cuda" or "cuda:1".
    """

    def __init__(self, body: Callable[[], None], network: object, device: str) -> None:
        self._body, self._network, self._device = body, network, torch.device(device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(self._device)

    def __call__(self) -> None:
        """One step."""
        if self._graph is not None:
            self._graph.replay()
        elif self._network in _unrecordable:
            self._body()
        elif self._calls < WARM_UP:
            self._beside(self._body)
            self._calls += 1
        else:
            self._graph = self._recorded()
            self()

    def _beside(self, work: Callable[[], None]) -> None:
        """Run `work` on the stream that is recorded on later, after what is under way and before what comes."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def _recorded(self) -> torch.cuda.CUDAGraph | None:
        """One step as a graph; None where an operation refuses, which leaves every tensor as it was."""
        graph = torch.cuda.CUDAGraph()
        refused: list[Exception] = []

        def record() -> None:
            # "thread_local": what other threads do on the device is no part of this graph and no error of it.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._body()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                refused.append(error)
            finally:
                try:
                    graph.capture_end()
                except RuntimeError as error:
                    refused.append(error)

        torch.cuda.synchronize(self._device)
        self._beside(record)
        if not refused:
            return graph
        _unrecordable.add(self._network)
        return None
