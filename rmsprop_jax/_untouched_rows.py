"""Skips rows that a step does not use, as TensorFlow's sparse updates of an embedding do."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax import _states, _trees, _validate


def untouched_rows(
    optimizer: optax.GradientTransformation, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Does not change rows whose gradient is zero: their parameters, averages and momentum.

    A batch uses few rows of an embedding; the gradient of the others is zero. Dense RMSprop
    updates these all the same: v decays, momentum goes on, weights decay. TensorFlow 1 and Sonnet
    update only the rows in use, and so does ``tf.keras`` with momentum, up to TensorFlow 2.10.
    This is their rule, around any optimizer of this package:

    .. math::

        (w_{t+1}, v_t, m_t, b_t)_i = (w_t, v_{t-1}, m_{t-1}, b_{t-1})_i
        \quad \text{for rows } i \text{ with } g_{t,i} = 0

    A row is a slice along the first axis. A row that is used but has a gradient of exactly zero
    counts as unused. Learning rate, bias correction and schedules count all steps of the
    optimizer, not those of a row. The computation is dense: it reads and writes the whole table.

    Args:
      optimizer: One of this package, or one of Optax whose state has arrays like the parameters.
        Put ``optax.MultiSteps`` around ``untouched_rows``, not inside: it counts its own steps.
      mask: Which leaves are embeddings, with such rows: a tree of booleans like the parameters, a
        prefix of it, or a function from the gradients to either; ``None`` means every leaf that is
        not a scalar. In other leaves a gradient of zero is averaged like any other.

    Returns:
      A transformation with the state of ``optimizer``.

    Raises:
      TypeError: If ``optimizer`` is not a transformation, or ``mask`` does not hold booleans.
      ValueError: If ``mask`` is not a prefix of the gradients, or if the state is in 8 bits, where
        every step rescales all codes (``accumulator_dtype="bfloat16"`` works), is that of
        ``optax.MultiSteps``, or has arrays of other shapes than the parameters'.

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
    if not callable(getattr(optimizer, "update", None)):
        raise TypeError(f"optimizer must be an Optax transformation, got {optimizer!r}")
    optimizer = optax.with_extra_args_support(optimizer)
    mask = True if mask is None else _validate.mask(mask)

    def init(params: Any) -> Any:
        state = optimizer.init(params)
        _check_supported(state)
        return state

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        touched = _touched(updates, mask)
        new_updates, new = optimizer.update(updates, state, params, **extra_args)

        def touched_of_params(average: Any) -> Any:
            return jax.tree.map(_rows_of, touched, average, updates, is_leaf=lambda x: x is None)

        # Arrays like the parameters are updated by row, all other leaves of the state always.
        is_touched = optax.tree_utils.tree_map_params(
            optimizer,
            touched_of_params,
            new,
            transform_non_params=lambda _: True,
            is_leaf=lambda _: True,
        )
        updates = jax.tree.map(lambda t, u: _where(t, u, 0), touched, new_updates)
        return updates, jax.tree.map(_where, is_touched, new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _touched(updates: Any, mask: Any) -> Any:
    """Per gradient, which rows it touches, of shape (n, 1, ...); True if all of them."""

    def rows(chosen: Any, g: Any) -> Any:
        if not chosen or not _trees.has_gradient(g) or jnp.ndim(g) == 0:
            return True
        return jnp.any(g != 0, axis=tuple(range(1, jnp.ndim(g))), keepdims=True)

    def below(chosen: Any, tree: Any) -> Any:
        return jax.tree.map(lambda g: rows(chosen, g), tree, is_leaf=lambda x: x is None)

    chosen = mask(updates) if callable(mask) else mask
    try:
        return jax.tree.map(below, chosen, updates)
    except ValueError as error:
        raise _validate.bad_prefix(chosen, updates) from error


def _rows_of(touched: Any, average: Any, g: Any) -> Any:
    """``touched``, once per array that the state has for a parameter."""

    def rows(x: Any) -> Any:
        if touched is not True and jnp.shape(x) != jnp.shape(g):
            raise ValueError(
                "untouched_rows needs a state of arrays like the parameters, got one of shape "
                f"{jnp.shape(x)} for a gradient of shape {jnp.shape(g)}"
            )
        return touched

    return jax.tree.map(rows, average)


def _check_supported(state: Any) -> None:
    """Raises if single rows of a state cannot be left unchanged."""

    def is_unsupported(x: Any) -> bool:
        return _states.is_quantized(x) or isinstance(x, optax.MultiStepsState)

    for node in filter(is_unsupported, jax.tree.leaves(state, is_leaf=is_unsupported)):
        if isinstance(node, optax.MultiStepsState):
            raise ValueError(
                "untouched_rows must be inside optax.MultiSteps, got the opposite; "
                "write optax.MultiSteps(untouched_rows(optimizer), every_k_schedule)"
            )
        raise ValueError(
            "untouched_rows needs averages in float32 or bfloat16, got an 8-bit state, where "
            "every step rescales all codes; give accumulator_dtype='bfloat16'"
        )


def _where(touched: Any, new: Any, old: Any) -> Any:
    return new if touched is True else jnp.where(touched, new, old)
