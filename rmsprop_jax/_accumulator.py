"""How an average is kept between steps: its dtype. Knows nothing of RMSprop.

An average is kept in at least float32, whatever the parameters are. In bfloat16, at
decay 0.999, it stops half-way: what a step adds is less than half a unit in the last
place. In float16 the square of 1e-4 is zero and that of 300 infinite.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

SUPPORTED_DTYPES = (jnp.dtype("float32"), jnp.dtype("float64"))


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """``dtype``, or float32 where ``dtype`` is narrower; of a complex one, each part counts."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def widen(x: ArrayLike) -> jax.Array:
    """``x`` in at least float32."""
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype))


def full_like(
    leaf: Any, fill_value: Any, dtype: DTypeLike | None = None, *, real: bool = False
) -> jax.Array:
    """The average of a parameter at the start: its shape and sharding, a dtype that is wide enough.

    Args:
      leaf: The parameter: an array, a scalar, or a ``jax.ShapeDtypeStruct``.
      fill_value: What the average starts from.
      dtype: Real dtype to keep it in; ``None`` means that of ``leaf``, at least float32.
      real: Whether the average of a complex parameter is real, as that of ``|g|**2`` is.
    """
    leaf_dtype = wide_dtype(jnp.result_type(leaf))
    kept = jnp.dtype(dtype or jnp.finfo(leaf_dtype).dtype)
    if jnp.issubdtype(leaf_dtype, jnp.complexfloating) and not real:
        kept = jnp.result_type(kept, jnp.complex64)
    return jnp.full_like(leaf, fill_value, dtype=kept)


def store(average: jax.Array, kept: jax.Array) -> jax.Array:
    """``average`` in the dtype of ``kept``, which it replaces."""
    return average.astype(kept.dtype)
