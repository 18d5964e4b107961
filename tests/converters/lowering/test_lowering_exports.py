"""The matrix of exports: every family of classifiers, as torch's default exporter writes it and the old way at opset 17.

The graph must answer what onnxruntime and the network itself answer, at batch sizes other than the exported one, with
the network's own gradient. `make test` takes a share; ONNXSPECT_FULL=1 (`make test-converters`) takes all.
"""

from __future__ import annotations

import os

import pytest
import torch
from lowering_families import CLASSES, build, export, images
from lowering_networks import MATRIX
from tolerances import SUM_32

from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.proof.parity import check_gradients, check_parity

FULL = os.environ.get("ONNXSPECT_FULL") == "1"
#: What the default exporter writes in its own way, and so also in `make test`; the rest of it is the older one's.
DEFAULT_EXPORTER = {"residual", "transformer", "upsampling", "vision_transformer", "nfnet"}
CASES = [
    pytest.param(name, dynamo, id=f"{name}-{'default' if dynamo else 'opset 17'}")
    for name in MATRIX
    for dynamo in (False, True)
    if FULL or dynamo == (name in DEFAULT_EXPORTER)
]


def test_the_matrix_has_the_families_that_were_counted() -> None:
    assert len(MATRIX) >= 33


@pytest.mark.parametrize(("name", "dynamo"), CASES)
def test_an_export_is_the_network_at_every_batch_size(name: str, dynamo: bool) -> None:
    network = build(name, MATRIX)
    proto = export(network, dynamo=dynamo)
    lowered = lower(proto)
    check_parity(proto, lowered, images(3, seed=4).numpy(), batch_sizes=(1, 2, 5))
    assert all(check_gradients(lowered, images(2, seed=5).numpy(), directions=1).slopes)
    _same_gradient(network.double(), lowered.module.double())


def _same_gradient(network: torch.nn.Module, graph: torch.nn.Module) -> None:
    """In float64, of a projection of the logits, for each of seven images.

    An exporter folds normalisation into weights and stores them in float32. That moves the network by 6e-8, so where an
    activation lies that close to its kink, an image has another gradient: one of seven may.
    """
    x = images(7, seed=6).double()
    directions = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    gradients = []
    for module in (network, graph):
        leaf = x.clone().requires_grad_(True)
        gradients += torch.autograd.grad((module(leaf) * directions).sum(), leaf)
    want, have = (g.flatten(1) for g in gradients)
    errors = ((have - want).norm(dim=1) / want.norm(dim=1)).sort().values
    assert float(errors[-2]) < SUM_32
    assert float(errors[-1]) < 1e-1
