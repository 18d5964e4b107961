"""JAX: Flax, Equinox, and programs of StableHLO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wild_files.wild_file import Wild

HEADING = "JAX"
CNN = "framework_factories:flax_cnn"


def _variables() -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from framework_factories import flax_module

    return jax.tree_util.tree_map(np.asarray, flax_module().init(jax.random.PRNGKey(0), jnp.zeros((1, 28, 28, 1))))


def _msgpack(state: Callable[[Any], Any] = lambda variables: variables) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import flax

        (folder / "checkpoint.msgpack").write_bytes(flax.serialization.to_bytes(state(_variables())))
        return folder / "checkpoint.msgpack"

    return make


def _safetensors(folder: Path) -> Path:
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    save_file(flatten_dict(_variables(), sep="/"), folder / "flax_model.safetensors")
    return folder / "flax_model.safetensors"


def _orbax(folder: Path) -> Path:
    import orbax.checkpoint

    orbax.checkpoint.PyTreeCheckpointer().save((folder / "checkpoint").resolve(), _variables())
    return folder / "checkpoint"


def _equinox(folder: Path) -> Path:
    import equinox
    import jax

    equinox.tree_serialise_leaves(folder / "model.eqx", equinox.nn.MLP(784, 10, 32, 1, key=jax.random.PRNGKey(0)))
    return folder / "model.eqx"


def _program(folder: Path) -> Path:
    import jax
    import jax.numpy as jnp

    lowered = jax.jit(lambda x: x.reshape(len(x), -1) @ jnp.ones((784, 10))).lower(jnp.zeros((1, 28, 28)))
    (folder / "model.mlir").write_text(lowered.as_text())
    return folder / "model.mlir"


FILES: tuple[Wild, ...] = (
    Wild("Flax: msgpack", _msgpack(), factory=CNN, shape=(28, 28, 1)),
    Wild("Flax: msgpack without --factory", _msgpack(), works=False, shape=(28, 28, 1)),
    Wild("Flax: safetensors", _safetensors, factory=CNN, shape=(28, 28, 1)),
    Wild("Flax: an Orbax checkpoint", _orbax, factory=CNN, shape=(28, 28, 1)),
    Wild("Equinox (.eqx)", _equinox, works=False),
    Wild("a StableHLO program as text", _program, works=False),
)
