"""Checkpoints of ``torch.optim.RMSprop``: read, go on in JAX, and write back.

A checkpoint is what `PyTorch's tutorial
<https://docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html>`_
saves: a dictionary with ``"model_state_dict"`` and ``"optimizer_state_dict"``, of
tensors or NumPy arrays, or the path of a ``.pt`` file of it.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax import dialects
from rmsprop_jax.interop import _state
from rmsprop_jax.interop._state import Place, Resumed

_MODEL, _OPTIMIZER = "model_state_dict", "optimizer_state_dict"
_REQUIRED = ...
_HYPERPARAMETERS = {
    "lr": _REQUIRED,
    "alpha": _REQUIRED,
    "eps": _REQUIRED,
    "weight_decay": _REQUIRED,
    # Old checkpoints lack these; torch then takes the same.
    "momentum": 0.0,
    "centered": False,
    "maximize": False,
}


def load(
    source: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    mapping: Mapping[str, Place] | None = None,
    *,
    names: Sequence[str] | None = None,
    **hyperparameters: Any,
) -> Resumed:
    """A run of ``torch.optim.RMSprop``, to go on with `dialects.pytorch`.

    Args:
      source: The checkpoint, a dictionary with ``"model_state_dict"`` and
        ``"optimizer_state_dict"``, or the path of a file that ``torch.save`` made of it.
        Of a file with other keys or objects, make such a dictionary yourself.
      params: A tree with the structure, shapes and dtypes that the parameters are to
        have. Its values are not used.
      mapping: For each parameter that the optimizer has, its place in ``params``; see
        `mapping_of` for one made from the model. ``None``: ``conv.weight`` is at
        ``conv/weight``, with torch's axes.
      names: The names of the parameters in the order in which the optimizer got them.
        Not needed if it was made from ``model.named_parameters()``: the names are in
        the checkpoint then; nor for one group in the order of ``model.parameters()``,
        which is what is assumed without names.
      **hyperparameters: Arguments of `dialects.pytorch` in the place of those in the
        checkpoint: ``lr=schedule``, for torch saves only the rate of the moment. A list
        has one value for each group.

    Returns:
      A `Resumed`. With several groups of parameters, its optimizer is an
      ``optax.partition``.

    Raises:
      ValueError: If the optimizer is not RMSprop, a slot is missing or one too many,
        an array is not finite, or names do not match. The message names the parameter.
      AssertionError: From chex, if an array has another shape than it should.

    Example:
      >>> import numpy as np
      >>> from rmsprop_jax import interop
      >>> group = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "params": [0]}
      >>> checkpoint = {
      ...     "model_state_dict": {"linear.weight": np.ones((1, 3))},
      ...     "optimizer_state_dict": {
      ...         "state": {0: {"step": 7, "square_avg": np.full((1, 3), 0.25)}},
      ...         "param_groups": [group],
      ...     },
      ... }
      >>> resumed = interop.torch.load(
      ...     checkpoint,
      ...     params={"kernel": np.zeros((3, 1))},
      ...     mapping={"linear.weight": interop.Place("kernel", axes=(1, 0))},
      ... )
      >>> resumed.step, resumed.params["kernel"].shape, resumed.hyperparameters[0]["alpha"]
      (7, (3, 1), 0.99)
    """
    checkpoint = _read(source)
    groups = _groups(checkpoint, names, mapping, hyperparameters)
    names = [name for group in groups for name in group.names.values()]
    places = _state.matched(mapping, names, params, ".")
    optimizer = _transformation(groups, places)
    records, steps = {}, [0]
    for group in groups:
        for index, name in group.names.items():
            value, slots, step = _parameter(checkpoint, index, name, group)
            records[name] = _state.checked_record(name, value, slots, group.slots)
            steps.append(step)
    step = max(steps)
    params, state = _state.resume(params, places, records, optimizer, step)
    return Resumed(params, optimizer, state, step, tuple(g.hyperparameters for g in groups))


def save(
    target: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    state: Any,
    mapping: Mapping[str, Place] | None = None,
    *,
    names: Sequence[str] | None = None,
    step: int | None = None,
) -> Mapping[str, Any] | str | os.PathLike:
    """The checkpoint ``target`` with these parameters and this state in the place of its own.

    Args:
      target: A checkpoint as `load` takes it, with the hyperparameters to go on with:
        the one loaded, or one of a new model and optimizer, before any step. A file
        is written anew.
      params: The parameters.
      state: The state of `dialects.pytorch`; with several groups, of the optimizer that
        `load` returned.
      mapping: As in `load`.
      names: As in `load`.
      step: Steps taken; ``None`` is what the state has counted, which it does only if the
        learning rate is a schedule or an average is narrow. torch computes nothing with it.

    Returns:
      ``target``, if it is a path, or else a new dictionary, whose two state dictionaries
      are for ``load_state_dict``. Arrays are tensors where those of ``target`` are, of
      the same dtype and on the same device.

    Raises:
      ValueError, AssertionError: As `load`; also if the state is centred, or has
        momentum, and the optimizer of ``target`` is or has not.
    """
    checkpoint = _read(target)
    groups = _groups(checkpoint, names, mapping, {})
    model, slots = copy.copy(checkpoint[_MODEL]), {}
    shapes = {name: tuple(model[name].shape) for group in groups for name in group.names.values()}
    places = _state.matched(mapping, shapes, params, ".")
    constant, counting = (
        _transformation(_groups(checkpoint, names, mapping, instead), places)
        for instead in ({}, _state.counters("lr", state))
    )
    _state.check_state(state, params, "dialects.pytorch", constant, counting)
    records = _state.records(params, state, places, shapes)
    step = _state.step_count(state, step)
    for group in groups:
        for index, name in group.names.items():
            record, old = records[name], checkpoint[_MODEL][name]
            slots[index] = {"step": _step_like(step, old)}
            slots[index] |= {
                slot: _like(f"{name}: {slot}", getattr(record, field), old)
                for field, slot in group.slots.items()
                if slot is not None
            }
            value = _like(name, record.value, old)
            model |= dict.fromkeys(_aliases(checkpoint[_MODEL], name), value)
    optimizer = {**checkpoint[_OPTIMIZER], "state": slots}
    saved = {**checkpoint, _MODEL: model, _OPTIMIZER: optimizer}
    if not isinstance(target, str | os.PathLike):
        return saved
    _write(saved, target)
    return target


def mapping_of(model: Any) -> dict[str, Place]:
    """A mapping for a live ``torch.nn.Module``, to Flax's names and layout, to read and extend.

    Weights of linear layers and convolutions become ``kernel``, transposed; those of
    normalizations ``scale`` and those of embeddings ``embedding``. Every other array keeps
    its name and axes. A linear layer behind a flattened image needs a `Place` of its own.

    Example:
      >>> import torch
      >>> from rmsprop_jax import interop
      >>> for item in interop.torch.mapping_of(torch.nn.Sequential(torch.nn.Linear(3, 2))).items():
      ...     print(item)
      ('0.weight', Place(path='0/kernel', axes=(1, 0), unflatten=None))
      ('0.bias', Place(path='0/bias', axes=None, unflatten=None))
    """
    places = {}
    for name, _ in model.named_parameters():
        module, _, kind = name.rpartition(".")
        layer = type(model.get_submodule(module)).__name__
        leaf, axes = _FLAX.get(layer, {}).get(kind, (kind, None))
        places[name] = Place("/".join([*filter(None, module.split(".")), leaf]), axes)
    return places


_FLAX = {
    "Linear": {"weight": ("kernel", (1, 0))},
    "Conv1d": {"weight": ("kernel", (2, 1, 0))},
    "Conv2d": {"weight": ("kernel", (2, 3, 1, 0))},
    "Conv3d": {"weight": ("kernel", (2, 3, 4, 1, 0))},
    "Embedding": {"weight": ("embedding", None)},
    "BatchNorm1d": {"weight": ("scale", None)},
    "BatchNorm2d": {"weight": ("scale", None)},
    "BatchNorm3d": {"weight": ("scale", None)},
    "GroupNorm": {"weight": ("scale", None)},
    "LayerNorm": {"weight": ("scale", None)},
    "RMSNorm": {"weight": ("scale", None)},
}


class _Group(NamedTuple):
    """A parameter group: its hyperparameters, and its parameters by their index."""

    hyperparameters: dict[str, Any]
    names: dict[int, str]

    @property
    def slots(self) -> dict[str, str | None]:
        return {
            "square": "square_avg",
            "mean": "grad_avg" if self.hyperparameters["centered"] else None,
            "momentum": "momentum_buffer" if self.hyperparameters["momentum"] > 0 else None,
        }


def _read(source: Any) -> Mapping[str, Any]:
    if isinstance(source, str | os.PathLike):
        import torch

        source = torch.load(source, map_location="cpu", weights_only=True)
    for key in (_MODEL, _OPTIMIZER):
        if not isinstance(source, Mapping) or not isinstance(source.get(key), Mapping):
            found = list(source) if isinstance(source, Mapping) else repr(source)
            raise ValueError(
                f"a checkpoint is a dictionary {{{_MODEL!r}: ..., {_OPTIMIZER!r}: ...}}, got "
                f"{found}; make it of the two state dictionaries"
            )
    return source


def _write(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    import torch

    # A write that is cut short leaves the old file.
    unfinished = f"{os.fspath(path)}.unfinished"
    torch.save(checkpoint, unfinished)
    os.replace(unfinished, path)


def _groups(
    checkpoint: Mapping[str, Any],
    names: Sequence[str] | None,
    mapping: Mapping[str, Place] | None,
    instead: Mapping[str, Any],
) -> list[_Group]:
    groups = checkpoint[_OPTIMIZER].get("param_groups", [{}])
    names = _names(checkpoint, groups, mapping) if names is None else list(names)
    indices = [index for group in groups for index in group.get("params", ())]
    if len(names) != len(indices) or len(set(names)) != len(names):
        raise ValueError(
            f"the optimizer has {len(indices)} parameters, which cannot be {names}; the model has "
            f"{list(checkpoint[_MODEL])}. Complete the mapping, or give names=, the names of "
            "the optimizer's parameters in its order"
        )
    if unknown := [name for name in names if name not in checkpoint[_MODEL]]:
        raise ValueError(f"{_MODEL} has no {unknown}; it has {list(checkpoint[_MODEL])}")
    name_of = dict(zip(indices, names, strict=True))
    return [
        _Group(
            _hyperparameters(i, group, _of_group(i, len(groups), instead)),
            {index: name_of[index] for index in group.get("params", ())},
        )
        for i, group in enumerate(groups)
    ]


def _of_group(i: int, groups: int, instead: Mapping[str, Any]) -> dict[str, Any]:
    """Of each list in ``instead``, the value for group ``i``."""
    for name, value in instead.items():
        if isinstance(value, list) and len(value) != groups:
            raise ValueError(f"{name}={value} must have a value for each of {groups} param_groups")
    return {k: v[i] if isinstance(v, list) else v for k, v in instead.items()}


def _names(
    checkpoint: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    mapping: Mapping[str, Place] | None,
) -> list[str]:
    if all("param_names" in group for group in groups):
        return [name for group in groups for name in group["param_names"]]
    if len(groups) > 1:
        raise ValueError(
            "several param_groups and no param_names: give names=, the parameters' names in the "
            "order in which the optimizer got them"
        )
    # One group is model.parameters(), in the order of the state_dict less the buffers.
    model = checkpoint[_MODEL]
    names = [name for name in model if mapping is None or name in mapping]
    for name in names:
        if (first := _aliases(model, name)[0]) != name:
            raise ValueError(f"{name} is the same tensor as {first}: let the mapping have that one")
    return names


def _hyperparameters(
    i: int, group: Mapping[str, Any], instead: Mapping[str, Any]
) -> dict[str, Any]:
    read = {name: group.get(name, default) for name, default in _HYPERPARAMETERS.items()}
    for name, value in read.items():
        if value is _REQUIRED:
            raise ValueError(
                f"not a torch.optim.RMSprop: param_groups[{i}] has no {name!r}, only {list(group)}"
            )
    return _state.plain({**read, **instead})


def _parameter(
    checkpoint: Mapping[str, Any], index: int, name: str, group: _Group
) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    states = checkpoint[_OPTIMIZER].get("state", {})
    if index not in states:
        raise ValueError(
            f"{name} has no state, which wants {[slot for slot in group.slots.values() if slot]}: "
            "the checkpoint is not whole, or the parameter never got a gradient in torch; zeros in "
            f"['{_OPTIMIZER}']['state'][{index}] let it begin now"
        )
    slots = {slot: _array(x) for slot, x in states[index].items()}
    return _array(checkpoint[_MODEL][name]), slots, int(slots.pop("step", 0))


def _transformation(
    groups: Sequence[_Group], places: Mapping[str, Place]
) -> optax.GradientTransformationExtraArgs:
    optimizers = [dialects.pytorch(**group.hyperparameters) for group in groups]
    if len(optimizers) == 1:
        return optimizers[0]
    group_of = {
        places[name].path: str(i) for i, g in enumerate(groups) for name in g.names.values()
    }

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda keys, _: group_of[_state.path(keys)], params)

    return optax.partition({str(i): one for i, one in enumerate(optimizers)}, labels)


def _aliases(model: Mapping[str, Any], name: str) -> list[str]:
    """All names of the tensor ``name``: more than one where weights are tied."""

    def place(x: Any) -> Any:
        return (x.data_ptr(), x.shape) if hasattr(x, "data_ptr") and x.numel() else None

    here = place(model[name])
    return [other for other, x in model.items() if other == name or (here and place(x) == here)]


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        # NumPy has no bfloat16.
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x)


def _like(name: str, x: np.ndarray, old: Any) -> Any:
    """``x`` in the dtype of ``old``, and a tensor on its device if it is one."""
    if not hasattr(old, "detach"):
        return _state.cast(name, x, old.dtype)
    import torch

    x = _state.cast(name, x, jnp.dtype(str(old.dtype).removeprefix("torch.")))
    # Tensors cannot be made of JAX's bfloat16.
    return torch.tensor(x.astype(np.result_type(x, np.float32))).to(old.device, old.dtype)


def _step_like(step: int, old: Any) -> Any:
    if not hasattr(old, "detach"):
        return np.float32(step)
    import torch

    return torch.tensor(float(step))
