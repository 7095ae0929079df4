"""Checkpoints of Keras 3's ``keras.optimizers.RMSprop``: read, go on in JAX, and write back.

A checkpoint is a live optimizer that has been built, or the path of a ``.keras`` file
of a compiled model. Keras may run on any of its backends.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.interop import _state
from rmsprop_jax.interop._state import Place, Resumed

_HYPERPARAMETERS = (
    "learning_rate",
    "rho",
    "momentum",
    "epsilon",
    "centered",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
)


def load(
    source: Any, params: Any, mapping: Mapping[str, Place] | None = None, **hyperparameters: Any
) -> Resumed:
    """A run of ``keras.optimizers.RMSprop``, to go on with `dialects.keras`.

    Args:
      source: The optimizer, built, or the path of a ``.keras`` file. With layers of your
        own, load the model yourself and hand over ``model.optimizer``.
      params: A tree with the structure, shapes and dtypes that the parameters are to
        have. Its values are not used.
      mapping: For each variable that the optimizer trains, by its ``path``, its place in
        ``params``. ``None``: ``conv2d/kernel`` is at ``conv2d/kernel``. In a live
        Sequential model paths begin with its name, from a file they do not.
      **hyperparameters: Arguments of `dialects.keras` in the place of the optimizer's.
        Needed for a learning rate that is a schedule of Keras: write it for Optax.

    Returns:
      A `Resumed`.

    Raises:
      ValueError: If the optimizer is not RMSprop, has not been built or does what
        `dialects.keras` does not, an array is not finite, or names do not match. The
        message names the variable.
      AssertionError: From chex, if an array has another shape than it should.

    Example:
      >>> import jax.numpy as jnp
      >>> import keras
      >>> from rmsprop_jax import interop
      >>> optimizer = keras.optimizers.RMSprop(0.01, momentum=0.9)
      >>> optimizer.build([keras.Variable([1.0, 2.0, 3.0], name="w")])
      >>> resumed = interop.keras.load(optimizer, params={"w": jnp.zeros(3)})
      >>> print(resumed.params["w"], resumed.step)
      [1. 2. 3.] 0
    """
    optimizer = _model(source).optimizer if _is_path(source) else source
    options = _hyperparameters(optimizer, hyperparameters)
    transformation = dialects.keras(**options)
    slots = _slots(options)
    found = _variables(optimizer)
    records = {}
    for name, (variable, slot_variables) in found.items():
        arrays = {slot: _array(x) for slot, x in slot_variables.items()}
        record = _state.checked_record(name, _array(variable), arrays, slots)
        records[name] = _state.turned(record)
    places = _state.matched(mapping, records, params)
    step = int(_array(optimizer.iterations))
    params, state = _state.resume(params, places, records, transformation, step)
    return Resumed(params, transformation, state, step, (options,))


def save(
    target: Any,
    params: Any,
    state: Any,
    mapping: Mapping[str, Place] | None = None,
    *,
    step: int | None = None,
) -> Any:
    """Puts parameters and state into a Keras optimizer and the model that it trains.

    Args:
      target: A live optimizer, built, whose variables are assigned, or the path of a
        ``.keras`` file, which is written anew. Its hyperparameters stay.
      params: The parameters.
      state: The state of `dialects.keras`.
      mapping: As in `load`.
      step: Steps taken, for Keras's ``iterations``; ``None`` is what the state has
        counted, which it does only if the learning rate is a schedule or an average narrow.

    Returns:
      ``target``.

    Raises:
      ValueError, AssertionError: As `load`; also if the state is centred, or has
        momentum, and ``target`` is or has not. Nothing has been assigned then.
    """
    if _is_path(target):
        model = _model(target)
        save(model.optimizer, params, state, mapping, step=step)
        unfinished = f"{os.fspath(target)}.unfinished.keras"
        model.save(unfinished)
        os.replace(unfinished, target)
        return target
    options = _hyperparameters(target, {"learning_rate": 0.0})
    slots = _slots(options)
    found = _variables(target)
    shapes = {name: tuple(variable.shape) for name, (variable, _) in found.items()}
    places = _state.matched(mapping, shapes, params)
    constant = dialects.keras(**options)
    counting = dialects.keras(**options | _state.counters("learning_rate", state))
    _state.check_state(state, params, "dialects.keras", constant, counting)
    records = _state.records(params, state, places, shapes)
    step = _state.step_count(state, step)
    assigned = []
    for name, record in records.items():
        variable, slot_variables = found[name]
        assigned.append((variable, record.value))
        for field, slot in slots.items():
            if slot is not None:
                assigned.append((slot_variables[slot], getattr(_state.turned(record), field)))
    # All is converted before any is assigned.
    assigned = [(v, _state.cast(v.path, x, jnp.dtype(v.dtype))) for v, x in assigned]
    for variable, x in assigned:
        # TensorFlow takes no bfloat16 of JAX's.
        variable.assign(x.astype(np.result_type(x, np.float32)))
    target.iterations.assign(step)
    return target


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _model(path: str | os.PathLike) -> Any:
    import keras

    if not os.fspath(path).endswith(".keras"):
        raise ValueError(
            f"{os.fspath(path)} is no .keras file: load the model, and give its optimizer"
        )
    model: Any = keras.saving.load_model(path)
    if getattr(model, "optimizer", None) is None:
        raise ValueError(f"{os.fspath(path)} holds no optimizer: its model was not compiled")
    return model


def _hyperparameters(optimizer: Any, instead: Mapping[str, Any]) -> dict[str, Any]:
    """What the optimizer was made with, if `dialects.keras` can do the same."""
    kind = type(optimizer)
    if kind.__name__ != "RMSprop" or kind.__module__.partition(".")[0] != "keras":
        raise ValueError(f"not a keras.optimizers.RMSprop: {kind.__module__}.{kind.__qualname__}")
    if not optimizer.built:
        raise ValueError("the optimizer has no state: optimizer.build(model.trainable_variables)")
    config = optimizer.get_config()
    for name in ("use_ema", "loss_scale_factor", "gradient_accumulation_steps"):
        if config.get(name):
            raise ValueError(f"{name}={config[name]}: dialects.keras has nothing for it")
    options = _state.plain({**{name: config[name] for name in _HYPERPARAMETERS}, **instead})
    _check_rate(options["learning_rate"])
    for variable in _trained(optimizer):
        # Exclusions are not in the config, and have no public name.
        if options["weight_decay"] and not optimizer._use_weight_decay(variable):
            raise ValueError(
                f"{variable.path} is excluded from weight decay: dialects.keras is not"
            )
        if variable.constraint is not None:
            raise ValueError(f"{variable.path} has a constraint: dialects.keras has nothing for it")
    return options


def _check_rate(rate: Any) -> None:
    schedule = rate["class_name"] if isinstance(rate, Mapping) else type(rate).__name__
    if isinstance(rate, Mapping) or type(rate).__module__.partition(".")[0] == "keras":
        raise ValueError(f"learning_rate is Keras's {schedule}: give learning_rate=, one for Optax")


def _slots(options: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        "square": "velocity",
        "mean": "average_gradient" if options["centered"] else None,
        "momentum": "momentum" if options["momentum"] > 0 else None,
    }


def _trained(optimizer: Any) -> Sequence[Any]:
    # Keras has no public name for them.
    return optimizer._trainable_variables


def _variables(optimizer: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """{path: (variable, {slot: variable})}; in each slot they have the order of the model's."""
    trained = _trained(optimizer)
    paths = [variable.path for variable in trained]
    if len(set(paths)) < len(paths):
        raise ValueError(f"two variables have one path: {sorted(paths)}")
    slots: list[dict[str, Any]] = [{} for _ in trained]
    for slot in ("velocity", "momentum", "average_gradient"):
        kept = [x for x in optimizer.variables if x.path.endswith(f"_{slot}")]
        if len(kept) not in (0, len(trained)):
            raise ValueError(f"{len(trained)} variables, but {len(kept)} of {slot}: {paths}")
        for slots_of_one, variable in zip(slots, kept, strict=False):
            slots_of_one[slot] = variable
    return dict(zip(paths, zip(trained, slots, strict=True), strict=True))


def _array(variable: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable))
