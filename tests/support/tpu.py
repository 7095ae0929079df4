"""The training step as the TPU compiler makes it, without a TPU: extra `tpu` (libtpu)."""

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
# libtpu asks the machine for these where there is a TPU.
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
if AVAILABLE:
    # Else JAX looks for a TPU to run on.
    jax.config.update("jax_platforms", "cpu")

_KINDS = (
    "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|ragged-all-to-all"
    "|reduce-scatter"
)


class Collective(NamedTuple):
    """What chips do together.

    Attributes:
      kind: Such as ``"all-reduce"``.
      shapes: What each chip has afterwards, such as ``"f32[8,128]"``; several if they go together.
      source: The operation that it comes from, such as ``"jit(step)/add"``, where that is known.
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
    """A step without the gradient on one leaf, parameters and state donated.

    Args:
      topology: A slice of TPU chips, such as ``"v5e:2x4"``.
      shape: The leaf's.
      optimizer: What is compiled.
      dtype: That of parameters and gradients.
      apply: What adds updates to parameters, given the number of the step too; ``None`` is
        Optax's, which has no use for it.
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
    """So many chips of a slice, or all of them, along one axis "data"."""
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return Mesh(np.array(description.devices[:devices]), ("data",), axis_types=(axis_type,))


def placed(tree: Any, shardings: Any) -> Any:
    """The shapes in a tree, on devices."""

    def with_sharding(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, tree, shardings)


def compile_update(
    optimizer: optax.GradientTransformation,
    params: Any,
    state: Any,
    apply: Callable[..., Any] | None = None,
) -> jax.stages.Compiled:
    """A step without the gradient on trees of ``jax.ShapeDtypeStruct``, as `compile_step`."""

    def step(params: Any, state: Any, gradients: Any, count: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        if apply is not None:
            return apply(params, updates, count), state
        return optax.apply_updates(params, updates), state

    count = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, count).compile()


def bytes_accessed(compiled: jax.stages.Compiled) -> float:
    """What the compiler counts that the program reads and writes."""
    analysis = compiled.cost_analysis()
    assert analysis is not None
    return analysis["bytes accessed"]


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """Those of a program. One that is carried out in several parts counts once."""
    found: dict[str, Collective] = {}
    text, computation = compiled.as_text(), ""
    assert text is not None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line.split()[0]
        if match := re.search(rf" = (.*?) ({_KINDS})(?:-start)?\(", line):
            types, kind = match.groups()
            # On TPU it is fused: an all-reduce of which each chip takes its part.
            kind = "reduce-scatter" if "all-reduce-scatter" in computation else kind
            channel = re.search(r"channel_id=\d+", line)
            source = re.search(r'op_name="([^"]*)"', line)
            found[channel.group() if channel else line] = Collective(
                kind, re.findall(r"\w+\[[\d,]*\]", types), source[1] if source else ""
            )
    return list(found.values())
