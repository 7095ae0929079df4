"""The mapping from a framework's arrays to the leaves of ``params``, and its checks."""

import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import GetAttrKey, KeyPath, keystr, tree_leaves_with_path

from rmsprop_jax._trees import has_gradient

Keys = tuple[str, ...]
"""The keys that lead to a leaf, as text. Joined by ``/``, those of two leaves may be equal."""


class Leaf(NamedTuple):
    """The leaf of ``params`` that holds a framework's array, and how the axes are transposed.

    A mapping is a dictionary from the framework's names to leaves::

        {"conv.weight": Leaf("conv/kernel", transpose=(2, 3, 1, 0)), "conv.bias": Leaf("conv/bias")}

    Attributes:
      path: The keys that lead to the leaf, joined by ``/``, or a tuple of them where a key
        contains ``/``, as Haiku's do. The ``value`` at the end of each path in an ``nnx.State``
        may be left out. For a buffer, which is not in ``params``, the path in
        ``Restored.buffers``.
      transpose: The permutation of the array's axes, as in ``numpy.transpose``; ``None`` keeps
        their order.
      reshape: The shape given to the array before it is transposed; ``None`` keeps its own
        shape. Needed for a dense layer after a flattened image: torch flattens (channels,
        height, width), Flax and Keras (height, width, channels). With 32 channels of 4 by 4
        and 56 outputs: ``reshape=(56, 32, 4, 4)`` and ``transpose=(2, 3, 1, 0)``.

    Example:
      >>> import numpy as np
      >>> Leaf("dense/kernel", transpose=(1, 0)).to_jax(np.zeros((10, 64)), shape=(64, 10)).shape
      (64, 10)
    """

    path: str | tuple[str, ...]
    transpose: tuple[int, ...] | None = None
    reshape: tuple[int, ...] | None = None

    def to_jax(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Converts the framework's array to the leaf, which has ``shape``."""
        reshaped = x.reshape(self.reshaped(x.shape))
        transposed = reshaped.transpose(self.permutation(reshaped.ndim))
        return transposed if self.reshape is None else transposed.reshape(shape)

    def from_jax(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Converts the leaf to the framework's array, which has ``shape``."""
        reshaped = self.reshaped(shape)
        permutation = self.permutation(len(reshaped))
        if self.reshape is not None:
            x = x.reshape([reshaped[axis] for axis in permutation])
        return x.transpose(np.argsort(permutation)).reshape(shape)

    def reshaped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape given to an array of ``shape`` before it is transposed."""
        return tuple(shape if self.reshape is None else self.reshape)

    def permutation(self, ndim: int) -> tuple[int, ...]:
        """The permutation of ``ndim`` axes; the identity if ``transpose`` is None."""
        return tuple(range(ndim) if self.transpose is None else self.transpose)


class MappedKeys(NamedTuple):
    """The keys that a checkpoint's names are mapped to, in ``params`` and in the buffers."""

    parameters: dict[str, Keys]
    buffers: dict[str, Keys]


def match_names(
    mapping: Mapping[str, Leaf] | None, names: Collection[str], params: Any, separator: str
) -> dict[str, Leaf]:
    """``mapping`` with the checkpoint's ``names`` as keys, whatever prefix either side has.

    ``None`` maps each name to the leaf at that path, with ``separator`` replaced by ``/``.
    """
    if mapping is None:
        wanted = {shown(keys).replace("/", separator): keys for keys in leaves_of(params)}
        found = in_checkpoint(wanted, names, separator)
        by_name = {found[name]: Leaf(keys) for name, keys in wanted.items() if name in found}
        return {name: by_name.get(name, Leaf(name.replace(separator, "/"))) for name in names}
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a dictionary {{name: Leaf}}, got {shortened(mapping)}")
    for name in mapping:
        if not isinstance(name, str):
            raise TypeError(f"mapping: its keys must be names of the checkpoint, got {name!r}")
    found = in_checkpoint(mapping, names, separator)
    return {found.get(name, name): leaf for name, leaf in mapping.items()}


def in_checkpoint(given: Iterable[str], names: Collection[str], separator: str) -> dict[str, str]:
    """{name: its name in the checkpoint}, for those of ``given`` that it has.

    A prefix of one side is removed: ``module.`` of DistributedDataParallel, a Lightning module's
    ``net.``, the model's name in Keras. ``_orig_mod`` of torch.compile is removed anywhere.
    """

    def without_compiled(name: str) -> str:
        return separator.join(part for part in name.split(separator) if part != "_orig_mod")

    there = {without_compiled(name): name for name in names}
    asked = {name: without_compiled(name) for name in given}

    def matches(rename: Callable[[str], str]) -> dict[str, str]:
        renamed = ((name, rename(short)) for name, short in asked.items())
        return {name: there[full] for name, full in renamed if full in there}

    best = matches(lambda name: name)
    if len(best) == len(asked):
        return best
    found = [best]
    for prefix in sorted(_prefixes(asked.values(), there, separator)):
        found.append(matches(lambda name, prefix=prefix: f"{prefix}{separator}{name}"))
    for prefix in sorted(_prefixes(there, asked.values(), separator)):
        found.append(matches(lambda name, prefix=prefix: name.removeprefix(prefix + separator)))
    most = max(map(len, found))
    several = [match for match in found if len(match) == most and most > len(best)]
    if len(several) > 1:
        raise ValueError(
            f"the names {listed(asked, 60)} are in the checkpoint under more than one prefix: "
            f"{listed([next(iter(match.values())) for match in several], 100)}; give the mapping "
            "the checkpoint's own names"
        )
    return several[0] if several else best


def _prefixes(short: Iterable[str], long: Iterable[str], separator: str) -> set[str]:
    """The prefixes that names of ``short`` have in ``long``."""
    wanted = set(short)
    prefixes = set()
    for name in long:
        parts = name.split(separator)
        for i in range(1, len(parts)):
            if separator.join(parts[i:]) in wanted:
                prefixes.add(separator.join(parts[:i]))
                break
    return prefixes


def check_mapping(
    mapping: Mapping[str, Leaf],
    names: Collection[str],
    trained: Mapping[str, bool],
    leaves: Mapping[Keys, Any],
    *,
    partial: bool = False,
) -> MappedKeys:
    """The keys that ``mapping`` leads to; raises unless it has all leaves and all parameters.

    Args:
      mapping: The mapping, with the checkpoint's names.
      names: The names of all arrays of the model.
      trained: The names that the optimizer trains, and whether it has a state for each. Those
        without a state may be left out.
      leaves: The leaves of ``params``.
      partial: Whether anything else may be missing, on either side.
    """
    if not partial:
        _check_names(mapping, names, trained)
    mapped, sources, find = MappedKeys({}, {}), {}, _finder(leaves)
    for name, leaf in mapping.items():
        keys = find(name, _checked_leaf(name, leaf).path)
        destination = _keys(leaf.path) if keys is None else keys
        if destination in sources:
            raise ValueError(
                f"mapping: {name} and {sources[destination]} are both mapped to "
                f"{shown(destination)!r}; give each its own path"
            )
        sources[destination] = name
        if name in names and keys is not None:
            mapped.parameters[name] = keys
        elif name in names and name not in trained:
            mapped.buffers[name] = destination
        elif trained.get(name) and not partial:
            raise ValueError(
                f"{name}: params have no leaf {shown(leaf.path)!r}, only "
                f"{listed([shown(keys) for keys in leaves])}"
            )
    if not_mapped := [keys for keys in leaves if keys not in sources and not partial]:
        raise ValueError(
            f"params: no parameter of the checkpoint is mapped to {shown(not_mapped[0])!r}; map "
            "one to it, or leave it out of params"
        )
    return mapped


def _check_names(
    mapping: Mapping[str, Leaf], names: Collection[str], trained: Mapping[str, bool]
) -> None:
    """Raises unless the mapping and the checkpoint have the same parameters."""
    for name, has_state in trained.items():
        if name not in mapping and has_state:
            raise ValueError(
                f"the mapping has no {name!r}, a parameter in the checkpoint: add "
                f"{name!r}: interop.Leaf(<its path in params>)"
            )
    for name in mapping:
        if name not in names:
            raise ValueError(
                f"the checkpoint has no parameter {name!r}, which is in the mapping; it has "
                f"{listed(names)}"
            )


def _keys(path: str | Keys) -> Keys:
    return tuple(path.split("/")) if isinstance(path, str) else tuple(map(str, path))


def find_leaves(mapping: Mapping[str, Leaf], leaves: Iterable[Keys]) -> dict[str, Keys]:
    """{name: the keys of its leaf}, for those of ``mapping`` that lead to one of ``leaves``."""
    find = _finder(leaves)
    found = {name: find(name, _checked_leaf(name, leaf).path) for name, leaf in mapping.items()}
    return {name: keys for name, keys in found.items() if keys is not None}


def _finder(leaves: Iterable[Keys]) -> Callable[[str, str | Keys], Keys | None]:
    """A function from a name and a `Leaf.path` to the keys of that leaf, or None."""
    joined: dict[str, list[Keys]] = {}
    for keys in leaves:
        joined.setdefault(shown(keys), []).append(keys)

    def find(name: str, path: str | Keys) -> Keys | None:
        found = joined.get(shown(path)) or joined.get(shown(path).removesuffix("/value")) or []
        if not isinstance(path, str):
            given = _keys(path)
            short = given[:-1] if given[-1:] == ("value",) else given
            return next((keys for keys in (given, short) if keys in found), None)
        if len(found) > 1:
            raise ValueError(
                f"{name}: two leaves have the same path, {path!r}: give the keys of one of them, "
                f"Leaf({found[0]}) or Leaf({found[1]})"
            )
        return found[0] if found else None

    return find


def _checked_leaf(name: str, leaf: Any) -> Leaf:
    if (
        not isinstance(leaf, Leaf)
        or not all(is_int_tuple(x) for x in (leaf.transpose, leaf.reshape))
        or not isinstance(leaf.path, str | tuple)
    ):
        raise TypeError(
            f"{name}: the mapping must have an interop.Leaf whose transpose and reshape are None "
            f"or tuples of integers, got {shortened(leaf)}"
        )
    return leaf


def is_int_tuple(x: Any) -> bool:
    """Whether ``x`` is None or a sequence of integers."""
    if x is None:
        return True
    return isinstance(x, Sequence) and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) for n in x
    )


