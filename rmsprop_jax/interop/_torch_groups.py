"""A torch optimizer's parameter groups: which RMSprop they belong to, and what they train."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.interop._checkpoint import Group
from rmsprop_jax.interop._mapping import (
    Leaf,
    find_leaves,
    in_checkpoint,
    leaves_of,
    listed,
    match_names,
    shortened,
)
from rmsprop_jax.interop._order import ModuleMapping, names_in_order
from rmsprop_jax.interop._records import as_python_numbers

_REQUIRED = ("lr", "alpha", "eps", "weight_decay")
# Old checkpoints lack these; torch then uses the same defaults.
_DEFAULTS = {"momentum": 0.0, "centered": False}
# {dialect: its other hyperparameters and their defaults}
_OTHERS = {
    "pytorch": {"maximize": False},
    "timm": {"decoupled_decay": False, "lr_in_momentum": True},
    "stable_baselines3": {},
}
# Keys that some version of torch, or one of its schedulers, has written into a group.
_TORCH_KEYS = {
    *_REQUIRED, *_DEFAULTS, "maximize", "foreach", "fused", "capturable", "differentiable",
    "params", "param_names", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum",
}  # fmt: skip
# Options of timm that its dialect does not have; they have no effect if False.
_TIMM_OPTIONS = ("caution", "corrected_weight_decay")
_TIMM_KEYS = {*_OTHERS["timm"], *_TIMM_OPTIONS, "max_lr_snapshot", "lr_scale"}
_BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")


class Model(NamedTuple):
    """The arrays of a model's ``state_dict``.

    Attributes:
      arrays: The arrays by name.
      aliases: {name: the first name of the same tensor}; the two differ if weights are tied.
      from_module: Whether they are known to be in the module's order.
      by_file: Whether they are known to be in the file's own order.
    """

    arrays: Mapping[str, np.ndarray]
    aliases: Mapping[str, str]
    from_module: bool
    by_file: bool


def param_groups(optimizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The groups of an optimizer's ``state_dict``, checked."""
    groups = optimizer.get("param_groups")
    if not isinstance(groups, list | tuple) or not groups:
        raise ValueError(
            "not the state_dict of a torch optimizer: its 'param_groups' must be a list, got "
            f"{shortened(groups)}"
        )
    for i, group in enumerate(groups):
        params = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(params, list | tuple) or not all(isinstance(x, int) for x in params):
            raise ValueError(
                f"param_groups[{i}] must be a dictionary with a list of numbers as 'params', got "
                f"{shortened(group)}"
            )
    return list(groups)


def read_groups(
    groups: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
    dialect: str | None,
    overrides: Mapping[str, Any],
) -> list[Group]:
    """The groups with their dialects and hyperparameters, and the names of their parameters."""
    kind = _dialect(groups) if dialect is None else dialect
    if kind not in _OTHERS:
        raise ValueError(f"dialect must be None or one of {[*_OTHERS]}, got {dialect!r}")
    return [
        read_group(
            kind,
            _hyperparameters(i, group, kind),
            _overrides_of_group(i, len(groups), overrides),
            [names[index] for index in group["params"]],
        )
        for i, group in enumerate(groups)
    ]


def read_group(
    kind: str, hyperparameters: Mapping[str, Any], overrides: Mapping[str, Any], names: list[str]
) -> Group:
    """The parameters ``names``, trained by a dialect with these hyperparameters."""
    options = as_python_numbers({**hyperparameters, **overrides})
    dialect = getattr(dialects, kind)
    dialect(**options)  # Rejects bad values before `slots` reads them.
    slots = {
        "square": "square_avg",
        "mean": "grad_avg" if options.get("centered") else None,
        "momentum": "momentum_buffer" if options.get("momentum", 0) > 0 else None,
    }
    return Group(dialect, options, names, slots, bool(options.get("lr_in_momentum")))


def names_of(
    model: Model,
    groups: Sequence[Mapping[str, Any]],
    entries: Mapping[Any, Any],
    mapping: Mapping[str, Leaf] | None,
    params: Any,
    given: Sequence[str] | None,
) -> dict[Any, str]:
    """{index in the optimizer's state: name in the model} of all parameters in the groups.

    Args:
      model: The model.
      groups: The optimizer's groups.
      entries: {index: the shape of its averages}, for those that have any.
      mapping: The user's mapping.
      params: The user's parameters.
      given: The user's ``names``.
    """
    indices = [index for group in groups for index in group["params"]]
    if given is None and all("param_names" in group for group in groups):
        given = [name for group in groups for name in group["param_names"]]
    if given is not None:
        found = in_checkpoint(given, model.arrays, ".")
        names = [found.get(name, name) for name in given]
        _check_names(names, indices, model)
    elif len(groups) > 1:
        raise ValueError(
            "several param_groups without param_names: pass names=, the parameters' names in the "
            "order in which the optimizer received them"
        )
    else:
        mapped = mapped_names(mapping, model, params)
        names = [name for name, x in model.arrays.items() if _is_parameter(name, x, model)]
        if len(names) != len(indices) == len(mapped):
            names = [name for name in model.arrays if name in mapped]
        if len(names) != len(indices) and (absent := [n for n in mapped if n not in model.arrays]):
            raise ValueError(
                f"the model has no {absent[0]!r}, which is in the mapping; it has "
                f"{listed(model.arrays)}"
            )
        _check_names(names, indices, model)
        names = _in_order(names, model, [entries.get(i) for i in indices], mapping, mapped)
    return dict(zip(indices, names, strict=True))


