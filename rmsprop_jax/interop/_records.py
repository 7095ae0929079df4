"""A parameter and its averages in a framework's layout, checked. No framework is imported here."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Record(NamedTuple):
    """A parameter and its averages, in the framework's layout.

    Attributes:
      value: The parameter itself.
      square: The average of its squared gradient; ``None`` if the optimizer has no state for it.
      mean: The average of its gradient; ``None`` if the optimizer is not centred.
      momentum: Its momentum buffer, with Optax's sign; ``None`` without momentum.
    """

    value: np.ndarray
    square: np.ndarray | None
    mean: np.ndarray | None
    momentum: np.ndarray | None


Slots = Mapping[str, str | None]
"""The framework's names of ``square``, ``mean`` and ``momentum``; None if it has no such slot."""


def checked_record(name: str, value: Any, found: Mapping[str, Any], slots: Slots) -> Record:
    """The record of a parameter whose arrays ``found`` must be exactly those of ``slots``."""
    value = checked_array(name, value)
    expected = [slot for slot in slots.values() if slot is not None]
    for slot in expected:
        if slot not in found:
            raise ValueError(
                f"{name} has no {slot}: this optimizer needs {expected}, found {sorted(found)}; "
                "check centered and momentum, or whether the checkpoint is complete"
            )
    for slot in found:
        if slot not in expected:
            raise ValueError(
                f"{name} has {slot}: this optimizer needs only {expected}, found {sorted(found)}; "
                "a centred state needs centered=True, a momentum buffer momentum > 0"
            )
    arrays: dict[str, Any] = {
        field: None if slot is None else checked_array(f"{name}: {slot}", found[slot], value.shape)
        for field, slot in slots.items()
    }
    check_square(f"{name}: {slots['square']}", arrays["square"])
    return Record(value, **arrays)


def check_square(name: str, x: np.ndarray) -> None:
    """Raises if an element of ``x`` is negative.

    A complex ``x`` is torch's: two real averages, neither of which may be negative.
    """
    parts = np.real(x), np.imag(x)
    if any((part < 0).any() for part in parts):
        raise ValueError(
            f"{name} is an average of squares and must not be negative, got "
            f"{float(min(part.min() for part in parts)):.3g}; the checkpoint is damaged or "
            "belongs to another optimizer"
        )


def checked_array(name: str, x: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Converts ``x`` to NumPy; it must be floating point, finite, and of ``shape`` if given."""
    array = np.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(f"{name} must be a floating-point array, got dtype {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have its parameter's shape {shape}, got {array.shape}")
    if bad := array.size - np.isfinite(array).sum():
        raise ValueError(f"{name} must be finite, {bad} of its {array.size} elements are not")
    return array


def cast(name: str, x: np.ndarray, dtype: Any) -> np.ndarray:
    """Copies ``x`` to another dtype of its kind, which must be able to hold its values."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return x.astype(dtype, casting="same_kind")
    if np.iscomplexobj(x) != jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is {x.dtype} and cannot become {dtype}: both must be real, or both complex"
        )
    with np.errstate(over="ignore"):
        return checked_array(f"{name}, in {dtype},", x.astype(dtype))


def as_python_numbers(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Converts scalar arrays and tensors to Python numbers, so that ``== 0`` can be tested."""
    return {
        name: value.item() if _is_scalar_array(value) else value
        for name, value in hyperparameters.items()
    }


def _is_scalar_array(x: Any) -> bool:
    # A dtype given as a class has the methods of its arrays, too.
    is_array = hasattr(x, "item") and not isinstance(x, type)
    return is_array and math.prod(x.shape) == 1


def negate_momentum(record: Record) -> Record:
    """Changes the sign of the momentum: Keras and TensorFlow subtract it, Optax adds it."""
    return record._replace(momentum=None if record.momentum is None else -record.momentum)


def variance(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """``v - |m|**2`` in float64; zero where rounding in the framework has made it negative.

    A complex ``square`` is torch's: two real averages.
    """
    if np.iscomplexobj(square):
        return variance(np.real(square), np.real(mean)) + 1j * variance(
            np.imag(square), np.imag(mean)
        )
    return np.maximum(square.astype(float) - np.abs(to_float64(mean)) ** 2, 0)


def mean_square(var: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """``v`` in float64: the inverse of `variance`."""
    if np.iscomplexobj(var):
        return mean_square(np.real(var), np.real(mean)) + 1j * mean_square(
            np.imag(var), np.imag(mean)
        )
    return var.astype(float) + np.abs(to_float64(mean)) ** 2


def to_float64(x: np.ndarray) -> np.ndarray:
    """Casts ``x`` to float64, or to complex128 if it is complex."""
    return x.astype(np.result_type(x, float))
