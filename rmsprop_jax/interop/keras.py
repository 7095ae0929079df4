"""Checkpoints of Keras 3's ``keras.optimizers.RMSprop``: read, continue in JAX, write back.

A checkpoint is a live optimizer that has been built, or the path of the ``.keras`` file
of a compiled model. Keras may run on any of its backends.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.interop import _convert, _records
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import Leaf, check_mapping, listed

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
    source: Any, params: Any, mapping: Mapping[str, Leaf] | None = None, **hyperparameters: Any
) -> Restored:
    """Loads a run of ``keras.optimizers.RMSprop``, to continue with `dialects.keras`.

    Args:
      source: The optimizer, built, or the path of a ``.keras`` file. If the model has
        custom layers, load it yourself and pass ``model.optimizer``.
      params: A tree with the structure, shapes and dtypes of the parameters to return.
        Its values are not used.
      mapping: For each variable that the optimizer trains, the `Leaf` of ``params`` that
        holds it, by the variable's ``path``. ``None`` maps every path to itself. In a live
        Sequential model paths begin with the model's name, in one loaded from a file they
        do not.
      **hyperparameters: Arguments of `dialects.keras` that replace the optimizer's. A
        schedule of Keras must be replaced: give ``learning_rate`` an Optax schedule.

    Returns:
      A `Restored`.

    Raises:
      ValueError: If the optimizer is not RMSprop, has not been built or uses an option
        that `dialects.keras` does not have, an array is not finite or has the wrong shape,
        or names do not match. The message names the variable.
      TypeError: If an array is not floating point, or real where ``params`` are complex
        or the other way round, or ``mapping`` is not a dictionary of `Leaf`.

    Example:
      >>> import jax.numpy as jnp
      >>> import keras
      >>> from rmsprop_jax import interop
      >>> optimizer = keras.optimizers.RMSprop(0.01, momentum=0.9)
      >>> optimizer.build([keras.Variable([1.0, 2.0, 3.0], name="w")])
      >>> restored = interop.keras.load(optimizer, params={"w": jnp.zeros(3)})
      >>> print(restored.params["w"], restored.step)
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
        record = _records.checked_record(name, _array(variable), arrays, slots)
        records[name] = _records.negate_momentum(record)
    mapping = check_mapping(mapping, records, params)
    step = int(_array(optimizer.iterations))
    params, state = _convert.restore(params, mapping, records, transformation, step)
    return Restored(params, transformation, state, step, (options,))