def check_fits(name: str, leaf: Leaf, shape: tuple[int, ...], leaf_shape: tuple[int, ...]) -> None:
    """Raises unless ``leaf`` converts an array of ``shape`` to one of ``leaf_shape``."""
    transposed = transposed_shape(name, leaf, shape)
    merges = leaf.reshape is not None and merges_neighbours(transposed, leaf_shape)
    if transposed != leaf_shape and not merges:
        raise ValueError(
            f"{name}: its array of shape {shape} becomes {transposed}, but the leaf at "
            f"{shown(leaf.path)!r} has shape {leaf_shape}; change transpose or reshape of {leaf}"
        )


def transposed_shape(name: str, leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array of ``shape`` after ``leaf`` has reshaped and transposed it."""
    reshaped = leaf.reshaped(shape)
    permutation = leaf.permutation(len(reshaped))
    if math.prod(reshaped) != math.prod(shape) or sorted(permutation) != [*range(len(reshaped))]:
        raise ValueError(
            f"{name}: {leaf} does not fit an array of shape {shape}; reshape must keep its size, "
            "and transpose must name each axis once"
        )
    return tuple(reshaped[axis] for axis in permutation)


def merges_neighbours(shape: tuple[int, ...], merged: tuple[int, ...]) -> bool:
    """Whether ``merged`` is ``shape`` with some neighbouring axes merged into one."""
    ends, merged_ends = (list(itertools.accumulate(s, operator.mul)) for s in (shape, merged))
    return ends[-1:] == merged_ends[-1:] and set(merged_ends) <= set(ends)


def leaves_of(params: Any) -> dict[Keys, Any]:
    """The leaves of ``params`` that can be trained, by their keys."""
    leaves: dict[Keys, Any] = {}
    for path, leaf in tree_leaves_with_path(params):
        if not has_gradient(leaf):
            continue
        keys = leaf_keys(path)
        if keys in leaves:
            raise ValueError(
                f"params: two leaves have the same path, {shown(keys)!r}; rename a key"
            )
        leaves[keys] = leaf
    return leaves


def leaf_keys(path: KeyPath) -> Keys:
    """The keys of a key path as text, without the ``value`` of an ``nnx.Variable``.

    In a state, ``value`` may precede the real or imaginary part of a complex leaf.
    """
    attributes = [key.name if isinstance(key, GetAttrKey) else None for key in path]
    is_complex_part = attributes[-1:] in (["real"], ["imaginary"])
    last = len(path) - 1 - is_complex_part
    skip = last if last > 0 and attributes[last] == "value" else None
    return tuple(keystr((key,), simple=True) for i, key in enumerate(path) if i != skip)


def shown(path: str | Keys) -> str:
    """A leaf's path as text: its keys, joined by ``/``."""
    return path if isinstance(path, str) else "/".join(map(str, path))


def nested(arrays: Mapping[Keys, Any]) -> dict[str, Any]:
    """A nested dictionary of arrays, from their keys."""
    tree: dict[str, Any] = {}
    for keys, array in arrays.items():
        *parents, last = keys
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {}) if isinstance(branch, dict) else branch
        if not isinstance(branch, dict) or last in branch:
            raise ValueError(f"{shown(keys)!r} is the path of one array and a prefix of another's")
        branch[last] = array
    return tree


def listed(names: Collection[Any], room: int = 120) -> str:
    """A list of names for an error message, cut to about ``room`` characters."""
    names, shown = list(names), 0
    while shown < len(names) and (shown == 0 or len(repr(names[: shown + 1])) <= room):
        shown += 1
    rest = f" and {len(names) - shown} more" if shown < len(names) else ""
    return f"{names[:shown]}{rest}"


def shortened(value: Any, room: int = 120) -> str:
    """The repr of a value for an error message, cut to ``room`` characters."""
    text = repr(value)
    return text if len(text) <= room else f"{text[: room - 3]}..."
