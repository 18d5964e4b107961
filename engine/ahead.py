"""What a scan needs late, loaded while it waits.

Opening a model waits for a child process that checks the file; a scan's statistics and pictures need libraries that take
seconds to import, and a GPU takes its time to answer the first call. All of that is done in the meantime, and changes
nothing but when it happens.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Sequence

import torch

#: Libraries that a scan needs after its searches, the slow ones.
LATER = ("scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_agg")


def load_ahead(device: str, libraries: Sequence[str] = LATER) -> threading.Thread:
    """Wake the device and import libraries in a thread of their own, which is returned.

    What goes wrong there goes wrong again where the device or the library is used, and is reported from there.
    """
    thread = threading.Thread(target=_load, args=(device, tuple(libraries)), name="onnxspect-ahead")
    thread.start()
    return thread


def _load(device: str, libraries: Sequence[str]) -> None:
    if device != "cpu":
        with contextlib.suppress(Exception):
            torch.zeros(1, device=device)
    for name in libraries:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
