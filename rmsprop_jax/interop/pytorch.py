"""Checkpoints of ``torch.optim.RMSprop`` and its variants: read, continue in JAX, write back.

A checkpoint is whatever people save: a dictionary of the model's and the optimizer's ``state_dict``
as in `PyTorch's tutorial
<https://docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html>`_,
a file of it, Lightning's ``.ckpt``, or a pair of files such as ``model.safetensors`` and
``optimizer.pt``. Arrays are tensors or NumPy arrays.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.interop import _convert, _files, _records, _torch_files
from rmsprop_jax.interop._checkpoint import Changes, Checkpoint
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import Leaf, listed, shortened
from rmsprop_jax.interop._state import checked_step
from rmsprop_jax.interop._torch_groups import (
    Model,
    mapped_names,
    names_of,
    param_groups,
    read_group,
    read_groups,
    warn_of_scheduler,
)
from rmsprop_jax.interop._torch_modules import mapping_of

__all__ = ["Source", "load", "mapping_of", "save"]

Source = Mapping[str, Any] | str | os.PathLike | tuple[str | os.PathLike, str | os.PathLike]


def load(
    source: Source,
    params: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    names: Sequence[str] | None = None,
    dialect: str | None = None,
    missing: str = "error",
    **hyperparameters: Any,
) -> Restored:
    """Loads a run of ``torch.optim.RMSprop``, to continue with `dialects.pytorch`.

    A run of timm's ``RMSpropTF`` continues with `dialects.timm`; it is recognized by its groups.
    The groups of Stable-Baselines3's ``RMSpropTFLike`` look like torch's, but its rule differs:
    for such a run, pass ``dialect="stable_baselines3"``.

    Args:
      source: A dictionary with the ``state_dict`` of a model and that of its optimizer, under
        any keys; the path of a file to which ``torch.save`` wrote it; a pair of paths,
        (model, optimizer), of which the first may end in ``.safetensors``; or a folder with such
        a pair, as transformers writes it. Files are read with ``weights_only=True``.
      params: A tree with the structure, shapes and dtypes of the parameters to return, such as
        ``nnx.state(model, nnx.Param)``. Its values are used only for leaves that begin anew.
      mapping: For each parameter of the optimizer, the `Leaf` of ``params`` that holds it;
        `mapping_of` builds a mapping from the model. ``None`` maps ``conv.weight`` to
        ``conv/weight`` and keeps torch's axes. A prefix that all names have on one side
        (``module.``, ``_orig_mod.``, ``net.``) need not be given.
      names: The names of the parameters, in the order in which the optimizer received them.
        Not needed if it was built from ``model.named_parameters()``, because the checkpoint
        then holds the names, nor if it has one group, and the mapping, the model's dictionary
        or the shapes show the order. If they do not, an error asks for ``names``.
      dialect: ``"pytorch"``, ``"timm"`` or ``"stable_baselines3"``; ``None`` tells the first two
        apart by the keys of the groups.
      missing: ``"fresh"`` begins new averages for parameters that have no state in the
        checkpoint, and for leaves that the checkpoint lacks or has in another shape; these also
        keep their given values. ``Restored.fresh`` lists both. ``"error"`` raises, unless the
        optimizer's state is completely empty, as before the first step. To keep a frozen
        parameter as it is, leave it out of ``params``.
      **hyperparameters: Arguments of the dialect that replace those in the checkpoint, such as
        ``lr=schedule``: torch saves only the current rate. A list gives one value per group.

    Returns:
      A `Restored`. With several groups of parameters, or parameters that the optimizer did not
      train, its optimizer is an ``optax.partition``.

    Raises:
      ValueError: If the optimizer is not RMSprop, a slot is missing or unexpected, an array
        is not finite or has the wrong shape, or names do not match. The message names the
        parameter, and the file.
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
    with _files.errors_name(source):
        contents = _torch_files.read(source)
        if contents.optimizer is None:
            if missing != "fresh":
                raise ValueError(
                    f"the checkpoint has no optimizer, only a model of {listed(contents.model, 80)}"
                    '. Pass missing="fresh" to begin its averages anew'
                )
            model = _model(contents.model)
            trained = [
                name for name in mapped_names(mapping, model, params) if name in model.arrays
            ]
            group = read_group(dialect or "pytorch", hyperparameters, {}, trained)
            checkpoint = Checkpoint(model.arrays, {}, [group], 0, separator=".")
        else:
            warn_of_scheduler(param_groups(contents.optimizer), hyperparameters)
            checkpoint, _ = _read(contents, params, mapping, names, dialect, hyperparameters)
        return _convert.load(checkpoint, params, mapping, missing)


