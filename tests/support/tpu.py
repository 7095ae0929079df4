"""The training step as compiled for TPU, without a TPU: extra `tpu` (libtpu)."""

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from support import environment

environment.set_for_libtpu()
AVAILABLE = find_spec("libtpu") is not None
# On a machine with a TPU, libtpu finds these by itself.
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
if AVAILABLE:
    # Otherwise JAX would look for a TPU to run on.
    jax.config.update("jax_platforms", "cpu")

_KINDS = (
    "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|ragged-all-to-all"
    "|reduce-scatter"
)


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
      kind: Such as ``"all-reduce"``.
      shapes: The results on each chip, such as ``"f32[8,128]"``; several if they are combined.
      source: The operation that it comes from, such as ``"jit(step)/add"``, if known.
    """

    kind: str
    shapes: list[str]
    source: str


def compile_step(
    topology: str,
    shape: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    dtype: Any = jnp.float32,
    apply: Callable[..., Any] | None = None,
    devices: int = 1,
    spec: tuple[Any, ...] = (),
) -> jax.stages.Compiled:
    """A step without the gradient, on one leaf, with parameters and state donated.

    Args:
      topology: A slice of TPU chips, such as ``"v5e:2x4"``.
      shape: The shape of the leaf.
      optimizer: The optimizer to compile.
      dtype: The dtype of parameters and gradients.
      apply: A function of parameters, updates and the step that returns new parameters; ``None``
        is ``optax.apply_updates``.
      devices: How many chips of the slice to use.
      spec: How parameters and state are sharded over them.
    """
    mesh = slice_mesh(topology, devices)

    def sharding(x: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*spec) if x.shape == shape else PartitionSpec())

    leaf = jax.ShapeDtypeStruct(shape, dtype)
    params = placed(leaf, sharding(leaf))
    state = jax.eval_shape(optimizer.init, params)
    return compile_update(optimizer, params, placed(state, jax.tree.map(sharding, state)), apply)


def slice_mesh(
    topology: str, devices: int | None = None, axis_type: AxisType = AxisType.Auto
) -> Mesh:
    """A mesh of the first chips of a slice, or all of them, with one axis "data"."""
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return Mesh(np.array(description.devices[:devices]), ("data",), axis_types=(axis_type,))


def placed(tree: Any, shardings: Any) -> Any:
    """A tree of shapes with the given shardings."""

    def with_sharding(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, tree, shardings)


def compile_update(
    optimizer: optax.GradientTransformation,
    params: Any,
    state: Any,
    apply: Callable[..., Any] | None = None,
) -> jax.stages.Compiled:
    """Like `compile_step`, on trees of ``jax.ShapeDtypeStruct``."""

    def step(params: Any, state: Any, gradients: Any, count: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        if apply is not None:
            return apply(params, updates, count), state
        return optax.apply_updates(params, updates), state

    count = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, count).compile()


def bytes_accessed(compiled: jax.stages.Compiled) -> float:
    """The bytes that the program reads and writes, by the compiler's count."""
    analysis = compiled.cost_analysis()
    assert analysis is not None
    return analysis["bytes accessed"]


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """The collectives of a program. One that is split into several parts counts once."""
    found: dict[str, Collective] = {}
    text, computation = compiled.as_text(), ""
    assert text is not None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line.split()[0]
        if match := re.search(rf" = (.*?) ({_KINDS})(?:-start)?\(", line):
            types, kind = match.groups()
            # On TPU it is a fusion: an all-reduce, of which each chip keeps its shard.
            kind = "reduce-scatter" if "all-reduce-scatter" in computation else kind
            channel = re.search(r"channel_id=\d+", line)
            source = re.search(r'op_name="([^"]*)"', line)
            found[channel.group() if channel else line] = Collective(
                kind, re.findall(r"\w+\[[\d,]*\]", types), source[1] if source else ""
            )
    return list(found.values())
