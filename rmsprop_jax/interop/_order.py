"""Finds the parameter of each entry in an optimizer's state whose entries are only numbered."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rmsprop_jax.interop._mapping import Leaf, listed

Shape = tuple[int, ...]


class ModuleMapping(dict[str, Leaf]):
    """A mapping in the order of a live module's parameters, which its optimizer has too."""


def names_in_order(
    names: Sequence[str],
    shapes: Mapping[str, Shape],
    entries: Sequence[Shape | None],
    mapped: Sequence[str] | None,
    *,
    from_module: bool,
    by_file: bool = False,
) -> list[str]:
    """``names`` in the order of the optimizer's ``entries``.

    An optimizer's state is numbered in the order in which the module registered its parameters.
    A model's dictionary has the same order, unless something has sorted it, as safetensors does
    ("10.weight" comes before "2.weight"). The order of parameters of the same shape is never
    guessed: if nothing decides it, this raises.

    Args:
      names: The parameters in the order of the model's dictionary.
      shapes: Their shapes, by name.
      entries: The shape of each entry of the state; None if it has no arrays.
      mapped: The same names in the order of the mapping; None without a mapping.
      from_module: Whether ``names`` are known to be in the module's order.
      by_file: Whether they are known to be in the file's own order.
    """
    names = list(names)
    by_shape = {shapes[name]: name for name in names}
    if len(by_shape) == len(names) and by_shape.keys() == set(entries):
        return [by_shape[entry] for entry in entries if entry is not None]

    def fits(order: Sequence[str]) -> bool:
        return all(e is None or e == shapes[n] for n, e in zip(order, entries, strict=True))

    is_sorted = names == sorted(names) or by_file
    orders = [names] if from_module or not is_sorted else []
    if mapped is not None and list(mapped) != names:
        orders.append(list(mapped))
    possible = [order for order in orders if fits(order)]
    if len(possible) == 1 or (orders and not possible):
        # Where none fits, the parameter whose shape is wrong is named when it is checked.
        return (possible or orders)[0]
    if len(names) == 1:
        return names
    repeated = {shape for shape, count in Counter(shapes[n] for n in names).items() if count > 1}
    raise ValueError(
        "the optimizer's state numbers its parameters instead of naming them, and their order is "
        f"not certain: {listed([n for n in names if shapes[n] in repeated] or names)} have the "
        "same shape. Pass names=, their names in the order in which the optimizer received them, "
        "as model.named_parameters() gives it"
    )