def save(
    target: Any,
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    step: int | None = None,
) -> Any:
    """Writes parameters and state into a Keras optimizer and the model that it trains.

    Args:
      target: A live optimizer, built, whose variables are assigned, or the path of a
        ``.keras`` file, which is overwritten. Its hyperparameters stay.
      params: The parameters.
      state: The state of `dialects.keras`.
      mapping: As in `load`.
      step: Steps taken, for Keras's ``iterations``. ``None`` reads it from the state, which
        keeps it only if the learning rate is a schedule or an average is in low precision.

    Returns:
      ``target``.

    Raises:
      ValueError, TypeError: As in `load`; also if ``state`` and ``target`` differ in
        whether they are centred or have momentum. Nothing has been assigned then.
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
    mapping = check_mapping(mapping, shapes, params)
    without_step = dialects.keras(**options)
    with_step = dialects.keras(
        **options | _convert.options_that_count_steps("learning_rate", state)
    )
    _convert.check_state(state, params, "dialects.keras", without_step, with_step)
    records = _convert.to_records(params, state, mapping, shapes)
    step = _convert.resolve_step(state, step)
    assigned = []
    for name, record in records.items():
        variable, slot_variables = found[name]
        record = _records.negate_momentum(record)
        assigned.append((variable, record.value))
        for field, slot in slots.items():
            if slot is not None:
                assigned.append((slot_variables[slot], getattr(record, field)))
    # Convert all arrays before assigning any, so that an error leaves the target unchanged.
    assigned = [(v, _records.cast(v.path, x, jnp.dtype(v.dtype))) for v, x in assigned]
    for variable, x in assigned:
        # TensorFlow does not accept JAX's bfloat16.
        variable.assign(x.astype(np.result_type(x, np.float32)))
    target.iterations.assign(step)
    return target


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _model(path: str | os.PathLike) -> Any:
    import keras

    if not os.fspath(path).endswith(".keras"):
        raise ValueError(
            f"{os.fspath(path)} is not a .keras file: load the model with Keras and pass "
            "model.optimizer"
        )
    model: Any = keras.saving.load_model(path)
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"{os.fspath(path)} holds no optimizer: its model was not compiled when it was saved"
        )
    return model


def _hyperparameters(optimizer: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `dialects.keras` that reproduce the optimizer, if there are any."""
    kind = type(optimizer)
    if kind.__name__ != "RMSprop" or kind.__module__.partition(".")[0] != "keras":
        raise ValueError(
            f"not a keras.optimizers.RMSprop: {kind.__module__}.{kind.__qualname__}; only "
            "Keras 3's own RMSprop can be loaded"
        )
    if not optimizer.built:
        raise ValueError(
            "the optimizer has no state yet: call optimizer.build(model.trainable_variables)"
        )
    config = optimizer.get_config()
    for name in ("use_ema", "loss_scale_factor", "gradient_accumulation_steps"):
        if config.get(name):
            raise ValueError(
                f"{name}={config[name]}: dialects.keras has no such option; build the optimizer "
                f"without {name}"
            )
    options = _records.as_python_numbers(
        {**{name: config[name] for name in _HYPERPARAMETERS}, **overrides}
    )
    _check_rate(options["learning_rate"])
    for variable in _trained(optimizer):
        # The config does not list exclusions, and Keras has no public name for them.
        if options["weight_decay"] and not optimizer._use_weight_decay(variable):
            raise ValueError(
                f"{variable.path} is excluded from weight decay, but dialects.keras decays all "
                "parameters; pass weight_decay=None to load without it"
            )
        if variable.constraint is not None:
            raise ValueError(
                f"{variable.path} has a constraint, and dialects.keras has none; remove it"
            )
    return options


def _check_rate(rate: Any) -> None:
    schedule = rate["class_name"] if isinstance(rate, Mapping) else type(rate).__name__
    if isinstance(rate, Mapping) or type(rate).__module__.partition(".")[0] == "keras":
        raise ValueError(
            f"learning_rate is Keras's {schedule}: pass learning_rate=, the same schedule written "
            "as one for Optax"
        )


def _slots(options: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        "square": "velocity",
        "mean": "average_gradient" if options["centered"] else None,
        "momentum": "momentum" if options["momentum"] > 0 else None,
    }


def _trained(optimizer: Any) -> Sequence[Any]:
    # Keras has no public name for the variables that an optimizer trains.
    return optimizer._trainable_variables


def _variables(optimizer: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """{path: (variable, {slot: its variable})}, for all trained variables."""
    trained = _trained(optimizer)
    paths = [variable.path for variable in trained]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"two variables have one path: {listed(sorted(paths))}; give each its own name"
        )
    slots: list[dict[str, Any]] = [{} for _ in trained]
    for slot in ("velocity", "momentum", "average_gradient"):
        # They are in the order of the trained variables.
        kept = [x for x in optimizer.variables if x.path.endswith(f"_{slot}")]
        if len(kept) not in (0, len(trained)):
            raise ValueError(
                f"the optimizer trains {len(trained)} variables but has {len(kept)} of {slot}: "
                f"{listed(paths)}; rename variables that end in _{slot}"
            )
        for slots_of_one, variable in zip(slots, kept, strict=False):
            slots_of_one[slot] = variable
    return dict(zip(paths, zip(trained, slots, strict=True), strict=True))


def _array(variable: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable))
