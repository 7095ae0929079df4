"""Reads and checks the arrays of an RMSprop state, `_optax_parts.Part`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_leaves_with_path

from rmsprop_jax import _states, _validate_trees
from rmsprop_jax.interop import _records, _state
from rmsprop_jax.interop._mapping import Keys, leaf_keys, listed, shown
from rmsprop_jax.interop._optax_parts import Part

Arrays = dict[tuple[int, str, Keys], Any]
"""Arrays by their position: (index in the chain, field, keys of the parameter)."""


def arrays_of(state: Any) -> Arrays:
    """The arrays of an RMSprop state, averages in at least float32."""
    is_abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state))
    wide = jax.eval_shape(_states.dequantize, state) if is_abstract else _states.dequantize(state)
    arrays: Arrays = {}
    for path, leaf in tree_leaves_with_path(wide):
        position: Any = (path[0].idx, path[1].name, leaf_keys(path[2:]))
        arrays[position] = leaf
    return arrays


def shapes_of(optimizer: optax.GradientTransformation, params: Any) -> Arrays:
    """The shapes and dtypes of the arrays of a new state."""
    return arrays_of(jax.eval_shape(optimizer.init, params))


def checked_arrays(name: str, part: Part, *expected: Arrays) -> Arrays:
    """The arrays of a part; their positions and shapes must be those of one of ``expected``."""
    arrays = arrays_of(part.state)
    like = next((other for other in expected if other.keys() == arrays.keys()), None)
    if like is None:
        missing = [_shown(position) for position in expected[0] if position not in arrays]
        unexpected = [_shown(position) for position in arrays if position not in expected[0]]
        raise ValueError(
            f"{name} does not fit: missing {listed(missing, 50)}, unexpected "
            f"{listed(unexpected, 50)}; check params, centered, momentum, bias_correction, "
            "accumulator_dtype and whether learning_rate is a schedule"
        )
    for position, leaf in arrays.items():
        full = f"{name}: {_shown(position)}"
        _validate_trees.shape(full, leaf, like[position], "init(params) with these hyperparameters")
    return arrays


def averages_of(name: str, arrays: Arrays, like: Arrays | None = None) -> _state.Fields:
    """The averages by field and parameter, checked; the dtypes of ``like`` must hold them."""
    fields = _state.no_fields()
    for position, leaf in arrays.items():
        _, field, keys = position
        if field in ("count", "step"):
            continue
        full = f"{name}: {_shown(position)}"
        x = _records.checked_array(full, leaf)
        if field in ("nu", "var"):
            _records.check_square(full, x)
            # For a complex parameter Optax averages |g|**2, too, with an imaginary part of zero.
            x = np.real(x)
        kept = x.dtype if like is None or position not in like else like[position].dtype
        if jnp.promote_types(x.dtype, kept) != kept:
            raise ValueError(
                f"{full} is {x.dtype}, which {kept}, the dtype for these params, cannot hold: pass "
                f"the params of that run, or accumulator_dtype={str(kept)!r} to round it"
            )
        fields[field][keys] = x
    return fields


def counts_of(name: str, part: Part, arrays: Arrays) -> dict[str, int]:
    """The steps that a part and the ``inject_hyperparams`` around it keep, by their owners."""
    owners = ("averages", "learning rate", "momentum")
    found = {owners[i]: x for (i, field, _), x in arrays.items() if field in ("count", "step")}
    if part.injected:
        found["inject_hyperparams"] = part.injected["count"]
    return {
        owner: _state.checked_step(f"{name}: count of {owner}", x) for owner, x in found.items()
    }


def check_equal(name: str, counts: Mapping[str, int]) -> None:
    """Raises if steps differ: a converted state has one for all its counters."""
    if len(set(counts.values())) > 1:
        raise ValueError(f"{name}: all counts must be equal to convert the state, got {counts}")


def _shown(position: tuple[int, str, Keys]) -> str:
    _, field, keys = position
    return f"{field} of {shown(keys)}" if keys else field
