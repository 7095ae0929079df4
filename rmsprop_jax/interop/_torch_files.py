"""Finds the model and the optimizer in what was saved of a torch run; reads and writes it."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmsprop_jax.interop._files import is_path, replacing
from rmsprop_jax.interop._mapping import listed, shortened

# If several values look like a model's state_dict, the first of these keys that is there wins.
_MODEL_KEYS = ("model_state_dict", "state_dict", "model")
_OPTIMIZER_KEYS = ("optimizer_state_dict", "optimizer")
# The files that transformers and accelerate write into a folder.
_MODEL_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin")
_OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")


class Contents(NamedTuple):
    """The contents of a torch checkpoint.

    Attributes:
      model: The model's ``state_dict``.
      optimizer: The optimizer's ``state_dict``; ``None`` if there is none.
      loaded: The content of each file, or the dictionary that was given.
      model_at: The index of the model's file, and the keys that lead to the model in it.
      optimizer_at: The same for the optimizer.
    """

    model: Mapping[str, Any]
    optimizer: Mapping[str, Any] | None
    loaded: Sequence[Mapping[str, Any]]
    model_at: tuple[Any, ...]
    optimizer_at: tuple[Any, ...] | None


class ByFile(dict):
    """Arrays in the order of their file, which is not the module's: safetensors sorts them."""


def read(source: Any) -> Contents:
    """Finds the model and the optimizer in a dictionary, a file, a folder or a pair of files."""
    files = files_of(source)
    if files is None:
        return _find([source])
    return _find([_read_file(file) for file in files])


def files_of(source: Any) -> list[str] | None:
    """The paths of the files that ``source`` names; None if it is a dictionary."""
    if is_path(source):
        path = os.fspath(source)
        return _files_in(Path(path)) if os.path.isdir(path) else [path]
    if isinstance(source, tuple | list) and len(source) == 2 and all(map(is_path, source)):
        if os.path.realpath(source[0]) == os.path.realpath(source[1]):
            raise ValueError(f"the pair of files is {os.fspath(source[0])} twice; pass it alone")
        return [os.fspath(file) for file in source]
    return None


def write(contents: Contents, model: Any, optimizer: Any, target: Any) -> Any:
    """The checkpoint with a new model and optimizer, as a dictionary or in its files."""
    new = _replace_at(list(contents.loaded), contents.model_at, model)
    if contents.optimizer_at is not None:
        new = _replace_at(new, contents.optimizer_at, optimizer)
    files = files_of(target)
    if files is None:
        return new[0]
    with replacing(*files) as paths:
        for path, content in zip(paths, new, strict=True):
            _write_file(path, content)
    return target


def _files_in(folder: Path) -> list[str]:
    found = [
        next((folder / name for name in names if (folder / name).exists()), None)
        for names in (_MODEL_FILES, _OPTIMIZER_FILES)
    ]
    if None in found:
        raise ValueError(
            f"{folder} must have one of {[*_MODEL_FILES]} and one of {[*_OPTIMIZER_FILES]}; it has "
            f"{listed(sorted(os.listdir(folder)))}. Pass the pair of files, (model, optimizer)"
        )
    return [os.fspath(file) for file in found if file is not None]


def _read_file(file: str) -> Any:
    import torch

    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            return ByFile(load_file(file))
        return torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # Whatever the unpickler raises on the bytes it finds.
        own_class = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it contains a {own_class[1]}, and reading that may run code. If you trust the file, "
            "read it with torch.load(..., weights_only=False), and pass the dictionary"
            if own_class
            else "it is damaged, or was not written by torch.save"
        )
        raise ValueError(f"{file} cannot be read: {reason}") from error


def _write_file(path: Path, content: Any) -> None:
    if path.suffix != ".safetensors":
        import torch

        torch.save(content, path)
        return
    from safetensors.torch import save_file

    save_file({name: x.contiguous() for name, x in content.items()}, path, {"format": "pt"})


def _find(loaded: Sequence[Any]) -> Contents:
    """The one model and the one optimizer in one or two dictionaries."""
    models: dict[tuple[Any, ...], Any] = {}
    optimizers: dict[tuple[Any, ...], Any] = {}
    for i, content in enumerate(loaded):
        found_models: dict[tuple[Any, ...], Any] = {}
        found_optimizers: dict[tuple[Any, ...], Any] = {}
        if isinstance(content, Mapping):
            for key, value in content.items():
                parts = enumerate(value) if isinstance(value, list) else [(None, value)]
                for j, part in parts:
                    at = (i, key) if j is None else (i, key, j)
                    _classify(part, at, found_models, found_optimizers)
        if not found_models and not found_optimizers:
            _classify(content, (i,), found_models, found_optimizers)
        # Of a pair, the first file has the model and the second the optimizer.
        models |= found_models if i == 0 else {}
        optimizers |= found_optimizers if i == len(loaded) - 1 else {}
    model_at = _choose(models, _MODEL_KEYS, "models")
    optimizer_at = _choose(optimizers, _OPTIMIZER_KEYS, "optimizers")
    if model_at is None:
        content = loaded[0] if len(loaded) == 1 else loaded
        found = listed(content) if isinstance(content, Mapping) else shortened(content)
        raise ValueError(
            "a checkpoint must be a dictionary of the state_dicts of a model and its optimizer, as "
            f"{{'model_state_dict': ..., 'optimizer_state_dict': ...}}; got {found}; build it with "
            "these keys"
        )
    optimizer = None if optimizer_at is None else optimizers[optimizer_at]
    return Contents(models[model_at], optimizer, loaded, model_at, optimizer_at)


def _classify(
    value: Any, at: tuple[Any, ...], models: dict[Any, Any], optimizers: dict[Any, Any]
) -> None:
    """Puts ``value`` among models or optimizers, if it looks like the state_dict of one."""
    if not isinstance(value, Mapping):
        return
    if "param_groups" in value or (at[-1] in _OPTIMIZER_KEYS and "state" in value):
        optimizers[at] = value
    elif any(isinstance(k, str) and hasattr(x, "shape") for k, x in value.items()):
        models[at] = value


def _choose(
    found: Mapping[tuple[Any, ...], Any], keys: Sequence[str], kind: str
) -> tuple[Any, ...] | None:
    for key in keys:
        for at in found:
            if at[1:] == (key,):
                return at
    if len(found) > 1:
        raise ValueError(
            f"the checkpoint has several {kind}: {listed([at[1:] for at in found])}; pass one of "
            "each, {'model_state_dict': ..., 'optimizer_state_dict': ...}"
        )
    return next(iter(found), None)


def _replace_at(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested dictionaries and lists, with ``value`` at the keys ``at``."""
    if not at:
        return value
    key, *rest = at
    copied = list(tree) if isinstance(tree, list | tuple) else dict(tree)
    copied[key] = _replace_at(tree[key], tuple(rest), value)
    return copied