def _in_order(
    names: list[str],
    model: Model,
    entries: Sequence[Any],
    mapping: Mapping[str, Leaf] | None,
    mapped: Mapping[str, Any],
) -> list[str]:
    """``names`` in the order of the optimizer's state, which is only numbered."""
    wanted = set(names)
    order = [name for name in mapped if name in wanted]
    is_complete = mapping is not None and len(order) == len(names)
    if is_complete and isinstance(mapping, ModuleMapping):
        return order
    shapes = {name: model.arrays[name].shape for name in names}
    return names_in_order(
        names,
        shapes,
        entries,
        order if is_complete else None,
        from_module=model.from_module,
        by_file=model.by_file,
    )


def mapped_names(mapping: Mapping[str, Leaf] | None, model: Model, params: Any) -> dict[str, Any]:
    """The names that are mapped to leaves of ``params``, in the mapping's order."""
    mapped = find_leaves(match_names(mapping, model.arrays, params, "."), leaves_of(params))
    for name in mapped:
        if mapping is not None and (first := model.aliases.get(name, name)) != name:
            raise ValueError(f"{name} is the same tensor as {first}: map {first} instead")
    return mapped


def _is_parameter(name: str, x: Any, model: Model) -> bool:
    """Whether an array of a model looks like a parameter, and not like a buffer."""
    kind = name.rpartition(".")[2]
    is_number = jnp.issubdtype(x.dtype, jnp.inexact)
    return is_number and kind not in _BATCH_NORM and model.aliases[name] == name


def _check_names(names: Sequence[str], indices: Sequence[Any], model: Model) -> None:
    if len(set(names)) != len(names):
        repeated = [name for name, number in Counter(names).items() if number > 1]
        raise ValueError(
            "names= (or the mapping) must name each of the optimizer's parameters once, got "
            f"{listed(repeated)} more than once"
        )
    if len(names) != len(indices):
        raise ValueError(
            f"the optimizer has {len(indices)} parameters, but there are {len(names)} names: "
            f"{listed(names)}. Complete the mapping, or pass names=, the names of the optimizer's "
            "parameters in its order"
        )
    if unknown := [name for name in names if name not in model.arrays]:
        raise ValueError(f"the model has no {listed(unknown, 80)}; it has {listed(model.arrays)}")


def _dialect(groups: Sequence[Mapping[str, Any]]) -> str:
    keys = {key for group in groups for key in group}
    return "timm" if keys & {*_OTHERS["timm"], *_TIMM_OPTIONS} else "pytorch"


def _hyperparameters(i: int, group: Mapping[str, Any], kind: str) -> dict[str, Any]:
    allowed = _TORCH_KEYS | (_TIMM_KEYS if kind == "timm" else set())
    where = f"param_groups[{i}]"
    for name in _REQUIRED:
        if name not in group:
            raise ValueError(
                f"not a torch.optim.RMSprop: {where} has no {name!r}, only {listed(group)}"
            )
    for key in group:
        if key not in allowed:
            raise ValueError(
                f"{where} has {key!r}, which no version of torch.optim.RMSprop has: its rule may "
                "differ. If it does not, delete the key from the group"
            )
    for option in _TIMM_OPTIONS:
        if group.get(option):
            raise ValueError(
                f"{where} has {option}={group[option]}, which dialects.timm does not support"
            )
    defaults = {**_DEFAULTS, **_OTHERS[kind]}
    required = {name: group[name] for name in _REQUIRED}
    return required | {name: group.get(name, default) for name, default in defaults.items()}


def _overrides_of_group(i: int, groups: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides for group ``i``: an element of each list, and all other values."""
    for name, value in overrides.items():
        if isinstance(value, list) and len(value) != groups:
            raise ValueError(
                f"{name}={shortened(value)} must have one value for each of {groups} param_groups"
            )
    return {k: v[i] if isinstance(v, list) else v for k, v in overrides.items()}


def warn_of_scheduler(groups: Sequence[Mapping[str, Any]], overrides: Mapping[str, Any]) -> None:
    """Warns if a scheduler set a number of this run, which is then kept constant."""
    for name, marks in {
        "lr": ("initial_lr",),
        "momentum": ("base_momentum", "max_momentum"),
    }.items():
        marked = [group for group in groups if any(mark in group for mark in marks)]
        if name in overrides or not marked:
            continue
        values = [as_python_numbers({name: group.get(name)})[name] for group in marked]
        advice = "the rest of the schedule as an Optax schedule, or " if name == "lr" else ""
        warnings.warn(
            f"a scheduler set the {name} of this run, but the checkpoint has only its current "
            f"value: it stays {listed(values)[1:-1]} from now on. Pass {name}=, {advice}this "
            "number if that is what you want",
            stacklevel=3,
        )
