"""The states that are not Optax's, fields in alphabetical order.

A checkpoint that is restored without a target comes back sorted by name.
"""

from typing import Any, NamedTuple

import jax
import optax

# This class has no public name in Optax 0.2.8. Only its shape is made: an array at import would
# start JAX's backends, and jax.distributed.initialize() then comes too late.
ScaleByRmsWithCountState: Any = type(
    jax.eval_shape(optax.scale_by_rms(bias_correction=True).init, {})
)


class ScaleByStddevState(NamedTuple):
    """State of `scale_by_stddev`.

    Attributes:
      count: Steps taken, an int32 scalar; ``None`` if neither bias correction nor a low-precision
        ``accumulator_dtype`` needs it.
      mu: m, the moving average of ``g``, shaped as the parameters.
      var: ``s = v - |m|**2``, the moving variance of ``g``: real, shaped alike. Optax has v there,
        its ``nu``. With bias correction both averages are kept corrected.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    var: Any


class LowPrecisionTraceState(NamedTuple):
    """State of a momentum buffer in low precision: ``optax.TraceState`` and the step.

    Attributes:
      step: Steps taken, an int32 scalar. Not ``count``, which ``optax.tree_utils.tree_get`` is to
        find once.
      trace: b, the momentum buffer, shaped as the parameters.
    """

    step: Any
    trace: Any
