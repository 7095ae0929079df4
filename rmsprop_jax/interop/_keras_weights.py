"""The ``.weights.h5`` file of Keras 3: numbered arrays, and no hyperparameter but the rate."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rmsprop_jax.interop._checkpoint import Checkpoint
from rmsprop_jax.interop._files import Source
from rmsprop_jax.interop._keras_hdf5 import checkpoint_of, opened
from rmsprop_jax.interop._keras_parts import Places, group, slots
from rmsprop_jax.interop._mapping import Leaf, find_leaves, leaves_of, listed, match_names

_OTHERS = re.compile(
    r"(adam|adamw|adamax|nadam|sgd|adagrad|adadelta|adafactor|ftrl|lamb|lion|muon)(_\d+)?"
)
_ENTRIES = "optimizer/vars"
_TRIES = 10_000
_NAMES = "names=[v.path for v in model.trainable_variables]"


class Block(NamedTuple):
    """A layer's trained variables, which are adjacent in the optimizer."""

    group: str
    names: list[str]
    shapes: list[tuple[int, ...]]


def read(
    path: Source,
    params: Any,
    mapping: Mapping[str, Leaf] | None,
    names: Sequence[str] | None,
    overrides: Mapping[str, Any],
) -> tuple[Checkpoint, Places]:
    """The checkpoint in a file, and where its arrays are."""
    with opened(path) as file:
        _check_optimizer(file)
        keys = _use_names(_weights(file), names)
        if names is None:
            names = _in_order_of_optimizer(file, keys, params, mapping, overrides)
        kept = [slot for slot in slots(overrides).values() if slot is not None]
        entries = [f"{_ENTRIES}/{i}" for i in range(len(file[_ENTRIES]))]
        first = _first_average(file, len(names), kept)
        places = Places(keys, {name: {} for name in names}, entries[0])
        for i, key in enumerate(entries[first:]):
            places.slots[names[i % len(names)]][kept[i // len(names)]] = key
        rate = {"learning_rate": float(file[entries[1]][()])} if first == 2 else {}
        if not rate and "learning_rate" not in overrides:
            raise ValueError("learning_rate must be given: the file does not hold it")
        return checkpoint_of(file, places, group({}, names, {**rate, **overrides})), places


def _check_optimizer(file: Any) -> None:
    if not len(file.get(_ENTRIES, ())):
        raise ValueError(
            "it holds no optimizer state: its model was not compiled when its weights were saved, "
            "or is from tf.keras, which saves only the weights; save the whole model"
        )
    name = str(file[_ENTRIES].attrs.get("name", ""))
    if "inner_optimizer" in file["optimizer"] or _OTHERS.fullmatch(name):
        raise ValueError(
            f"not a keras.optimizers.RMSprop: its optimizer is {name!r}; a LossScaleOptimizer can "
            "be loaded from the live model"
        )


def _weights(file: Any) -> dict[str, str]:
    """{name: key} of the model's arrays; a name is the layer's, and the variable's number."""
    found = {}
    for key in _layers(file, ""):
        name = "/".join(_layer_names(file, key))
        for i in sorted(file[f"{key}vars"], key=int):
            if file[f"{key}vars/{i}"].dtype.kind != "f":
                continue
            if f"{name}/{i}" in found:
                raise ValueError(f"two layers have the same name, {name!r}; give each its own")
            found[f"{name}/{i}"] = f"{key}vars/{i}"
    return found


def _layers(group: Any, key: str) -> Iterator[str]:
    """The keys of all groups with variables, except those of the optimizer and of metrics."""
    if "vars" in group:
        yield key
    for child in group:
        is_root = not key and child in ("optimizer", "metrics", "_metrics", "_loss_tracker")
        if child != "vars" and not is_root and hasattr(group[child], "keys"):
            yield from _layers(group[child], f"{key}{child}/")


def _layer_names(file: Any, key: str) -> Iterator[str]:
    """The names of a layer and of its parents. tf.keras keeps only their numbers."""
    parts = key.removesuffix("/").split("/")
    for i, part in enumerate(parts):
        above = "/".join(parts[: i + 1])
        if part and f"{above}/vars" in file:
            yield str(file[f"{above}/vars"].attrs.get("name", part))


def _use_names(keys: Mapping[str, str], names: Sequence[str] | None) -> dict[str, str]:
    """``keys`` with ``names`` instead of numbers: "dense/0" becomes "dense/kernel"."""
    if len(set(names or ())) < len(names or ()):
        raise ValueError(f"names must not repeat a name, got {listed(names or ())}")
    taken: dict[str, int] = {}
    new = {}
    for name in names or ():
        layer = f"/{name.rpartition('/')[0]}"
        fitting = [k for k in keys if k.endswith("/0") and f"{layer}/0".endswith(f"/{k}")]
        if not fitting:
            raise ValueError(f"names: the file has no layer for {name!r}, only {listed(keys)}")
        longest = max(fitting, key=len).removesuffix("0")
        numbered = f"{longest}{taken.get(longest, 0)}"
        taken[longest] = taken.get(longest, 0) + 1
        if numbered not in keys:
            raise ValueError(f"names: {longest[:-1]} has no variable left for {name!r}")
        new[numbered] = name
    return {new.get(name, name): key for name, key in keys.items()}


def _first_average(file: Any, count: int, kept: Sequence[str]) -> int:
    """The index of the first average: it follows the step and, if that is constant, the rate."""
    entries = file[_ENTRIES]
    first = len(entries) - count * len(kept)
    has_rate = first == 2 and entries["1"].shape == () and entries["1"].dtype.kind == "f"
    if entries["0"].dtype.kind not in "iu" or not (first == 1 or has_rate):
        raise ValueError(
            f"its optimizer has {len(entries)} arrays, but {count} parameters with {[*kept]} each "
            f"need {1 + count * len(kept)}, and one more for the rate: check momentum and "
            f"centered, or pass {_NAMES}"
        )
    return first


def _in_order_of_optimizer(
    file: Any,
    keys: Mapping[str, str],
    params: Any,
    mapping: Mapping[str, Leaf] | None,
    overrides: Mapping[str, Any],
) -> list[str]:
    """The names of the trained variables in the model's order; raises if it is not certain.

    A variable counts as trained if it is mapped to a leaf of ``params``. A layer's variables are
    adjacent, and Keras numbers a model's layers of one class in order; shapes decide the rest.
    """
    found = find_leaves(match_names(mapping, keys, params, "/"), leaves_of(params))
    by_group: dict[str, list[str]] = {}
    for name in keys:
        if name in found:
            by_group.setdefault(keys[name].rpartition("/vars/")[0], []).append(name)
    blocks = [
        Block(layer, names, [file[keys[name]].shape for name in names])
        for layer, names in by_group.items()
    ]
    kept = [slot for slot in slots(overrides).values() if slot is not None]
    count = sum(len(block.names) for block in blocks)
    first = _first_average(file, count, kept)
    entries = [file[f"{_ENTRIES}/{first + i}"].shape for i in range(count)]
    orders = _orders(blocks, entries)
    if len(orders) != 1:
        raise ValueError(
            "its optimizer numbers its parameters instead of naming them, and from their shapes "
            f"the order is not certain: {listed([n for b in blocks for n in b.names])}. Pass "
            f"{_NAMES}, or load the model in Keras and pass it"
        )
    return [name for block in orders[0] for name in block.names]


def _orders(blocks: Sequence[Block], entries: Sequence[tuple[int, ...]]) -> list[list[Block]]:
    """The orders of ``blocks`` whose shapes are those of ``entries``: none, one, or two of them."""
    found: list[list[Block]] = []
    unfinished: list[list[Block]] = [[]]
    for _ in range(_TRIES):
        if not unfinished or len(found) == 2:
            return found
        order = unfinished.pop()
        start = sum(len(block.names) for block in order)
        left = [block for block in blocks if block not in order]
        if not left:
            found.append(order)
        for block in left:
            here = list(entries[start : start + len(block.names)])
            if here == block.shapes and not any(_precedes(other, block) for other in left):
                unfinished.append([*order, block])
    return []


def _precedes(a: Block, b: Block) -> bool:
    """Whether Keras's numbers show that layer ``a`` comes before ``b``."""
    pairs = zip(a.group.split("/"), b.group.split("/"), strict=False)
    before = ""
    for x, y in pairs:
        if x != y:
            (base_x, i), (base_y, j) = _split_number(x), _split_number(y)
            return before == "layers" and base_x == base_y and i < j
        before = x
    return False


def _split_number(layer: str) -> tuple[str, int]:
    """``dense_2`` is the third of its class, ``dense`` the first."""
    base, _, number = layer.rpartition("_")
    return (base, int(number)) if base and number.isdigit() else (layer, 0)
