"""States of ``optax.rmsprop``: continue with this package's `rmsprop`, and convert back.

The parameters are not changed: both optimizers are Optax transformations of the same tree.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr, tree_leaves_with_path
from jax.typing import DTypeLike

from rmsprop_jax import _validate_trees
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax.interop import _convert, _records
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import leaf_path


def load(
    source: optax.OptState,
    params: optax.Params,
    *,
    accumulator_dtype: DTypeLike | None = None,
    **hyperparameters: Any,
) -> Restored:
    """Loads a run of ``optax.rmsprop``, to continue with `rmsprop_jax.rmsprop`.

    Args:
      source: The state of ``optax.rmsprop``. From a state of ``optax.chain`` pass the
        element that belongs to ``optax.rmsprop``, from one of ``optax.inject_hyperparams``
        its ``inner_state``.
      params: The parameters; they are returned unchanged.
      accumulator_dtype: The dtype in which to keep the averages from now on.
      **hyperparameters: The arguments of ``optax.rmsprop`` in that run: its state does
        not hold them.

    Returns:
      A `Restored`.

    Raises:
      ValueError: If ``source`` is not the state of that optimizer for those parameters, or
        an array is not finite. The message names the leaf.
      TypeError: If an array is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from rmsprop_jax import interop
      >>> params = {"w": jnp.ones(3)}
      >>> theirs = optax.rmsprop(0.01, momentum=0.9)
      >>> updates, state = theirs.update(params, theirs.init(params), params)
      >>> restored = interop.optax.load(state, params, learning_rate=0.01, momentum=0.9)
      >>> updates, state = restored.optimizer.update(params, restored.state, params)
    """
    optimizer = rmsprop(**hyperparameters, accumulator_dtype=accumulator_dtype)
    _check_state("source", source, optax.rmsprop(**hyperparameters), params)
    for keys, leaf in tree_leaves_with_path(params):
        _records.checked_array(f"params: {leaf_path(keys)}", leaf)
    fields = _convert.read_state(source)
    step = _convert.step_in(fields)
    start, correction = _start_and_correction(step, **hyperparameters)
    for path, square in fields["nu"].items():
        _records.check_square(f"source: nu of {path}", square)
        # For a complex parameter Optax averages |g|**2, too, with an imaginary part of zero.
        fields["nu"][path] = np.real(square)
    for path, mean in fields["mu"].items():
        corrected = mean / correction
        square = (fields["nu"][path] - start) / correction
        fields["mu"][path], fields["var"][path] = corrected, _records.variance(square, corrected)
    state = _convert.fill_state(jax.eval_shape(optimizer.init, params), fields, step)
    hyperparameters["accumulator_dtype"] = accumulator_dtype
    return Restored(params, optimizer, state, step, (hyperparameters,))


def save(
    target: optax.OptState,
    params: optax.Params,
    state: optax.OptState,
    *,
    accumulator_dtype: DTypeLike | None = None,
    **hyperparameters: Any,
) -> optax.OptState:
    """Converts a state of `rmsprop_jax.rmsprop` to the state of ``optax.rmsprop``.

    Args:
      target: A state of ``optax.rmsprop``, such as its ``init`` returns.
      params: The parameters.
      state: The state of `rmsprop_jax.rmsprop`.
      accumulator_dtype: The dtype in which ``state`` keeps its averages.
      **hyperparameters: The arguments of both optimizers.

    Returns:
      A new state, like ``target``, with which ``optax.rmsprop`` continues the run.

    Raises:
      ValueError, TypeError: As in `load`.
    """
    _check_state("target", target, optax.rmsprop(**hyperparameters), params)
    ours = rmsprop(**hyperparameters, accumulator_dtype=accumulator_dtype)
    _check_state("state", state, ours, params)
    fields = _convert.read_state(state)
    step = _convert.step_in(fields)
    start, correction = _start_and_correction(step, **hyperparameters)
    for path, mean in fields["mu"].items():
        square = _records.mean_square(fields["var"][path], mean)
        fields["mu"][path] = mean * correction
        fields["nu"][path] = square * correction + start
    for keys, leaf in tree_leaves_with_path(params):
        if jnp.iscomplexobj(leaf):
            fields["nu"][leaf_path(keys)] = fields["nu"][leaf_path(keys)] + 0j
    return _convert.fill_state(target, fields, step)


def _check_state(
    name: str, state: Any, optimizer: optax.GradientTransformation, params: Any
) -> None:
    expected = jax.eval_shape(optimizer.init, params)
    like = "init(params) with the same hyperparameters"
    _check_shapes_and_dtypes(name, state, expected, like=like)


def _start_and_correction(
    step: int | None,
    decay: float = 0.9,
    initial_scale: float = 0.0,
    bias_correction: bool = False,
    **others: Any,
) -> tuple[float, float]:
    """The share of `initial_scale` in Optax's averages, and the divisor for the rest.

    With bias correction, centred `rmsprop` keeps corrected averages without `initial_scale`;
    Optax keeps uncorrected ones that include it. Otherwise both keep the same.
    """
    del others
    if not bias_correction:
        return 0.0, 1.0
    start_weight = float(decay) ** (step or 0)
    # Before the first step there is nothing to correct.
    return initial_scale * start_weight, 1 - start_weight if step else 1.0


def _check_shapes_and_dtypes(name: str, tree: Any, expected: Any, like: str) -> None:
    """Raises unless ``tree`` has the structure, the shapes and the dtypes of ``expected``."""
    _validate_trees.same_structure(name, tree, expected, like)
    leaves = zip(tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True)
    for (path, leaf), other in leaves:
        _validate_trees.shape(f"{name}{keystr(path)}", leaf, other, like)
        if jnp.result_type(leaf) != jnp.result_type(other):
            raise ValueError(
                f"{name}{keystr(path)} is {jnp.result_type(leaf)}, it must be "
                f"{jnp.result_type(other)} as {like} has"
            )
