"""RMSprop for JAX, as Optax gradient transformations."""

from rmsprop_jax import dialects, interop, sharding
from rmsprop_jax._apply_updates import apply_updates
from rmsprop_jax._diagnose import Diagnoses, Diagnosis, diagnose
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax._scale_by import scale_by_rms, scale_by_stddev
from rmsprop_jax._second_moment import second_moment
from rmsprop_jax._states import (
    LowPrecisionTraceState,
    ScaleByRmsQuantizedState,
    ScaleByStddevQuantizedState,
    ScaleByStddevState,
)
from rmsprop_jax._untouched_rows import untouched_rows

__all__ = [
    "Diagnoses",
    "Diagnosis",
    "LowPrecisionTraceState",
    "ScaleByRmsQuantizedState",
    "ScaleByStddevQuantizedState",
    "ScaleByStddevState",
    "apply_updates",
    "diagnose",
    "dialects",
    "interop",
    "rmsprop",
    "scale_by_rms",
    "scale_by_stddev",
    "second_moment",
    "sharding",
    "untouched_rows",
]
