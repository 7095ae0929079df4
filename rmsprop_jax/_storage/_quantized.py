"""The averages of a tree in a `Scaled` format: codes, and vectors with the leaves' scales."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax._storage._registry import format_of, is_scaled, kept_dtype


class Quantized(NamedTuple):
    """Averages as codes, with one scale per leaf. `second_moment` returns their values.

    Attributes:
      amax: The largest element of each leaf before rounding, a float32 vector in the order of
        ``jax.tree.leaves(codes)``. It determines the next scales.
      codes: The codes of the averages, arrays with the parameters' shapes.
      scale: A float32 vector with one scale per leaf: the value of a code of one. Negative until
        the leaf's first nonzero update.
    """

    amax: Any
    codes: Any
    scale: Any


def is_quantized(x: Any) -> bool:
    """Whether ``x`` is a `Quantized`."""
    return isinstance(x, Quantized)


def init(
    params: Any,
    fill_value: ArrayLike,
    accumulator_dtype: DTypeLike | None = None,
    *,
    nonnegative: bool = False,
) -> Any:
    """The initial averages of all parameters, with the parameters' shapes and shardings.

    Parameters are arrays, scalars or ``jax.ShapeDtypeStruct``; see `kept_dtype` for the other
    arguments.
    """
    kept = partial(kept_dtype, accumulator_dtype=accumulator_dtype, nonnegative=nonnegative)
    averages = jax.tree.map(
        lambda p: format_of(kept(jnp.result_type(p))).init(p, fill_value), params
    )
    if not (nonnegative and is_scaled(accumulator_dtype)):
        return averages
    amax = jnp.full(len(jax.tree.leaves(averages)), fill_value, jnp.float32)
    return Quantized(amax, averages, format_of(accumulator_dtype).scale_of(amax))


def quantize(averages: Any, dtype: DTypeLike) -> Quantized:
    """Quantizes averages from elsewhere, with rounding to nearest."""
    format_ = format_of(dtype)
    leaves, treedef = jax.tree.flatten(averages)
    leaves = [jnp.asarray(x, jnp.float32) for x in leaves]
    amax = jnp.array([jnp.max(x, initial=0) for x in leaves], jnp.float32)
    scale = format_.scale_of(amax)
    codes = [format_.encode_nearest(x, scale[i]) for i, x in enumerate(leaves)]
    return Quantized(amax, treedef.unflatten(codes), scale)


def dequantize(averages: Quantized) -> Any:
    """The values in float32."""
    leaves, treedef = jax.tree.flatten(averages.codes)
    (all_scales,) = jax.tree.leaves(averages.scale)  # Flax NNX wraps it in a Variable

    def value(codes: jax.Array, scale: jax.Array) -> jax.Array:
        # Stacked models, as vmap makes them, have one scale each.
        scale = jnp.expand_dims(scale, range(scale.ndim, codes.ndim))
        format_ = format_of(codes.dtype)
        return format_.decode(codes, *format_.decoding(scale))

    return treedef.unflatten(value(codes, all_scales[..., i]) for i, codes in enumerate(leaves))


def largest_codes(averages: Quantized) -> Any:
    """For each leaf, the code of an element that is clipped."""
    leaves, treedef = jax.tree.flatten(averages.codes)
    (scale,) = jax.tree.leaves(averages.scale)
    return treedef.unflatten(
        format_of(codes.dtype).encode_nearest(jnp.float32(jnp.inf), scale[..., i])
        for i, codes in enumerate(leaves)
    )


def arrays(averages: Any) -> Any:
    """The arrays with the parameters' shapes."""
    return averages.codes if is_quantized(averages) else averages


def next_scales(
    averages: Any, column: Sequence[Any], given: Sequence[int], decay: ArrayLike
) -> tuple[Any, list[jax.Array]]:
    """The next scales of the leaves that have a gradient, and these leaves' codings.

    None and an empty list if the averages are not quantized.

    Args:
      averages: The averages of all leaves.
      column: Their `arrays`, one per gradient.
      given: The indices of the gradients that are not None.
      decay: The factor by which this step decays the old averages.
    """
    if not is_quantized(averages) or not given:
        return None, []
    at = _positions(averages, column)[list(given)]
    amax, scale = (_take(vector, at) for vector in (averages.amax, averages.scale))
    format_ = format_of(column[given[0]].dtype)
    next_scale = format_.next_scale(amax, scale, decay)
    return next_scale, [*format_.decoding(scale), *format_.encoding(next_scale)]


def with_stored(
    averages: Any,
    treedef: Any,
    column: Sequence[Any],
    given: Sequence[int],
    stored: Sequence[Any],
    next_scale: Any,
) -> Any:
    """The averages with the results of `store`, ``stored``, at the leaves that have a gradient.

    The other arguments are those of `next_scales`, and the scales that it returned.
    """
    new = dict(zip(given, stored, strict=True))
    if not is_quantized(averages):
        return treedef.unflatten(new.get(i, kept) for i, kept in enumerate(column))
    if not given:
        return averages
    codes = treedef.unflatten(new[i][0] if i in new else kept for i, kept in enumerate(column))
    at = _positions(averages, column)[list(given)]
    newest = jnp.stack([amax for _, amax in stored])
    amax = format_of(column[given[0]].dtype).next_amax(_take(averages.amax, at), newest)
    return Quantized(_put(averages.amax, at, amax), codes, _put(averages.scale, at, next_scale))


def _positions(averages: Quantized, column: Sequence[Any]) -> np.ndarray:
    """The index in the vectors of each element of ``column``."""
    # A gradient of None may stand for a whole tree of averages.
    sizes = [len(jax.tree.leaves(codes)) for codes in column]
    for name in ("amax", "scale"):
        shape = jnp.shape(getattr(averages, name))
        if shape != (sum(sizes),):
            raise ValueError(
                f"state: {name} must have one number for each of {sum(sizes)} leaves, got "
                f"shape {shape}; give the state of this optimizer for these params"
            )
    return np.cumsum([0, *sizes])[:-1]


def _take(vector: jax.Array, at: np.ndarray) -> jax.Array:
    return vector if len(at) == len(vector) else vector[at]


def _put(vector: jax.Array, at: np.ndarray, new: jax.Array) -> jax.Array:
    return new if len(at) == len(vector) else vector.at[at].set(new)
