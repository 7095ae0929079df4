"""Rows that a step does not touch, as in TensorFlow's sparse updates of an embedding."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax import _states, _trees, _validate


def untouched_rows(
    optimizer: optax.GradientTransformation, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Leaves rows alone whose gradient is zero: their parameters, averages and momentum.

    A batch uses few rows of an embedding; the gradient of the others is zero. Dense RMSprop makes
    a step there all the same: v decays, momentum goes on, weights decay. TensorFlow 1 and Sonnet
    update the used rows only, and so does ``tf.keras`` where it has momentum. This is their rule,
    around any optimizer of this package:

    .. math::

        (w_{t+1}, v_t, m_t, b_t)_i = (w_t, v_{t-1}, m_{t-1}, b_{t-1})_i
        \quad \text{for rows } i \text{ with } g_{t,i} = 0

    A row is a slice along the first axis. A row that was used and whose gradient is exactly zero
    cannot be told from one that was not. Learning rate, bias correction and schedules go by the
    steps of the whole optimizer. The step is dense: it reads and writes the whole table.

    Args:
      optimizer: One of this package's, or of Optax's with a state of arrays like the parameters.
      mask: Which leaves have such rows, the embeddings: a tree of booleans like the parameters or
        a prefix of it, or a function that makes one of them; ``None`` means every leaf with an
        axis. Elsewhere a gradient of zero is an observation like any other.

    Returns:
      A transformation with the state of ``optimizer``.

    Raises:
      TypeError: If ``mask`` is not of booleans.
      ValueError: If the state is in 8 bits: its codes are scaled anew in every step, those of
        untouched rows too. ``accumulator_dtype="bfloat16"`` works.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects, untouched_rows
      >>> optimizer = untouched_rows(dialects.tensorflow_v1(0.1, momentum=0.9))
      >>> embedding = jnp.zeros((3, 2))
      >>> state = optimizer.init(embedding)
      >>> for row in (0, 2):
      ...     gradient = embedding.at[row].set(1.0)
      ...     updates, state = optimizer.update(gradient, state, embedding)
      >>> print([f"{u:.2f}" for u in updates[:, 0]])  # in the second step only row 2 moves
      ['0.00', '0.00', '-0.10']

    Source:
      ``SparseApplyRMSProp`` and ``SparseApplyCenteredRMSProp`` of `TensorFlow
      <https://www.tensorflow.org/api_docs/python/tf/raw_ops/SparseApplyRMSProp>`_.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    mask = True if mask is None else _validate.mask(mask)

    def init(params: Any) -> Any:
        state = optimizer.init(params)
        if any(map(_states.is_quantized, jax.tree.leaves(state, is_leaf=_states.is_quantized))):
            raise ValueError(
                "untouched_rows needs averages in float32 or bfloat16, got an 8-bit state, whose "
                "codes are scaled anew in every step; give accumulator_dtype='bfloat16'"
            )
        return state

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        touched = _touched(updates, mask)
        new_updates, new = optimizer.update(updates, state, params, **extra_args)

        def of_params(average: Any) -> Any:
            return jax.tree.map(lambda t, x: jax.tree.map(lambda _: t, x), touched, average)

        # What stands in the state for the parameters goes by rows; the rest is always new.
        where_new = optax.tree_utils.tree_map_params(
            optimizer,
            of_params,
            new,
            transform_non_params=lambda _: True,
            is_leaf=lambda _: True,
        )
        moved = jax.tree.map(lambda t, u: _where(t, u, 0), touched, new_updates)
        return moved, jax.tree.map(_where, where_new, new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _touched(updates: Any, mask: Any) -> Any:
    """For each gradient the rows that it touches, (n, 1, ...), or True for all of them."""

    def rows(chosen: Any, g: Any) -> Any:
        if not chosen or not _trees.has_gradient(g) or jnp.ndim(g) == 0:
            return True
        return jnp.any(g != 0, axis=tuple(range(1, jnp.ndim(g))), keepdims=True)

    def below(chosen: Any, tree: Any) -> Any:
        return jax.tree.map(lambda g: rows(chosen, g), tree, is_leaf=lambda x: x is None)

    return jax.tree.map(below, mask(updates) if callable(mask) else mask, updates)


def _where(touched: Any, new: Any, old: Any) -> Any:
    return new if touched is True else jnp.where(touched, new, old)
