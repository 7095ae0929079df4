"""The mapping from a framework's arrays to the leaves of ``params``, and its checks."""

import itertools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import KeyPath, keystr, tree_leaves_with_path


class Leaf(NamedTuple):
    """The leaf of ``params`` that holds a framework's array, and how the axes are transposed.

    A mapping is a dictionary from the framework's names to leaves:

        {"conv.weight": Leaf("conv/kernel", transpose=(2, 3, 1, 0)), "conv.bias": Leaf("conv/bias")}

    Attributes:
      path: The keys that lead to the leaf, joined by ``/``. In an ``nnx.State`` every path
        ends in ``/value``; in the result of ``nnx.to_pure_dict`` none does.
      transpose: The permutation of the array's axes, as in `numpy.transpose`; ``None`` keeps
        their order.
      reshape: The shape given to the array before it is transposed; ``None`` keeps its own
        shape. Needed for a dense layer behind a flattened image: torch flattens (channels,
        height, width), Flax and Keras (height, width, channels). With 32 channels of 4 by 4
        and 56 outputs: ``reshape=(56, 32, 4, 4)`` and ``transpose=(2, 3, 1, 0)``.

    Example:
      >>> import numpy as np
      >>> Leaf("dense/kernel", transpose=(1, 0)).to_jax(np.zeros((10, 64)), shape=(64, 10)).shape
      (64, 10)
    """

    path: str
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
        """The shape of an array of ``shape`` when it is transposed."""
        return tuple(shape if self.reshape is None else self.reshape)

    def permutation(self, ndim: int) -> tuple[int, ...]:
        """The permutation of ``ndim`` axes; the identity if ``transpose`` is None."""
        return tuple(range(ndim) if self.transpose is None else self.transpose)


def check_mapping(
    mapping: Mapping[str, Leaf] | None, names: Collection[str], params: Any, separator: str = "/"
) -> Mapping[str, Leaf]:
    """Returns ``mapping``, if it maps ``names`` to the leaves of ``params`` one to one.

    ``None`` maps every name to itself, with ``separator`` replaced by ``/``.
    """
    if mapping is None:
        mapping = {name: Leaf(name.replace(separator, "/")) for name in names}
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a dictionary {{name: Leaf}}, got {shortened(mapping)}")
    for name in names:
        if name not in mapping:
            raise ValueError(
                f"the mapping has no {name!r}, a parameter in the checkpoint: add "
                f"{name!r}: interop.Leaf(<its path in params>)"
            )
    paths = [leaf_path(keys) for keys, _ in tree_leaves_with_path(params)]
    if repeated := {path for path in paths if paths.count(path) > 1}:
        raise ValueError(
            f"params: two leaves have one path: {listed(repeated)}; rename one of their keys"
        )
    sources: dict[str, str] = {}
    for name, leaf in mapping.items():
        _check_entry(name, leaf, names, paths)
        if leaf.path in sources:
            raise ValueError(
                f"mapping: {name} and {sources[leaf.path]} are both mapped to {leaf.path!r}; "
                "give each its own path"
            )
        sources[leaf.path] = name
    for path in paths:
        if path not in sources:
            raise ValueError(
                f"params: no parameter of the checkpoint is mapped to {path!r}; map one to it, or "
                "leave it out of params"
            )
    return mapping


def _check_entry(name: str, leaf: Any, names: Collection[str], paths: Collection[str]) -> None:
    if not isinstance(leaf, Leaf) or not all(
        is_int_tuple(x) for x in (leaf.transpose, leaf.reshape)
    ):
        raise TypeError(
            f"{name}: the mapping must have an interop.Leaf whose transpose and reshape are None "
            f"or tuples of integers, got {shortened(leaf)}"
        )
    if name not in names:
        raise ValueError(
            f"the checkpoint has no parameter {name!r}, which is in the mapping; it has "
            f"{listed(names)}"
        )
    if leaf.path not in paths:
        raise ValueError(f"{name}: params have no leaf {leaf.path!r}, only {listed(paths)}")


def is_int_tuple(x: Any) -> bool:
    """Whether ``x`` is None or a sequence of integers."""
    if x is None:
        return True
    return isinstance(x, Sequence) and all(isinstance(n, int | np.integer) for n in x)


def check_fits(name: str, leaf: Leaf, shape: tuple[int, ...], leaf_shape: tuple[int, ...]) -> None:
    """Raises unless ``leaf`` converts an array of ``shape`` to one of ``leaf_shape``."""
    reshaped = leaf.reshaped(shape)
    permutation = leaf.permutation(len(reshaped))
    if math.prod(reshaped) != math.prod(shape) or sorted(permutation) != [*range(len(reshaped))]:
        raise ValueError(
            f"{name}: {leaf} does not fit an array of shape {shape}; reshape must keep its size, "
            "and transpose must name each axis once"
        )
    transposed = tuple(reshaped[axis] for axis in permutation)
    if transposed == leaf_shape:
        return
    if leaf.reshape is None or not merges_neighbours(transposed, leaf_shape):
        raise ValueError(
            f"{name}: its array of shape {shape} becomes {transposed}, but the leaf at "
            f"{leaf.path!r} has shape {leaf_shape}; change transpose or reshape of {leaf}"
        )


def merges_neighbours(shape: tuple[int, ...], merged: tuple[int, ...]) -> bool:
    """Whether ``merged`` is ``shape`` with some neighbouring axes merged into one."""
    ends, merged_ends = (list(itertools.accumulate(s, operator.mul)) for s in (shape, merged))
    return ends[-1:] == merged_ends[-1:] and set(merged_ends) <= set(ends)


def leaf_path(keys: KeyPath) -> str:
    """The keys that lead to a leaf, as in `Leaf.path`."""
    return keystr(keys, simple=True, separator="/")


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
