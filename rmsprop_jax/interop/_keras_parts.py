"""Shared by all formats of Keras: the options, and where a file keeps its arrays."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.interop import _records
from rmsprop_jax.interop._checkpoint import Changes, Group
from rmsprop_jax.interop._records import Slots
from rmsprop_jax.interop._state import step_as

_SHARED = (
    "learning_rate",
    "rho",
    "momentum",
    "epsilon",
    "centered",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
)
_UNSUPPORTED = ("use_ema", "loss_scale_factor", "gradient_accumulation_steps")


class Places(NamedTuple):
    """Where a file keeps its arrays.

    Attributes:
      values: The keys of the model's arrays, by name.
      slots: The keys of the averages: {name: {slot: key}}.
      step: The key of the step.
    """

    values: dict[str, str]
    slots: dict[str, dict[str, str]]
    step: str

    def changed(self, changes: Changes, dtype_of: Callable[[str], Any]) -> dict[str, np.ndarray]:
        """The arrays to write, {key: array}, in the file's dtypes."""
        arrays = {self.values[name]: x for name, x in changes.values.items()}
        for name, slots in changes.states.items():
            arrays |= {self.slots[name][slot]: x for slot, x in slots.items()}
        cast = {key: _records.cast(key, x, dtype_of(key)) for key, x in arrays.items()}
        return cast | {self.step: step_as(changes.step, dtype_of(self.step))}


def group(
    config: Mapping[str, Any],
    names: Sequence[str],
    overrides: Mapping[str, Any] | None,
    *,
    legacy: bool = False,
    current_rate: Callable[[], tuple[int, float]] | None = None,
) -> Group:
    """The group of parameters that an optimizer of this configuration trains.

    Args:
      config: As ``optimizer.get_config()`` returns it.
      names: The names of the variables that it trains.
      overrides: Arguments of the dialect that replace those of ``config``; None to save, which
        keeps the learning rate.
      legacy: Whether this is the rule of ``tf.keras`` up to TensorFlow 2.10.
      current_rate: Returns a schedule's current step and rate; None if they are not known.
    """
    for name in _UNSUPPORTED:
        if config.get(name):
            raise ValueError(
                f"{name}={config[name]}: dialects.keras has no such option; build the optimizer "
                f"without {name}"
            )
    dialect = dialects.tf_keras if legacy else dialects.keras
    if overrides is None:
        overrides = {"learning_rate": 0.0, "decay": 0.0} if legacy else {"learning_rate": 0.0}
    known = (*_SHARED, "decay" if legacy else "weight_decay")
    read = {name: config[name] for name in known if name in config}
    if "learning_rate" not in overrides and isinstance(read.get("learning_rate"), Mapping):
        read["learning_rate"] = _rate_of_schedule(read["learning_rate"], current_rate)
    options = _records.as_python_numbers({**read, **overrides})
    if _is_keras_object(rate := options.get("learning_rate")):
        raise ValueError(f"learning_rate is Keras's {type(rate).__name__}: {_PASS_RATE}")
    dialect(**options)  # Rejects bad values before `slots` reads them.
    return Group(dialect, options, names, slots(options, legacy=legacy), subtracts_momentum=True)


def slots(options: Mapping[str, Any], *, legacy: bool = False) -> Slots:
    """Keras's names of the averages that an optimizer with these options has."""
    square, mean = ("rms", "mg") if legacy else ("velocity", "average_gradient")
    return {
        "square": square,
        "momentum": "momentum" if options.get("momentum", 0.0) > 0 else None,
        "mean": mean if options.get("centered", False) else None,
    }


_PASS_RATE = "pass learning_rate=, the same schedule written for Optax"


def _rate_of_schedule(
    schedule: Mapping[str, Any], current_rate: Callable[[], tuple[int, float]] | None
) -> float:
    name = schedule.get("class_name", "schedule")
    if current_rate is None:
        raise ValueError(f"learning_rate is Keras's {name}: {_PASS_RATE}")
    step, rate = current_rate()
    warnings.warn(
        f"learning_rate is Keras's {name}: the run continues at its rate in step {step}, "
        f"{rate:.6g}, without the schedule; {_PASS_RATE}",
        stacklevel=6,
    )
    return rate


def _is_keras_object(x: Any) -> bool:
    package = type(x).__module__.partition(".")[0]
    return isinstance(x, Mapping) or package in ("keras", "tf_keras")


def jax_dtype(dtype: Any) -> Any:
    """Converts a dtype of Keras or TensorFlow to JAX's."""
    return jnp.dtype(getattr(dtype, "as_numpy_dtype", dtype))
