"""The training step as the TPU compiler makes it, without a TPU: extra `tpu` (libtpu)."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
      spec: How parameters and state are spread over them.
    """

    def step(params: Any, state: Any, gradients: Any, count: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        if apply is not None:
            return apply(params, updates, count), state
        return optax.apply_updates(params, updates), state

    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = Mesh(np.array(description.devices[:devices]), ("data",))

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*spec) if x.ndim else PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    params = placed(jax.ShapeDtypeStruct(shape, dtype))
    count = placed(jax.ShapeDtypeStruct((), jnp.int32))
    state = jax.tree.map(placed, jax.eval_shape(optimizer.init, params))
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, count).compile()


def bytes_accessed(compiled: jax.stages.Compiled) -> float:
    """What the compiler counts that the program reads and writes."""
    analysis = compiled.cost_analysis()
    assert analysis is not None
    return analysis["bytes accessed"]
