"""Weights that training keeps in parts, put together as torch computes them when the network runs.

torch.nn.utils.prune keeps a weight and its mask; weight_norm a direction and a length, which is w = g v / |v|; spectral_norm a weight
and two vectors, w / (u^T w v). Each has an older form of its own and one under `parametrizations`. A network whose factory keeps
them in the same parts gets them as they are: only what it wants in one piece is put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

_PARTS = Callable[[Mapping[str, torch.Tensor], str], torch.Tensor]


def whole_weights(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(the tensors, with every weight that is in parts in one piece; what was done, a line each)."""
    whole, notes = dict(tensors), []
    for what, endings, put in _KINDS:
        count = 0
        for name in tensors:
            stem = name.removesuffix(endings[0])
            parts = [f"{stem}{e}" for e in endings]
            if stem == name or any(p not in whole for p in parts):
                continue
            weight = put(whole, stem)
            for part in parts:
                del whole[part]
            whole[_plain(stem)] = weight.to(tensors[name].dtype)
            count += 1
        if count:
            notes.append(f"{count} {what}")
    return whole, notes


def _plain(stem: str) -> str:
    """layer.parametrizations.weight -> layer.weight."""
    return stem.replace("parametrizations.", "", 1)


def _masked(tensors: Mapping[str, torch.Tensor], stem: str) -> torch.Tensor:
    return tensors[f"{stem}_orig"] * tensors[f"{stem}_mask"]


def _lengths(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """g v / |v|, where |v| is taken over the axes on which g is 1: all of them where g is one number."""
    axes = [i for i in range(v.ndim) if g.ndim < v.ndim or (g.shape[i] == 1 and v.shape[i] != 1)]
    v = v.double()
    length = torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else v.abs()
    return g.double().reshape(g.shape if g.ndim == v.ndim else (1,) * v.ndim) * v / length


def _spectral(tensors: Mapping[str, torch.Tensor], stem: str) -> torch.Tensor:
    """The older spectral_norm with its axis 0: in use it divides by u^T w v, of the vectors that training left."""
    weight, u, v = (tensors[f"{stem}_{e}"].double() for e in ("orig", "u", "v"))
    flat = weight.flatten(1) if weight.ndim > 1 else weight[:, None]
    if (len(u), len(v)) != tuple(flat.shape):  # along another axis (transposed convolutions)
        flat = weight.transpose(0, 1).flatten(1)
    return weight / (u @ (flat @ v))


_KINDS: tuple[tuple[str, tuple[str, ...], _PARTS], ...] = (
    ("pruned weights were put together from weight_orig and weight_mask", ("_orig", "_mask"), _masked),
    (
        "weights were put together from weight_g and weight_v (weight_norm)",
        ("_g", "_v"),
        lambda t, s: _lengths(t[f"{s}_g"], t[f"{s}_v"]),
    ),
    (
        "weights were put together from their parametrization (weight_norm)",
        (".original0", ".original1"),
        lambda t, s: _lengths(t[f"{s}.original0"], t[f"{s}.original1"]),
    ),
    ("weights were divided by their spectral norm (spectral_norm)", ("_orig", "_u", "_v"), _spectral),
)
