"""Live models and optimizers of Keras 3 and of tf.keras."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.interop import _records
from rmsprop_jax.interop._checkpoint import Changes, Checkpoint
from rmsprop_jax.interop._keras_parts import group, jax_dtype
from rmsprop_jax.interop._mapping import listed
from rmsprop_jax.interop._state import checked_step, step_as


class Live(NamedTuple):
    """An optimizer and its variables.

    Attributes:
      optimizer: The RMSprop itself, without a wrapper around it.
      legacy: Whether it is the one of TensorFlow 2.10 and earlier.
      trained: The variables that it trains.
      slots: The averages of each of them, by slot.
      others: Other floating-point variables of the model, if a model was given.
    """

    optimizer: Any
    legacy: bool
    trained: Sequence[Any]
    slots: Sequence[Mapping[str, Any]]
    others: Sequence[Any]

    def variables(self) -> dict[str, Any]:
        """All variables of the model by name; no two may have the same name."""
        variables = [*self.trained, *self.others]
        names = [name_of(v) for v in variables]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"two variables have the same path: {listed(twice)}; give each its own"
            )
        return dict(zip(names, variables, strict=True))


def opened(source: Any) -> Live:
    """The variables of an optimizer and its model; it must be Keras's own RMSprop."""
    model = source if hasattr(source, "layers") else None
    optimizer = source if model is None else getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError("the model has no optimizer: compile it, or pass the optimizer")
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    kind = type(optimizer)
    package = kind.__module__.partition(".")[0]
    if kind.__name__ != "RMSprop" or package not in ("keras", "tf_keras", "tensorflow"):
        raise ValueError(
            f"not a keras.optimizers.RMSprop: {kind.__module__}.{kind.__qualname__}; only "
            "Keras's own RMSprop can be loaded"
        )
    if hasattr(optimizer, "get_slot") or hasattr(optimizer, "_index_dict"):
        return _opened_tf_keras(optimizer, model)
    if not optimizer.built:
        raise ValueError(
            "the optimizer has no state yet: call optimizer.build(model.trainable_variables)"
        )
    # Keras has no public name for the variables that an optimizer trains, nor for its averages.
    trained = optimizer._trainable_variables
    slots = [_slots_at(optimizer, i) for i in range(len(trained))]
    return Live(optimizer, False, trained, slots, _untrained(model, trained))


def _opened_tf_keras(optimizer: Any, model: Any) -> Live:
    legacy = hasattr(optimizer, "get_slot")
    if model is None:
        raise ValueError(
            "an optimizer of tf.keras does not know its variables: pass the model that was "
            "compiled with it"
        )
    if not (optimizer.get_slot_names() if legacy else getattr(optimizer, "_built", False)):
        raise ValueError("the optimizer has no state yet: take one step with it")
    trained = model.trainable_variables
    slots = [
        _legacy_slots(optimizer, v) if legacy else _slots_by_key(optimizer, v) for v in trained
    ]
    return Live(optimizer, legacy, trained, slots, _untrained(model, trained))


def _legacy_slots(optimizer: Any, variable: Any) -> dict[str, Any]:
    try:
        return {slot: optimizer.get_slot(variable, slot) for slot in optimizer.get_slot_names()}
    except KeyError:  # It has never received a gradient.
        return {}


def _slots_by_key(optimizer: Any, variable: Any) -> dict[str, Any]:
    i = optimizer._index_dict.get(optimizer._var_key(variable))
    return {} if i is None else _slots_at(optimizer, i)


def _slots_at(optimizer: Any, i: int) -> dict[str, Any]:
    lists = {
        "velocity": optimizer._velocities,
        "momentum": optimizer._momentums,
        "average_gradient": optimizer._average_gradients,
    }
    return {slot: variables[i] for slot, variables in lists.items() if variables}


def _untrained(model: Any, trained: Sequence[Any]) -> list[Any]:
    """The model's variables that are not trained, without seeds and counters."""
    known = {id(v) for v in trained}
    return [
        v
        for v in ([] if model is None else model.variables)
        if id(v) not in known and jnp.issubdtype(jax_dtype(v.dtype), jnp.inexact)
    ]


def read(live: Live, overrides: Mapping[str, Any] | None) -> Checkpoint:
    """The checkpoint that the variables hold. To save, ``overrides`` are None."""
    optimizer, variables = live.optimizer, live.variables()
    names = [name_of(v) for v in live.trained]
    step = checked_step("iterations", _array(optimizer.iterations))

    def current_rate() -> tuple[int, float]:
        schedule = getattr(optimizer, "_learning_rate", optimizer.learning_rate)
        return step, float(_array(schedule(step)))

    options = group(
        optimizer.get_config(), names, overrides, legacy=live.legacy, current_rate=current_rate
    )
    _reject_extras(live, {} if overrides is None else options.hyperparameters)
    states = {
        name: {slot: _array(v) for slot, v in slots.items()}
        for name, slots in zip(names, live.slots, strict=True)
    }
    values = {name: _array(v) for name, v in variables.items()}
    return Checkpoint(values, states, [options], step)


def _reject_extras(live: Live, options: Mapping[str, Any]) -> None:
    for variable in live.trained:
        # The config does not list exclusions, and Keras has no public name for them.
        if options.get("weight_decay") and not live.optimizer._use_weight_decay(variable):
            raise ValueError(
                f"{name_of(variable)} is excluded from weight decay, but dialects.keras decays all "
                "parameters; pass weight_decay=None to load without it"
            )
        if variable.constraint is not None:
            raise ValueError(
                f"{name_of(variable)} has a constraint, which dialects.keras does not support; "
                "remove it"
            )


def write(live: Live, changes: Changes) -> None:
    """Assigns the variables, all or none of them."""
    variables, iterations = live.variables(), live.optimizer.iterations
    assigned = [(variables[name], x) for name, x in changes.values.items()]
    for variable, slots in zip(live.trained, live.slots, strict=True):
        states = changes.states.get(name_of(variable), {})
        assigned += [(slots[slot], x) for slot, x in states.items()]
    # All arrays are converted before any is assigned.
    step = step_as(changes.step, jax_dtype(iterations.dtype))
    assigned = [(v, _records.cast(name_of(v), x, jax_dtype(v.dtype))) for v, x in assigned]
    for variable, x in assigned:
        # TensorFlow does not accept JAX's bfloat16.
        _assign(variable, x.astype(np.result_type(x, np.float32)))
    iterations.assign(int(step))


def _assign(variable: Any, x: np.ndarray) -> None:
    if hasattr(variable, "path"):
        variable.assign(x)
        return
    import tensorflow as tf

    variable.assign(tf.cast(x, variable.dtype))


def name_of(variable: Any) -> str:
    """A variable's path: its ``path`` in Keras 3, its ``name`` in TensorFlow."""
    return getattr(variable, "path", None) or variable.name.removesuffix(":0")


def _array(variable: Any) -> np.ndarray:
    if not hasattr(variable, "path") and hasattr(variable, "numpy"):
        return np.asarray(variable.numpy())
    import keras

    ops: Any = keras.ops  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(ops.convert_to_numpy(variable))
