"""RMSprop for JAX, as Optax gradient transformations."""

from rmsprop_jax import dialects, interop, sharding
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax._transform import (
    ScaleByRmsState,
    ScaleByStddevState,
    scale_by_rms,
    scale_by_stddev,
)
from rmsprop_jax._updates import apply_updates

__all__ = [
    "ScaleByRmsState",
    "ScaleByStddevState",
    "apply_updates",
    "dialects",
    "interop",
    "rmsprop",
    "scale_by_rms",
    "scale_by_stddev",
    "sharding",
]
