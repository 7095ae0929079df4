"""States of ``optax.rmsprop``: go on with this package's `rmsprop`, and back.

The parameters stay as they are: both are Optax transformations over the same tree.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_leaves_with_path
from jax.typing import DTypeLike

from rmsprop_jax import _validate
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax.interop import _state
from rmsprop_jax.interop._state import Resumed


def load(
    source: optax.OptState,
    params: optax.Params,
    *,
    accumulator_dtype: DTypeLike | None = None,
    **hyperparameters: Any,
) -> Resumed:
    """A run of ``optax.rmsprop``, to go on with `rmsprop_jax.rmsprop`.

    Args:
      source: The state of ``optax.rmsprop``: of an ``optax.chain``, the part that is
        its; of ``optax.inject_hyperparams``, the ``inner_state``.
      params: The parameters; `Resumed` has the same.
      accumulator_dtype: What to keep the averages in from now on.
      **hyperparameters: The arguments of ``optax.rmsprop``, as the run had them: its
        state does not hold them.

    Returns:
      A `Resumed`.

    Raises:
      ValueError: If an array is not finite. The message names the parameter.
      AssertionError: From chex, if ``source`` is not the state of that optimizer for
        those parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from rmsprop_jax import interop
      >>> params = {"w": jnp.ones(3)}
      >>> theirs = optax.rmsprop(0.01, momentum=0.9)
      >>> updates, state = theirs.update(params, theirs.init(params), params)
      >>> resumed = interop.optax.load(state, params, learning_rate=0.01, momentum=0.9)
      >>> updates, state = resumed.optimizer.update(params, resumed.state, params)
    """
    optimizer = rmsprop(**hyperparameters, accumulator_dtype=accumulator_dtype)
    _check_state("source", source, optax.rmsprop(**hyperparameters), params)
    for keys, leaf in tree_leaves_with_path(params):
        _state.checked_array(f"params: {_state.path(keys)}", leaf)
    fields = _state.read(source)
    step = _state.counted(fields)
    start, data = _start_and_data(step, **hyperparameters)
    for path, square in fields["nu"].items():
        _state.check_square(f"source: nu of {path}", square)
        # Of a complex parameter, too, it averages |g|**2; Optax keeps a zero beside it.
        fields["nu"][path] = np.real(square)
    for path, mean in fields["mu"].items():
        corrected = mean / data
        square = (fields["nu"][path] - start) / data
        fields["mu"][path], fields["var"][path] = corrected, _state.variance(square, corrected)
    state = _state.fill(jax.eval_shape(optimizer.init, params), fields, step)
    hyperparameters["accumulator_dtype"] = accumulator_dtype
    return Resumed(params, optimizer, state, step, (hyperparameters,))


def save(
    target: optax.OptState,
    params: optax.Params,
    state: optax.OptState,
    *,
    accumulator_dtype: DTypeLike | None = None,
    **hyperparameters: Any,
) -> optax.OptState:
    """The state of ``optax.rmsprop`` that goes on where ``state`` stands.

    Args:
      target: A state of ``optax.rmsprop``, as from its ``init``.
      params: The parameters.
      state: The state of `rmsprop_jax.rmsprop`.
      accumulator_dtype: What its averages are kept in.
      **hyperparameters: The arguments of both optimizers.

    Returns:
      A new state, like ``target``.

    Raises:
      ValueError, AssertionError: As `load`.
    """
    _check_state("target", target, optax.rmsprop(**hyperparameters), params)
    ours = rmsprop(**hyperparameters, accumulator_dtype=accumulator_dtype)
    _check_state("state", state, ours, params)
    fields = _state.read(state)
    step = _state.counted(fields)
    start, data = _start_and_data(step, **hyperparameters)
    for path, mean in fields["mu"].items():
        square = _state.mean_square(fields["var"][path], mean)
        fields["mu"][path], fields["nu"][path] = mean * data, square * data + start
    for keys, leaf in tree_leaves_with_path(params):
        if jnp.iscomplexobj(leaf):
            fields["nu"][_state.path(keys)] = fields["nu"][_state.path(keys)] + 0j
    return _state.fill(target, fields, step)


def _check_state(
    name: str, state: Any, optimizer: optax.GradientTransformation, params: Any
) -> None:
    expected = jax.eval_shape(optimizer.init, params)
    like = "init(params) of the same hyperparameters"
    _validate.same_shapes_and_dtypes(name, state, expected, like=like)


def _start_and_data(
    step: int | None,
    decay: float = 0.9,
    initial_scale: float = 0.0,
    bias_correction: bool = False,
    **others: Any,
) -> tuple[float, float]:
    """How much of Optax's averages is their start, and what divides the rest in ours.

    With bias correction ours keeps both averages corrected, and without the start.
    """
    del others
    if not bias_correction:
        return 0.0, 1.0
    rest = float(decay) ** (step or 0)
    # Before the first step there is no data to divide.
    return initial_scale * rest, 1 - rest if step else 1.0
