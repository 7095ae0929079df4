"""Checkpoints of ``torch.optim.RMSprop``: read, continue in JAX, write back.

A checkpoint is what `PyTorch's tutorial
<https://docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html>`_
saves: a dictionary with ``"model_state_dict"`` and ``"optimizer_state_dict"``, holding
tensors or NumPy arrays, or the path of a ``.pt`` file of such a dictionary.
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
from rmsprop_jax.interop import _convert, _records
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import Leaf, check_mapping, leaf_path, listed, shortened

_MODEL, _OPTIMIZER = "model_state_dict", "optimizer_state_dict"
_REQUIRED = ...
_HYPERPARAMETERS = {
    "lr": _REQUIRED,
    "alpha": _REQUIRED,
    "eps": _REQUIRED,
    "weight_decay": _REQUIRED,
    # Old checkpoints lack these; torch then uses the same defaults.
    "momentum": 0.0,
    "centered": False,
    "maximize": False,
}


def load(
    source: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    names: Sequence[str] | None = None,
    **hyperparameters: Any,
) -> Restored:
    """Loads a run of ``torch.optim.RMSprop``, to continue with `dialects.pytorch`.

    Args:
      source: The checkpoint, a dictionary with ``"model_state_dict"`` and
        ``"optimizer_state_dict"``, or the path of a file to which ``torch.save`` wrote it.
        If a file has other keys or objects, load it and build such a dictionary.
      params: A tree with the structure, shapes and dtypes of the parameters to return.
        Its values are not used.
      mapping: For each parameter of the optimizer, the `Leaf` of ``params`` that holds it;
        `mapping_of` builds a mapping from the model. ``None`` maps ``conv.weight`` to
        ``conv/weight`` and keeps torch's axes.
      names: The names of the parameters, in the order in which the optimizer received them.
        Not needed if it was built from ``model.named_parameters()``, because the checkpoint
        then holds the names. Nor if it has one group in the order of ``model.parameters()``,
        which is assumed without names.
      **hyperparameters: Arguments of `dialects.pytorch` that replace those in the
        checkpoint, such as ``lr=schedule``: torch saves only the current rate. A list gives
        one value per group.

    Returns:
      A `Restored`. With several groups of parameters, its optimizer is an
      ``optax.partition``.

    Raises:
      ValueError: If the optimizer is not RMSprop, a slot is missing or unexpected, an array
        is not finite or has the wrong shape, or names do not match. The message names the
        parameter.
      TypeError: If an array is not floating point, or real where ``params`` are complex
        or the other way round, or ``mapping`` is not a dictionary of `Leaf`.

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
      >>> restored = interop.pytorch.load(
      ...     checkpoint,
      ...     params={"kernel": np.zeros((3, 1))},
      ...     mapping={"linear.weight": interop.Leaf("kernel", transpose=(1, 0))},
      ... )
      >>> restored.step, restored.params["kernel"].shape, restored.hyperparameters[0]["alpha"]
      (7, (3, 1), 0.99)
    """
    checkpoint = _read(source)
    groups = _groups(checkpoint, names, mapping, hyperparameters)
    names = [name for group in groups for name in group.names.values()]
    mapping = check_mapping(mapping, names, params, ".")
    optimizer = _optimizer(groups, mapping)
    records, steps = {}, [0]
    for group in groups:
        for index, name in group.names.items():
            value, slots, step = _parameter(checkpoint, index, name, group)
            records[name] = _records.checked_record(name, value, slots, group.slots)
            steps.append(step)
    step = max(steps)
    params, state = _convert.restore(params, mapping, records, optimizer, step)
    return Restored(params, optimizer, state, step, tuple(g.hyperparameters for g in groups))


def save(
    target: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    names: Sequence[str] | None = None,
    step: int | None = None,
) -> Mapping[str, Any] | str | os.PathLike:
    """Replaces the parameters and the optimizer state in a checkpoint.

    Args:
      target: A checkpoint that `load` accepts, with the hyperparameters for the rest of the
        run: the one that was loaded, or that of a new model and optimizer before the first
        step. A file is overwritten.
      params: The parameters.
      state: The state of `dialects.pytorch`, or with several groups the state of the
        optimizer that `load` returned.
      mapping: As in `load`.
      names: As in `load`.
      step: Steps taken. ``None`` reads it from the state, which keeps it only if the learning
        rate is a schedule or an average is in low precision. torch does not compute with it.

    Returns:
      ``target`` if it is a path, otherwise a new dictionary with two state dictionaries for
      ``load_state_dict``. Arrays are tensors where those of ``target`` are, with the same
      dtype and on the same device.

    Raises:
      ValueError, TypeError: As in `load`; also if ``state`` and the optimizer of ``target``
        differ in whether they are centred or have momentum.
    """
    checkpoint = _read(target)
    groups = _groups(checkpoint, names, mapping, {})
    model, slots = copy.copy(checkpoint[_MODEL]), {}
    shapes = {name: tuple(model[name].shape) for group in groups for name in group.names.values()}
    leaves = check_mapping(mapping, shapes, params, ".")
    without_step, with_step = (
        _optimizer(_groups(checkpoint, names, mapping, overrides), leaves)
        for overrides in ({}, _convert.options_that_count_steps("lr", state))
    )
    _convert.check_state(state, params, "dialects.pytorch", without_step, with_step)
    records = _convert.to_records(params, state, leaves, shapes)
    step = _convert.resolve_step(state, step)
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


def mapping_of(model: Any) -> dict[str, Leaf]:
    """Builds a mapping from a live ``torch.nn.Module`` to Flax's names and layout.

    Weights of linear layers and convolutions become ``kernel``, transposed; those of
    normalizations become ``scale`` and those of embeddings ``embedding``. All other arrays
    keep their names and axes. Print the mapping and change it where your network differs:
    a linear layer behind a flattened image needs a `Leaf` with ``reshape``.

    Example:
      >>> import torch
      >>> from rmsprop_jax import interop
      >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
      >>> for item in interop.pytorch.mapping_of(model).items():
      ...     print(item)
      ('0.weight', Leaf(path='0/kernel', transpose=(1, 0), reshape=None))
      ('0.bias', Leaf(path='0/bias', transpose=None, reshape=None))
    """
    mapping = {}
    for name, _ in model.named_parameters():
        module, _, kind = name.rpartition(".")
        layer = type(model.get_submodule(module)).__name__
        key, transpose = _FLAX.get(layer, {}).get(kind, (kind, None))
        mapping[name] = Leaf("/".join([*filter(None, module.split(".")), key]), transpose)
    return mapping


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
    """A parameter group: its hyperparameters, and its parameters' names by index."""

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
            found = listed(source) if isinstance(source, Mapping) else shortened(source)
            raise ValueError(
                f"a checkpoint must be a dictionary {{{_MODEL!r}: ..., {_OPTIMIZER!r}: ...}} of "
                f"two state dictionaries, got {found}; build it with these keys"
            )
    return source