def save(
    target: Source,
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    names: Sequence[str] | None = None,
    dialect: str | None = None,
    step: int | None = None,
    buffers: Mapping[str, Any] | None = None,
) -> Source:
    """Replaces the parameters and the optimizer state in a checkpoint.

    Args:
      target: A checkpoint that `load` accepts, with the hyperparameters for the rest of the
        run: the one that was loaded, or that of a new model and optimizer before the first
        step. Files are replaced as a whole or not at all.
      params: The parameters.
      state: The state of the optimizer that `load` returned.
      mapping: As in `load`.
      names: As in `load`.
      dialect: As in `load`.
      step: Steps taken. ``None`` reads it from the state, which keeps it only if the learning
        rate is a schedule or an average is in low precision. torch does not compute with it.
      buffers: Buffers to write, such as BatchNorm's running statistics, in the structure of
        ``Restored.buffers``. ``None`` leaves those of ``target``.

    Returns:
      ``target`` if it is a path or a pair of paths, otherwise a new dictionary with two state
      dictionaries for ``load_state_dict``. Arrays are tensors where those of ``target`` are, with
      the same dtype and on the same device.

    Raises:
      ValueError, TypeError: As in `load`; also if ``state`` and the optimizer of ``target``
        differ in whether they are centred or have momentum.
      OSError: If a file cannot be written; the old one is unchanged.
    """
    with _files.errors_name(target):
        contents = _torch_files.read(target)
        if contents.optimizer is None:
            raise ValueError("target has no optimizer to write the averages to")
        checkpoint, index_of = _read(contents, params, mapping, names, dialect, {})
        changes = _convert.save(checkpoint, params, state, mapping, step=step, buffers=buffers)
        return _write(contents, index_of, changes, target)


def _model(state_dict: Mapping[str, Any]) -> Model:
    return Model(
        _arrays(state_dict),
        _aliases(state_dict),
        # The mark of a dictionary from the module itself, which is in the module's order.
        from_module=hasattr(state_dict, "_metadata"),
        by_file=isinstance(state_dict, _torch_files.ByFile),
    )


def _read(
    contents: _torch_files.Contents,
    params: Any,
    mapping: Mapping[str, Leaf] | None,
    names: Sequence[str] | None,
    dialect: str | None,
    overrides: Mapping[str, Any],
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint, and {name: index in the optimizer's state}."""
    optimizer: Any = contents.optimizer
    groups, entries = param_groups(optimizer), _entries(optimizer)
    model = _model(contents.model)
    shapes = {index: np.shape(x["square_avg"]) for index, x in entries.items() if "square_avg" in x}
    name_of = names_of(model, groups, shapes, mapping, params, names)
    if unknown := [index for index in entries if index not in name_of]:
        raise ValueError(
            f"the optimizer's state has {listed(unknown)}, which are in none of its "
            "param_groups: the state belongs to another optimizer"
        )
    states, steps = {}, [0]
    for index, entry in entries.items():
        slots = {
            slot: _array(f"{name_of[index]}: {slot}", x)
            for slot, x in entry.items()
            if slot != "step"
        }
        if slots:
            states[name_of[index]] = slots
            step = entry.get("step", 0)
            steps.append(checked_step(f"{name_of[index]}: step", _array("step", step)))
    own_groups = read_groups(groups, name_of, dialect, overrides)
    checkpoint = Checkpoint(model.arrays, states, own_groups, max(steps), separator=".")
    return checkpoint, {name: index for index, name in name_of.items()}


def _entries(optimizer: Mapping[str, Any]) -> Mapping[Any, Mapping[str, Any]]:
    """The entries of an optimizer's state, by index."""
    state = optimizer.get("state")
    if not isinstance(state, Mapping):
        raise ValueError(f"the optimizer's 'state' must be a dictionary, got {shortened(state)}")
    for index, entry in state.items():
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"state[{index!r}] of the optimizer must be a dictionary, got {shortened(entry)}"
            )
    return state


def _write(
    contents: _torch_files.Contents, index_of: Mapping[str, Any], changes: Changes, target: Source
) -> Source:
    old: Any = contents.optimizer
    model, state = copy.copy(contents.model), {**old.get("state", {})}
    names_of_tensor: dict[str, list[str]] = {}
    for name, first in _aliases(contents.model).items():
        names_of_tensor.setdefault(first, []).append(name)
    for name, value in changes.values.items():
        like = _like(name, value, contents.model[name])
        model |= dict.fromkeys(names_of_tensor[name], like)  # pyright: ignore[reportOperatorIssue]
    for name, slots in changes.states.items():
        like = contents.model[name]
        averages = {slot: _like(f"{name}: {slot}", x, like) for slot, x in slots.items()}
        state[index_of[name]] = {"step": _step_like(changes.step, like), **averages}
    return _torch_files.write(contents, model, {**old, "state": state}, target)


def _arrays(model: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a model; a module's extra state may be anything else."""
    return {
        name: _array(name, x)
        for name, x in model.items()
        if hasattr(x, "shape") and hasattr(x, "dtype")
    }


def _aliases(model: Mapping[str, Any]) -> dict[str, str]:
    """{name: the first name of the same tensor}; the two differ if weights are tied."""
    first: dict[Any, str] = {}
    return {
        name: first.setdefault((x.data_ptr(), x.shape), name)
        if hasattr(x, "data_ptr") and x.numel() and x.device.type != "meta"
        else name
        for name, x in model.items()
    }


def _array(name: str, x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        return np.asarray(x)
    try:
        x = x.detach().cpu()
        # NumPy has no bfloat16.
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"{name} cannot be read, it is {x.dtype} on {x.device}: convert it to float32"
        ) from error


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
