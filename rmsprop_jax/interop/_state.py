"""What the checkpoints of all frameworks have in common. No framework is imported here.

Each framework's file reads its checkpoint into a `Record` a parameter, in the
framework's names and layout. `resume` makes parameters and a state of records, and
`records` makes records of parameters and a state.
"""

import itertools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey, KeyPath, keystr, tree_leaves_with_path, tree_map_with_path

from rmsprop_jax import _storage, _validate

_COUNTERS = ("count", "step")
_FIELDS = (*_COUNTERS, "mu", "nu", "trace", "var")


class Place(NamedTuple):
    """Where a framework's array lies in ``params``, and how its axes get there.

    A mapping is a dictionary from the framework's names to places:

        {"conv.weight": Place("conv/kernel", axes=(2, 3, 1, 0)), "conv.bias": Place("conv/bias")}

    Attributes:
      path: The keys that lead to the leaf, joined by ``/``. In an ``nnx.State`` each ends
        in ``/value``, in what ``nnx.to_pure_dict`` makes of it none does.
      axes: The order in which the leaf has the array's axes, as in `numpy.transpose`;
        ``None`` leaves them as they are.
      unflatten: The shape in which to see the array before its axes are permuted;
        ``None`` is its own. A dense layer behind a flattened image needs it: torch
        flattens (channels, height, width), Flax and Keras (height, width, channels).
        After 32 channels of 4 by 4, for 56 outputs: ``unflatten=(56, 32, 4, 4)`` and
        ``axes=(2, 3, 1, 0)``.

    Example:
      >>> import numpy as np
      >>> Place("dense/kernel", axes=(1, 0)).to_jax(np.zeros((10, 64)), shape=(64, 10)).shape
      (64, 10)
    """

    path: str
    axes: tuple[int, ...] | None = None
    unflatten: tuple[int, ...] | None = None

    def to_jax(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The framework's array, as the leaf of that shape has it."""
        seen = x.reshape(self.seen(x.shape))
        turned = seen.transpose(self.order(seen.ndim))
        return turned if self.unflatten is None else turned.reshape(shape)

    def from_jax(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The leaf, as the framework's array of that shape has it."""
        seen = self.seen(shape)
        order = self.order(len(seen))
        turned = x if self.unflatten is None else x.reshape([seen[axis] for axis in order])
        return turned.transpose(np.argsort(order)).reshape(shape)

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which the axes are permuted."""
        return tuple(shape if self.unflatten is None else self.unflatten)

    def order(self, ndim: int) -> tuple[int, ...]:
        """The permutation, also where it is none."""
        return tuple(range(ndim) if self.axes is None else self.axes)


class Resumed(NamedTuple):
    """A run begun elsewhere, ready to go on.

    Attributes:
      params: The parameters, in the structure and dtypes of those given.
      optimizer: The transformation that the framework ran, with its hyperparameters.
      state: The state of ``optimizer``.
      step: Steps taken, the most that any parameter has; ``None`` if the checkpoint does
        not say.
      hyperparameters: What ``optimizer`` was made with: a dictionary for each group of
        parameters, of which only torch may have more than one.
    """

    params: Any
    optimizer: optax.GradientTransformationExtraArgs
    state: optax.OptState
    step: int | None
    hyperparameters: tuple[dict[str, Any], ...]


class Record(NamedTuple):
    """A parameter and what RMSprop keeps of it, in the framework's layout.

    Attributes:
      value: The parameter itself.
      square: The average of its gradient's square.
      mean: The average of its gradient; ``None`` if the optimizer is not centred.
      momentum: Its momentum buffer in our sign; ``None`` without momentum.
    """

    value: np.ndarray
    square: np.ndarray
    mean: np.ndarray | None
    momentum: np.ndarray | None


Slots = Mapping[str, str | None]
"""The framework's names of ``square``, ``mean`` and ``momentum``; None where it has none."""


def checked_record(name: str, value: Any, found: Mapping[str, Any], slots: Slots) -> Record:
    """A record of the arrays found under the framework's names, which must be just ``slots``."""
    value = checked_array(name, value)
    wanted = [slot for slot in slots.values() if slot is not None]
    for slot in wanted:
        if slot not in found:
            raise ValueError(
                f"{name} has no {slot}: this optimizer needs {wanted}, found {sorted(found)}"
            )
    for slot in found:
        if slot not in wanted:
            raise ValueError(
                f"{name} has {slot}: this optimizer needs only {wanted}, found {sorted(found)}; a "
                "centred state needs centered=True, a momentum buffer momentum > 0"
            )
    arrays: dict[str, Any] = {
        field: None if slot is None else checked_array(f"{name}: {slot}", found[slot], value.shape)
        for field, slot in slots.items()
    }
    check_square(f"{name}: {slots['square']}", arrays["square"])
    return Record(value, **arrays)


def check_square(name: str, x: np.ndarray) -> None:
    """Raises if ``x``, or torch's two real ones in a complex ``x``, is negative anywhere."""
    if (np.real(x) < 0).any() or (np.imag(x) < 0).any():
        raise ValueError(f"{name} is an average of squares, but negative")


def checked_array(name: str, x: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """``x`` in NumPy: finite floats, of ``shape`` if one is given."""
    array = np.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(f"{name} must be a floating-point array, got dtype {array.dtype}")
    if shape is not None:
        chex.assert_equal(array.shape, shape, custom_message=f"{name} must be as its parameter")
    if bad := array.size - np.isfinite(array).sum():
        raise ValueError(f"{name} must be finite, {bad} of its {array.size} elements are not")
    return array


def cast(name: str, x: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy of ``x`` in another floating-point dtype, if that can hold it."""
    if np.iscomplexobj(x) != jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name} is {x.dtype}, it cannot become {dtype}")
    with np.errstate(over="ignore"):
        return checked_array(f"{name}, in {dtype},", x.astype(dtype))


def plain(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """With numbers in the place of scalar arrays and tensors, which may be zero unseen."""
    return {
        name: value.item() if _is_scalar_array(value) else value
        for name, value in hyperparameters.items()
    }


def _is_scalar_array(x: Any) -> bool:
    # A dtype may be given as a class, which has the methods of its arrays.
    return hasattr(x, "item") and not isinstance(x, type) and np.shape(x) == ()


def check_state(
    state: Any,
    params: Any,
    dialect: str,
    constant: optax.GradientTransformation,
    counting: optax.GradientTransformation,
) -> None:
    """Raises unless ``state`` is that of ``dialect``.

    It has all that ``constant`` has, with averages kept in whatever dtype, and no more than
    ``counting``, which was made with `counters`.
    """

    def leaves(tree: Any) -> set[str]:
        found = tree_leaves_with_path(tree, is_leaf=_storage.is_one_byte)
        return {keystr(keys) for keys, _ in found}

    least, most = (leaves(jax.eval_shape(o.init, params)) for o in (constant, counting))
    missing, unexpected = least - leaves(state), leaves(state) - most
    if missing or unexpected:
        raise ValueError(
            f"state is not that of {dialect} with the centered and momentum of the optimizer to "
            f"save to: missing {sorted(missing)}, unexpected {sorted(unexpected)}"
        )


def counters(rate: str, state: Any) -> dict[str, Any]:
    """Hyperparameters with which a dialect's state counts all that ``state`` may count.

    These are a schedule, under the name ``rate``, and narrow averages if ``state`` has any.
    """
    leaves = jax.tree.leaves(state, is_leaf=_storage.is_one_byte)
    narrow = any(_storage.is_one_byte(x) or x.dtype == jnp.bfloat16 for x in leaves)
    return {rate: lambda _: 0.0, "accumulator_dtype": jnp.bfloat16 if narrow else None}


def turned(record: Record) -> Record:
    """With the momentum's sign changed: Keras and TensorFlow subtract it, Optax adds it."""
    return record._replace(momentum=None if record.momentum is None else -record.momentum)


def matched(
    mapping: Mapping[str, Place] | None, names: Collection[str], params: Any, separator: str = "/"
) -> Mapping[str, Place]:
    """``mapping``, if it leads from all of ``names`` to all leaves of ``params``, one to one.

    ``None`` leads from each name to the path that it is.
    """
    if mapping is None:
        mapping = {name: Place(name.replace(separator, "/")) for name in names}
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a dictionary {{name: Place}}, got {mapping!r}")
    for name in names:
        if name not in mapping:
            raise ValueError(f"the mapping has no {name!r}, a parameter in the checkpoint")
    paths = [path(keys) for keys, _ in tree_leaves_with_path(params)]
    if len(set(paths)) < len(paths):
        raise ValueError(f"params: two leaves have one path: {sorted(paths)}")
    sources: dict[str, str] = {}
    for name, place in mapping.items():
        _check_entry(name, place, names, paths)
        if place.path in sources:
            raise ValueError(f"{name} and {sources[place.path]} both lead to {place.path!r}")
        sources[place.path] = name
    for leaf in paths:
        if leaf not in sources:
            raise ValueError(f"params: nothing in the checkpoint leads to {leaf!r}")
    return mapping


def _check_entry(name: str, place: Any, names: Collection[str], paths: Collection[str]) -> None:
    if not isinstance(place, Place) or not all(_is_whole(x) for x in (place.axes, place.unflatten)):
        raise TypeError(
            f"{name}: the mapping must lead to a Place with tuples of whole numbers, got {place!r}"
        )
    if name not in names:
        raise ValueError(
            f"the checkpoint has no parameter {name!r} as the mapping has, only {sorted(names)}"
        )
    if place.path not in paths:
        raise ValueError(f"{name}: params have no leaf {place.path!r}, only {sorted(paths)}")


def _is_whole(x: Any) -> bool:
    if x is None:
        return True
    return isinstance(x, Sequence) and all(isinstance(n, int | np.integer) for n in x)


def resume(
    params: Any,
    places: Mapping[str, Place],
    records: Mapping[str, Record],
    optimizer: optax.GradientTransformationExtraArgs,
    step: int | None,
) -> tuple[Any, Any]:
    """The parameters and the state of ``optimizer`` that the records make."""
    shapes = {path(keys): jnp.shape(leaf) for keys, leaf in tree_leaves_with_path(params)}
    fields: dict[str, dict[str, Any]] = {field: {} for field in ("value", *_FIELDS)}
    for name, place in places.items():
        shape = shapes[place.path]
        check_place(name, place, records[name].value.shape, shape)
        arrays: list[Any] = [None if x is None else place.to_jax(x, shape) for x in records[name]]
        value, square, mean, momentum = arrays
        fields["value"][place.path] = value
        fields["nu"][place.path] = square
        fields["trace"][place.path] = momentum
        fields["mu"][place.path] = mean
        fields["var"][place.path] = None if mean is None else variance(square, mean)

    def parameter(keys: KeyPath, like: Any) -> jax.Array:
        x = fields["value"][path(keys)]
        return jnp.asarray(cast(path(keys), x, jnp.result_type(like)))

    state = fill(jax.eval_shape(optimizer.init, params), fields, step)
    return tree_map_with_path(parameter, params), state


def records(
    params: Any,
    state: Any,
    places: Mapping[str, Place],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Record]:
    """The records that parameters and state make, for a framework's names and shapes."""
    leaves = {path(keys): leaf for keys, leaf in tree_leaves_with_path(params)}
    fields = read(state)

    def record(name: str, place: Place) -> Record:
        value = checked_array(f"params: {place.path}", leaves[place.path])
        check_place(name, place, shapes[name], value.shape)
        square, mean, var, momentum = (
            _whole(fields[field], place.path) for field in ("nu", "mu", "var", "trace")
        )
        if mean is not None and var is not None:
            square = mean_square(var, mean)
        for x in (square, mean, momentum):
            if x is not None:
                message = f"state: averages of {place.path} must be as params"
                chex.assert_equal(x.shape, value.shape, custom_message=message)
        arrays: list[Any] = [
            None if x is None else place.from_jax(x, shapes[name])
            for x in (value, square, mean, momentum)
        ]
        return Record(*arrays)

    return {name: record(name, place) for name, place in places.items()}


def check_place(
    name: str, place: Place, shape: tuple[int, ...], leaf_shape: tuple[int, ...]
) -> None:
    """Raises unless ``place`` makes an array of ``shape`` one of ``leaf_shape``."""
    seen = place.seen(shape)
    order = place.order(len(seen))
    if math.prod(seen) != math.prod(shape) or sorted(order) != list(range(len(seen))):
        raise ValueError(f"{name}: {place} does not fit an array of shape {shape}")
    turned = tuple(seen[axis] for axis in order)
    if place.unflatten is None or not _merges(turned, leaf_shape):
        message = f"{name}: an array of shape {shape} must become the leaf at {place.path!r}"
        chex.assert_equal(turned, leaf_shape, custom_message=message)


def _merges(shape: tuple[int, ...], merged: tuple[int, ...]) -> bool:
    """Whether ``merged`` comes of ``shape`` by making one axis of neighbours."""
    ends, merged_ends = (list(itertools.accumulate(s, operator.mul)) for s in (shape, merged))
    return ends[-1:] == merged_ends[-1:] and set(merged_ends) <= set(ends)


def variance(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """``v - |m|**2`` in float64; zero where the framework's rounding has made it negative.

    A complex ``square`` is torch's: two real ones.
    """
    if np.iscomplexobj(square):
        return variance(np.real(square), np.real(mean)) + 1j * variance(
            np.imag(square), np.imag(mean)
        )
    return np.maximum(square.astype(float) - np.abs(_wide(mean)) ** 2, 0)


def mean_square(var: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """``v`` in float64: the inverse of `variance`."""
    if np.iscomplexobj(var):
        return mean_square(np.real(var), np.real(mean)) + 1j * mean_square(
            np.imag(var), np.imag(mean)
        )
    return var.astype(float) + np.abs(_wide(mean)) ** 2


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.result_type(x, float))


def read(state: Any) -> dict[str, dict[str, Any]]:
    """The arrays of a state: {field: {the parameter's path: array}}."""
    fields: dict[str, dict[str, Any]] = {field: {} for field in _FIELDS}
    for keys, leaf in tree_leaves_with_path(state, is_leaf=_storage.is_one_byte):
        field, of = _field(keys)
        x = np.array(leaf) if field in _COUNTERS else checked_array(f"state: {field} of {of}", leaf)
        fields[field][of] = x
    return fields


def fill(state: Any, fields: Mapping[str, Mapping[str, Any]], step: int | None) -> Any:
    """A state like ``state``, with the arrays of ``fields``: the inverse of `read`."""

    def array(keys: KeyPath, like: Any) -> Any:
        field, of = _field(keys)
        if field in _COUNTERS:
            return jnp.asarray(step or 0, like.dtype)
        dtype = jnp.float32 if _storage.is_one_byte(like) else like.dtype
        return _storage.convert(cast(f"{field} of {of}", _part(fields[field], of), dtype), like)

    return tree_map_with_path(array, state, is_leaf=_storage.is_one_byte)


def _part(arrays: Mapping[str, Any], of: str) -> np.ndarray:
    """The array of a parameter, or one part of a complex one.

    ``optax.contrib.split_real_and_imaginary`` keeps those at ``real`` and ``imaginary``.
    """
    if of in arrays:
        return arrays[of]
    whole, _, part = of.rpartition("/")
    return {"real": np.real, "imaginary": np.imag}[part](arrays[whole])


def _whole(arrays: Mapping[str, Any], of: str) -> np.ndarray | None:
    """The array of a parameter, put together if it is in two parts; ``None`` if there is none."""
    real, imaginary = (arrays.get(f"{of}/{part}".strip("/")) for part in ("real", "imaginary"))
    if of in arrays or real is None or imaginary is None:
        return arrays.get(of)
    return real + 1j * imaginary


def counted(fields: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The steps that a state, as `read` has it, has counted; ``None`` if it counts none."""
    counts = (count for counter in _COUNTERS for count in fields[counter].values())
    return next((int(count) for count in counts), None)


def step_count(state: Any, step: Any) -> int:
    """``step``, or else what the state has counted."""
    step = counted(read(state)) if step is None else step
    if step is None:
        raise ValueError(
            "step must be given, the number of steps taken: the state does not count them, "
            "as the learning rate is constant and no average is narrow"
        )
    _validate.step(step)
    return int(step)


def _field(keys: KeyPath) -> tuple[str, str]:
    """Which field of a state a leaf belongs to, and the path of its parameter."""
    # The state's own names come first: parameters may have the same ones.
    for i, key in enumerate(keys):
        if isinstance(key, GetAttrKey) and key.name in _FIELDS:
            return key.name, path(keys[i + 1 :])
    raise ValueError(f"state{keystr(keys)} is not RMSprop's: none of {', '.join(_FIELDS)}")


def path(keys: KeyPath) -> str:
    """The keys that lead to a leaf, as `Place` writes them."""
    return keystr(keys, simple=True, separator="/")