def _write(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    import torch

    # An interrupted write leaves the old file.
    unfinished = f"{os.fspath(path)}.unfinished"
    torch.save(checkpoint, unfinished)
    os.replace(unfinished, path)


def _groups(
    checkpoint: Mapping[str, Any],
    names: Sequence[str] | None,
    mapping: Mapping[str, Leaf] | None,
    overrides: Mapping[str, Any],
) -> list[_Group]:
    groups = checkpoint[_OPTIMIZER].get("param_groups", [{}])
    names = _parameter_names(checkpoint, groups, mapping) if names is None else list(names)
    indices = [index for group in groups for index in group.get("params", ())]
    if len(names) != len(indices) or len(set(names)) != len(names):
        raise ValueError(
            f"the optimizer has {len(indices)} parameters, which cannot be the {len(names)} names "
            f"{listed(names)}. Complete the mapping, or pass names=, the names of the optimizer's "
            "parameters in its order"
        )
    if unknown := [name for name in names if name not in checkpoint[_MODEL]]:
        raise ValueError(
            f"{_MODEL} has no {listed(unknown, 80)}; it has {listed(checkpoint[_MODEL])}"
        )
    name_of = dict(zip(indices, names, strict=True))
    return [
        _Group(
            _hyperparameters(i, group, _overrides_of_group(i, len(groups), overrides)),
            {index: name_of[index] for index in group.get("params", ())},
        )
        for i, group in enumerate(groups)
    ]


def _overrides_of_group(i: int, groups: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides for group ``i``: an element of each list, and all other values."""
    for name, value in overrides.items():
        if isinstance(value, list) and len(value) != groups:
            raise ValueError(
                f"{name}={shortened(value)} must have one value for each of {groups} param_groups"
            )
    return {k: v[i] if isinstance(v, list) else v for k, v in overrides.items()}


def _parameter_names(
    checkpoint: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    mapping: Mapping[str, Leaf] | None,
) -> list[str]:
    if all("param_names" in group for group in groups):
        return [name for group in groups for name in group["param_names"]]
    if len(groups) > 1:
        raise ValueError(
            "several param_groups without param_names: pass names=, the parameters' names in the "
            "order in which the optimizer received them"
        )
    # One group is model.parameters(), in the order of the state_dict without its buffers.
    model = checkpoint[_MODEL]
    names = [name for name in model if mapping is None or name in mapping]
    for name in names:
        if (first := _aliases(model, name)[0]) != name:
            raise ValueError(f"{name} is the same tensor as {first}: map {first} instead")
    return names


def _hyperparameters(
    i: int, group: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    read = {name: group.get(name, default) for name, default in _HYPERPARAMETERS.items()}
    for name, value in read.items():
        if value is _REQUIRED:
            raise ValueError(
                f"not a torch.optim.RMSprop: param_groups[{i}] has no {name!r}, only "
                f"{listed(group)}"
            )
    return _records.as_python_numbers({**read, **overrides})


def _parameter(
    checkpoint: Mapping[str, Any], index: int, name: str, group: _Group
) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    states = checkpoint[_OPTIMIZER].get("state", {})
    if index not in states:
        expected = [slot for slot in group.slots.values() if slot]
        raise ValueError(
            f"{name} has no optimizer state; expected {expected}. Either the checkpoint is "
            "incomplete or the parameter never received a gradient. To start it from zero, add "
            f"zeros under ['{_OPTIMIZER}']['state'][{index}]"
        )
    slots = {slot: _array(x) for slot, x in states[index].items()}
    return _array(checkpoint[_MODEL][name]), slots, int(slots.pop("step", 0))


def _optimizer(
    groups: Sequence[_Group], mapping: Mapping[str, Leaf]
) -> optax.GradientTransformationExtraArgs:
    optimizers = [dialects.pytorch(**group.hyperparameters) for group in groups]
    if len(optimizers) == 1:
        return optimizers[0]
    group_of = {
        mapping[name].path: str(i) for i, g in enumerate(groups) for name in g.names.values()
    }

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda keys, _: group_of[leaf_path(keys)], params)

    return optax.partition({str(i): one for i, one in enumerate(optimizers)}, labels)


def _aliases(model: Mapping[str, Any], name: str) -> list[str]:
    """All names of the tensor ``name``: more than one where weights are tied."""

    def storage(x: Any) -> Any:
        return (x.data_ptr(), x.shape) if hasattr(x, "data_ptr") and x.numel() else None

    own = storage(model[name])
    return [other for other, x in model.items() if other == name or (own and storage(x) == own)]


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        # NumPy has no bfloat16.
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x)


def _like(name: str, x: np.ndarray, old: Any) -> Any:
    """Converts ``x`` to the dtype of ``old``, and to a tensor on its device if it is one."""
    if not hasattr(old, "detach"):
        return _records.cast(name, x, old.dtype)
    import torch

    x = _records.cast(name, x, jnp.dtype(str(old.dtype).removeprefix("torch.")))
    # torch cannot convert JAX's bfloat16.
    return torch.tensor(x.astype(np.result_type(x, np.float32))).to(old.device, old.dtype)


def _step_like(step: int, old: Any) -> Any:
    if not hasattr(old, "detach"):
        return np.float32(step)
    import torch

    return torch.tensor(float(step))
