"""The states that are not Optax's, with their fields in alphabetical order.

That is the order in which a checkpoint that is restored without a target has them.
"""

from typing import Any, NamedTuple

import jax
import optax

from rmsprop_jax import _storage

# This class has no public name in Optax 0.2.8. eval_shape makes no array: one made at import would
# start JAX's backends, too early for jax.distributed.initialize().
ScaleByRmsWithCountState: Any = type(
    jax.eval_shape(optax.scale_by_rms(bias_correction=True).init, {})
)


class ScaleByStddevState(NamedTuple):
    """State of `scale_by_stddev`.

    Attributes:
      count: Steps taken, an int32 scalar; ``None`` if neither bias correction nor a low-precision
        ``accumulator_dtype`` needs it.
      mu: m, the moving average of ``g``, shaped as the parameters.
      var: ``s = v - |m|**2``, the moving variance of ``g``: real, of the same shapes. Optax holds v
        instead, as ``nu``. With bias correction both averages are stored corrected.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    var: Any


class ScaleByRmsQuantizedState(NamedTuple):
    """State of `scale_by_rms` with a scale per leaf, as with float8_e5m2.

    Attributes:
      count: Steps taken, an int32 scalar.
      nu_quantized: v, quantized: ``amax``, ``codes`` and ``scale``. `second_moment` reads it.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    nu_quantized: Any


class ScaleByStddevQuantizedState(NamedTuple):
    """State of `scale_by_stddev` with a scale per leaf, as with float8_e5m2.

    Attributes:
      count: Steps taken, an int32 scalar.
      mu: m, the moving average of ``g``, in bfloat16.
      var_quantized: The variance, quantized: ``amax``, ``codes`` and ``scale``. `second_moment`
        reads it.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    var_quantized: Any


class LowPrecisionTraceState(NamedTuple):
    """State of a momentum buffer in low precision: ``optax.TraceState`` and the step.

    Attributes:
      step: Steps taken, an int32 scalar. Not called ``count``, so that
        ``optax.tree_utils.tree_get`` does not find a second one.
      trace: b, the momentum buffer, shaped as the parameters.
    """

    step: Any
    trace: Any


def is_quantized(x: Any) -> bool:
    """Whether ``x`` is a state with a quantized average."""
    return isinstance(x, ScaleByRmsQuantizedState | ScaleByStddevQuantizedState)


def dequantize(state: Any) -> Any:
    """Replaces the quantized averages of a state by float32 ones."""

    def dequantized(x: Any) -> Any:
        if isinstance(x, ScaleByRmsQuantizedState):
            return ScaleByRmsWithCountState(x.count, _storage.dequantize(x.nu_quantized))
        if isinstance(x, ScaleByStddevQuantizedState):
            return ScaleByStddevState(x.count, x.mu, _storage.dequantize(x.var_quantized))
        return x

    return jax.tree.map(dequantized, state, is_leaf=is_quantized)


def quantize(state: Any, like: Any) -> Any:
    """The inverse of `dequantize`: quantizes, to nearest, what is quantized in ``like``."""

    def quantized(like: Any, x: Any) -> Any:
        if not is_quantized(like):
            return x
        codes = _storage.arrays(like[-1])
        dtypes = {codes.dtype for codes in jax.tree.leaves(codes)}
        if not dtypes:
            return like
        return type(like)(*x[:-1], _storage.quantize(x[-1], dtypes.pop()))

    return jax.tree.map(quantized, like, state, is_leaf=is_quantized)
