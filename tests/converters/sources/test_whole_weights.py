"""Weights that training keeps in parts are, in one piece, what torch computes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sources_support import needs
from tolerances import OPERATION_32
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from onnxspect.converters.sources.whole_weights import whole_weights

pytestmark = [needs("torch"), pytest.mark.filterwarnings("ignore::FutureWarning")]

PARTS: dict[str, tuple[Callable[[Any], Any], Callable[[], nn.Module]]] = {
    "pruned": (lambda m: prune.random_unstructured(m, "weight", 0.4), lambda: nn.Conv2d(3, 4, 3)),
    "weight_norm": (weight_norm, lambda: nn.Conv2d(3, 4, 3)),
    "weight_norm of a linear layer": (weight_norm, lambda: nn.Linear(5, 4)),
    "weight_norm along another axis": (lambda m: weight_norm(m, dim=1), lambda: nn.Linear(5, 4)),
    "weight_norm of the whole": (lambda m: weight_norm(m, dim=None), lambda: nn.Linear(5, 4)),
    "parametrized weight_norm": (parametrizations.weight_norm, lambda: nn.Conv2d(3, 4, 3)),
    "spectral_norm": (spectral_norm, lambda: nn.Conv2d(3, 4, 3)),
    "spectral_norm of a transposed convolution": (spectral_norm, lambda: nn.ConvTranspose2d(3, 4, 3)),
}


@pytest.mark.parametrize("name", PARTS)
def test_in_one_piece(name: str) -> None:
    torch.manual_seed(0)
    kept_in_parts, layer = PARTS[name]
    module = layer()
    shape = module.weight.shape
    kept_in_parts(module)
    x = torch.rand(2, 3, 6, 6) if len(shape) == 4 else torch.rand(2, 5)
    module(x)  # spectral_norm settles its vectors in training
    module.eval()
    whole, notes = whole_weights(module.state_dict())
    plain = layer()
    plain.load_state_dict(whole)
    torch.testing.assert_close(plain(x), module(x), rtol=OPERATION_32, atol=OPERATION_32)
    assert len(notes) == 1
    assert notes[0].startswith("1 ")


def test_nothing_is_touched_that_is_whole() -> None:
    tensors = {"a_g": torch.ones(2), "b_orig": torch.ones(2), "c.weight": torch.ones(2)}
    assert whole_weights(tensors) == (tensors, [])
