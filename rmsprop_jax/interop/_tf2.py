"""TensorFlow 2's object-based checkpoints: ``model.save_weights``, ``tf.train.Checkpoint``."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.interop import _tensorflow_files
from rmsprop_jax.interop._checkpoint import Changes, Checkpoint
from rmsprop_jax.interop._files import Source
from rmsprop_jax.interop._keras_parts import Places, group, jax_dtype
from rmsprop_jax.interop._mapping import Leaf, in_checkpoint, leaves_of, listed, shown
from rmsprop_jax.interop._state import checked_step

_END = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = re.compile(r"(.+)/\.OPTIMIZER_SLOT/(.+)/([^/]+)")
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def read(
    path: Source,
    params: Any,
    mapping: Mapping[str, Leaf] | None,
    overrides: Mapping[str, Any] | None,
) -> tuple[Checkpoint, Places]:
    """The checkpoint whose files begin with ``path``, and where its arrays are."""
    arrays = _tensorflow_files.read(path)
    slots, optimizer = _slots(arrays)
    values = {
        key.removesuffix(_END): key
        for key, x in arrays.items()
        if key.endswith(_END)
        and not key.startswith((f"{optimizer}/", "keras_api/"))
        and not _SLOT.fullmatch(key.removesuffix(_END))
        and jnp.issubdtype(np.asarray(x).dtype, jnp.inexact)
    }
    if lost := [variable for variable in slots if variable not in values]:
        raise ValueError(f"the checkpoint has slots of {listed(lost)}, but no such variables")
    names = _names(arrays.get(_GRAPH), values, params, mapping)
    places = Places(
        {names[path]: key for path, key in values.items()},
        {names[path]: keys for path, keys in slots.items()},
        f"{optimizer}/iter{_END}",
    )
    config = _config(arrays, optimizer, slots)
    if overrides is not None and "learning_rate" not in {**config, **overrides}:
        raise ValueError("learning_rate must be given: the checkpoint does not hold its schedule")
    options = group(config, list(places.slots), overrides, legacy=True)
    states = {
        name: {slot: arrays[key] for slot, key in keys.items()}
        for name, keys in places.slots.items()
    }
    if places.step not in arrays:
        raise ValueError(f"the checkpoint has no {places.step}, the optimizer's steps")
    step = checked_step("iter", arrays[places.step])
    named = {name: np.asarray(arrays[key]) for name, key in places.values.items()}
    return Checkpoint(named, states, [options], step), places


def write(path: Source, places: Places, changes: Changes) -> None:
    """Replaces the checkpoint with a copy in which only the changed arrays differ."""
    old = _tensorflow_files.read(path)
    new = places.changed(changes, lambda key: jax_dtype(np.asarray(old[key]).dtype))
    # The object graph is bytes: as an array of bytes it would lose zeros at its end.
    kept = {k: np.array(x, object) if isinstance(x, bytes) else x for k, x in old.items()}
    _tensorflow_files.write(kept | new, path)


def _slots(arrays: Mapping[str, Any]) -> tuple[dict[str, dict[str, str]], str]:
    """{path of a variable: {slot: key}}, and the path of their optimizer."""
    slots: dict[str, dict[str, str]] = {}
    optimizers = set()
    for key in arrays:
        if match := _SLOT.fullmatch(key.removesuffix(_END)):
            variable, optimizer, slot = match.groups()
            slots.setdefault(variable, {})[slot] = key
            optimizers.add(optimizer)
    if any(re.search(r"(^|/)(_variables/\d+|_iterations)/", key) for key in arrays):
        raise ValueError(
            "its optimizer is from TensorFlow 2.11 or later, whose checkpoints number "
            "variables instead of naming them: load the model in its framework and pass it, or "
            "save it as .h5"
        )
    if not optimizers:
        raise ValueError(f"it holds no optimizer of TensorFlow 2, only {listed(sorted(arrays))}")
    kinds = {slot for keys in slots.values() for slot in keys}
    if len(optimizers) > 1 or "rms" not in kinds or not kinds <= {"rms", "momentum", "mg"}:
        raise ValueError(
            f"not a single RMSprop of tf.keras: the slots are {sorted(kinds)} of "
            f"{sorted(optimizers)}"
        )
    return slots, optimizers.pop()


def _config(
    arrays: Mapping[str, Any], optimizer: str, slots: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The hyperparameters that the checkpoint holds: neither epsilon nor a schedule."""
    keys = {
        name: f"{optimizer}/{name}{_END}" for name in ("learning_rate", "rho", "momentum", "decay")
    }
    config: dict[str, Any] = {
        name: np.asarray(arrays[key]).item() for name, key in keys.items() if key in arrays
    }
    return config | {"centered": any("mg" in keys for keys in slots.values())}


def _names(
    graph: Any, paths: Mapping[str, Any], params: Any, mapping: Mapping[str, Leaf] | None
) -> dict[str, str]:
    """{path: name}, with the kind of names that the mapping, or ``params``, use.

    These are the checkpoint's own, "layer_with_weights-0/kernel", or those of the variables,
    "conv/kernel", which it keeps, too.
    """
    own = {path: path for path in paths}
    named = {path: _full_names(graph).get(path) or path for path in paths}
    if mapping is not None and not isinstance(mapping, Mapping):
        return own
    asked = [shown(keys) for keys in leaves_of(params)] if mapping is None else list(mapping)
    if len(set(named.values())) < len(named):
        return own
    found, found_named = (len(in_checkpoint(asked, names.values(), "/")) for names in (own, named))
    return named if found_named > found else own


def _full_names(graph: Any) -> dict[str, str]:
    """{path: the variable's name} in the checkpoint's graph of objects."""
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    nodes = TrackableObjectGraph.FromString(graph or b"").nodes
    values = (attribute for node in nodes for attribute in node.attributes)
    return {x.checkpoint_key.removesuffix(_END): x.full_name for x in values}
