"""States of ``optax.rmsprop``: continue with this package's `rmsprop`, and convert back.

The parameters are not changed: both optimizers are Optax transformations of the same tree.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from rmsprop_jax import _states
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax.interop import _optax_parts, _records, _state
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import leaves_of, shown
from rmsprop_jax.interop._optax_arrays import (
    arrays_of,
    averages_of,
    check_equal,
    checked_arrays,
    counts_of,
    shapes_of,
)
from rmsprop_jax.interop._optax_parts import Part


def load(
    source: Any,
    params: optax.Params,
    *,
    accumulator_dtype: DTypeLike | None = None,
    **hyperparameters: Any,
) -> Restored:
    """Loads a run of ``optax.rmsprop``, to continue with `rmsprop_jax.rmsprop`.

    If `rmsprop` can use a state as it is, the same arrays are returned. That holds for every state
    of `rmsprop` itself, and for Optax's unless it is centred, complex or below float32.

    Args:
      source: A state that contains one ``optax.rmsprop`` state: that state itself, that of an
        ``optax.chain``, ``inject_hyperparams``, ``MultiSteps`` or ``partition`` around it, or a
        train state. It may consist of dictionaries and lists, as Orbax and Flax restore it
        without a target.
      params: The parameters; they are returned unchanged. Inside ``partition`` or ``masked``,
        pass all parameters, or only those that RMSprop trains.
      accumulator_dtype: The dtype in which to keep the averages from now on.
      **hyperparameters: The arguments of ``optax.rmsprop`` in that run. Its state does not
        hold them; only ``inject_hyperparams(optax.rmsprop)`` keeps those that are numbers. They
        are read, unless you pass others. A schedule must be passed.

    Returns:
      A `Restored`. Its state is that of RMSprop alone; put it where ``source`` has its own. Where
      a mask leaves out parameters, it has ``optax.MaskedNode``, as Optax's state does. The
      optimizer then takes gradients with the same mask, as in ``optax.partition``, and raises on
      others.

    Raises:
      ValueError: If ``source`` has no state of that optimizer for those parameters, or more than
        one, or contains an invalid number. The message names the leaf.
      TypeError: If an array is not floating point, or a hyperparameter is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from rmsprop_jax import interop
      >>> params = {"w": jnp.ones(3)}
      >>> theirs = optax.chain(optax.clip(1.0), optax.rmsprop(0.01, momentum=0.9))
      >>> updates, state = theirs.update(params, theirs.init(params), params)
      >>> restored = interop.optax.load(state, params, learning_rate=0.01, momentum=0.9)
      >>> updates, state = restored.optimizer.update(params, restored.state, params)
    """
    part, hyperparameters = _find("source", source, hyperparameters)
    ours = rmsprop(**hyperparameters, accumulator_dtype=accumulator_dtype)
    theirs = optax.rmsprop(**hyperparameters)
    for keys, leaf in leaves_of(params).items():
        _records.checked_array(f"params: {shown(keys)}", leaf)
    trained = _trained(params, part)
    like = jax.eval_shape(ours.init, trained)
    wanted = arrays_of(like)
    arrays = checked_arrays("source", part, shapes_of(theirs, trained), wanted)
    counts = counts_of("source", part, arrays)
    fields = averages_of("source", arrays, None if accumulator_dtype else wanted)
    step = max(counts.values(), default=None)
    state = part.state
    if not _fits(state, like):
        check_equal("source", counts)
        if not fields["var"]:
            _center(fields, step, **hyperparameters)
        state = _state.fill_state(like, fields, step)
    hyperparameters["accumulator_dtype"] = accumulator_dtype
    return Restored(params, ours, state, step, (hyperparameters,))


def save(
    target: Any,
    params: optax.Params,
    state: Any,
    *,
    accumulator_dtype: DTypeLike | None = None,
    **hyperparameters: Any,
) -> Any:
    """Converts a state of `rmsprop_jax.rmsprop` to that of ``optax.rmsprop`` inside ``target``.

    Args:
      target: A state that contains one ``optax.rmsprop`` state, such as ``init`` returns:
        anything that `load` reads.
      params: The parameters, as in `load`.
      state: The state of `rmsprop_jax.rmsprop`, or one that contains it.
      accumulator_dtype: The dtype in which ``state`` keeps its averages.
      **hyperparameters: The arguments of both optimizers, as in `load`.

    Returns:
      ``target`` with its RMSprop state replaced, in the same containers and dtypes. Optax can
      continue the run from it. Everything else is as in ``target``, such as the counters of
      ``MultiSteps``; only those of ``inject_hyperparams`` are set, if ``state`` counts steps.

    Raises:
      ValueError, TypeError: As in `load`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from rmsprop_jax import interop, rmsprop
      >>> params = {"w": jnp.ones(3)}
      >>> ours = rmsprop(0.01)
      >>> updates, state = ours.update(params, ours.init(params), params)
      >>> theirs = optax.chain(optax.clip(1.0), optax.rmsprop(0.01))
      >>> state = interop.optax.save(theirs.init(params), params, state, learning_rate=0.01)
      >>> updates, state = theirs.update(params, state, params)
    """
    part, hyperparameters = _find("target", target, hyperparameters)
    given, _ = _find("state", state, hyperparameters)
    ours = rmsprop(**hyperparameters, accumulator_dtype=accumulator_dtype)
    trained = _trained(params, part)
    theirs = optax.rmsprop(**hyperparameters)
    wanted = checked_arrays("target", part, shapes_of(theirs, trained))
    arrays = checked_arrays("state", given, shapes_of(ours, trained))
    counts, fields = counts_of("state", given, arrays), averages_of("state", arrays)
    check_equal("state", counts)
    step = max(counts.values(), default=None)
    _uncenter(fields, step, **hyperparameters)
    for (_, field, keys), old in wanted.items():
        if field == "nu" and jnp.iscomplexobj(old):
            fields["nu"][keys] = fields["nu"][keys] + 0j
    filled = _state.fill_state(part.state, fields, step)
    return _optax_parts.replace(target, part, filled, step)


def _find(name: str, outer: Any, given: Mapping[str, Any]) -> tuple[Part, dict[str, Any]]:
    """The RMSprop part of a state, and all hyperparameters."""
    part = _optax_parts.find(name, outer)
    hyperparameters = _optax_parts.injected_hyperparameters(name, part, given) | dict(given)
    if callable(hyperparameters.get("learning_rate")):
        part = _optax_parts.with_schedule(part)
    return part, hyperparameters


def _trained(params: Any, part: Part) -> Any:
    return _optax_parts.trained(params, _states.dequantize(part.state)[0][-1])


def _fits(state: Any, like: Any) -> bool:
    """Whether ``state`` has the structure, shapes and dtypes of ``like``."""
    if jax.tree.structure(state) != jax.tree.structure(like):
        return False
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True)
    return all(x.dtype == y.dtype and x.shape == y.shape for x, y in pairs)


def _center(fields: _state.Fields, step: int | None, **hyperparameters: Any) -> None:
    """Replaces Optax's mean and mean square with the mean and variance of `rmsprop`."""
    start, correction = _start_and_correction(step, **hyperparameters)
    for keys, mean in fields["mu"].items():
        corrected = mean / correction
        square = (fields["nu"][keys] - start) / correction
        fields["mu"][keys], fields["var"][keys] = corrected, _records.variance(square, corrected)


def _uncenter(fields: _state.Fields, step: int | None, **hyperparameters: Any) -> None:
    """The inverse of `_center`."""
    start, correction = _start_and_correction(step, **hyperparameters)
    for keys, mean in fields["mu"].items():
        square = _records.mean_square(fields["var"][keys], mean)
        fields["mu"][keys] = mean * correction
        fields["nu"][keys] = square * correction + start


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
