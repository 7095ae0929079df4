"""The states that are not Optax's, fields in alphabetical order.

A checkpoint that is restored without a target comes back sorted by name.
"""

from typing import Any, NamedTuple

import jax
import optax

from rmsprop_jax import _storage

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


class ScaleByRmsQuantizedState(NamedTuple):
    """State of `scale_by_rms` with a scale per leaf, as with float8_e5m2.

    Attributes:
      count: Steps taken, an int32 scalar.
      nu_quantized: v in codes: ``amax``, ``codes`` and ``scale``. `second_moment` reads it.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    nu_quantized: Any


class ScaleByStddevQuantizedState(NamedTuple):
    """State of `scale_by_stddev` with a scale per leaf, as with float8_e5m2.

    Attributes:
      count: Steps taken, an int32 scalar.
      mu: m, the moving average of ``g``, in bfloat16.
      var_quantized: The variance in codes: ``amax``, ``codes`` and ``scale``. `second_moment`
        reads it.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    var_quantized: Any


class LowPrecisionTraceState(NamedTuple):
    """State of a momentum buffer in low precision: ``optax.TraceState`` and the step.

    Attributes:
      step: Steps taken, an int32 scalar. Not ``count``, which ``optax.tree_utils.tree_get`` is to
        find once.
      trace: b, the momentum buffer, shaped as the parameters.
    """

    step: Any
    trace: Any


def is_quantized(x: Any) -> bool:
    """Whether ``x`` is a state that keeps an average in codes."""
    return isinstance(x, ScaleByRmsQuantizedState | ScaleByStddevQuantizedState)


def dequantize(state: Any) -> Any:
    """A state with averages in float32 where ``state`` has codes."""

    def wide(x: Any) -> Any:
        if isinstance(x, ScaleByRmsQuantizedState):
            return ScaleByRmsWithCountState(x.count, _storage.dequantize(x.nu_quantized))
        if isinstance(x, ScaleByStddevQuantizedState):
            return ScaleByStddevState(x.count, x.mu, _storage.dequantize(x.var_quantized))
        return x

    return jax.tree.map(wide, state, is_leaf=is_quantized)


def quantize(state: Any, like: Any) -> Any:
    """The inverse of `dequantize`: codes where ``like`` has some, rounded to nearest."""

    def narrow(like: Any, x: Any) -> Any:
        if not is_quantized(like):
            return x
        codes = _storage.arrays(like[-1])
        dtypes = {codes.dtype for codes in jax.tree.leaves(codes)}
        if not dtypes:
            return like
        return type(like)(*x[:-1], _storage.quantize(x[-1], dtypes.pop()))

    return jax.tree.map(narrow, like, state, is_leaf=is_quantized)
