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
    update the used rows only, and so does ``tf.keras`` to TensorFlow 2.10 where it has momentum.
    This is their rule, around any optimizer of this package:

    .. math::

        (w_{t+1}, v_t, m_t, b_t)_i = (w_t, v_{t-1}, m_{t-1}, b_{t-1})_i
        \quad \text{for rows } i \text{ with } g_{t,i} = 0

    A row is a slice along the first axis. A row that was used and whose gradient is exactly zero
    cannot be told from one that was not. Learning rate, bias correction and schedules go by the
    steps of the whole optimizer. The step is dense: it reads and writes the whole table.

    Args:
      optimizer: One of this package's, or of Optax's with a state of arrays like the parameters.
        ``optax.MultiSteps`` goes around it, not inside: it counts steps of its own.
      mask: Which leaves have such rows, the embeddings: a tree of booleans like the parameters or
        a prefix of it, or a function that makes one of them; ``None`` means every leaf with an
        axis. Elsewhere a gradient of zero is an observation like any other.

    Returns:
      A transformation with the state of ``optimizer``.

    Raises:
      TypeError: If ``optimizer`` is not a transformation, or ``mask`` not of booleans.
      ValueError: If ``mask`` is not a prefix of the gradients, or if the state is in 8 bits, whose
        codes are scaled anew in every step (``accumulator_dtype="bfloat16"`` works), of
        ``optax.MultiSteps``, or of arrays of other shapes than the parameters'.

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
        _check(state)
        return state

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        touched = _touched(updates, mask)
        new_updates, new = optimizer.update(updates, state, params, **extra_args)

        def of_params(average: Any) -> Any:
            return jax.tree.map(_rows_of, touched, average, updates, is_leaf=lambda x: x is None)

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

    chosen = mask(updates) if callable(mask) else mask
    try:
        return jax.tree.map(below, chosen, updates)
    except ValueError as error:
        raise _validate.bad_prefix(chosen, updates) from error


def _rows_of(touched: Any, average: Any, g: Any) -> Any:
    """``touched`` for each array that the state has for a parameter."""

    def rows(x: Any) -> Any:
        if touched is not True and jnp.shape(x) != jnp.shape(g):
            raise ValueError(
                "untouched_rows needs a state of arrays like the parameters, got one of shape "
                f"{jnp.shape(x)} for a gradient of shape {jnp.shape(g)}"
            )
        return touched

    return jax.tree.map(rows, average)


def _check(state: Any) -> None:
    """Raises if rows of a state cannot be kept."""

    def is_known(x: Any) -> bool:
        return _states.is_quantized(x) or isinstance(x, optax.MultiStepsState)

    for node in filter(is_known, jax.tree.leaves(state, is_leaf=is_known)):
        if isinstance(node, optax.MultiStepsState):
            raise ValueError(
                "untouched_rows must stand inside optax.MultiSteps, got it inside untouched_rows; "
                "write optax.MultiSteps(untouched_rows(optimizer), every_k_schedule)"
            )
        raise ValueError(
            "untouched_rows needs averages in float32 or bfloat16, got an 8-bit state, whose "
            "codes are scaled anew in every step; give accumulator_dtype='bfloat16'"
        )


def _where(touched: Any, new: Any, old: Any) -> Any:
    return new if touched is True else jnp.where(touched, new, old)
