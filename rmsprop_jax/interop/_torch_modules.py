"""The mapping of a live ``torch.nn.Module`` to Flax's names and axes."""

import warnings
from typing import Any

from rmsprop_jax.interop._mapping import Leaf, listed
from rmsprop_jax.interop._order import ModuleMapping

_CONVOLUTIONS = {
    "Conv1d": (2, 1, 0),
    "Conv2d": (2, 3, 1, 0),
    "Conv3d": (2, 3, 4, 1, 0),
}
_NORMALIZATIONS = (
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "GroupNorm", "LayerNorm",
    "RMSNorm",
)  # fmt: skip
# {type of the layer: {torch's name: (Flax's, transpose)}}
_FLAX: dict[str, dict[str, tuple[str, tuple[int, ...] | None]]] = {
    "Linear": {"weight": ("kernel", (1, 0))},
    "Embedding": {"weight": ("embedding", None)},
    **{layer: {"weight": ("kernel", axes)} for layer, axes in _CONVOLUTIONS.items()},
    **{
        layer: {
            "weight": ("scale", None),
            "running_mean": ("mean", None),
            "running_var": ("var", None),
        }
        for layer in _NORMALIZATIONS
    },
}
_NOT_IN_FLAX = "num_batches_tracked"
# They mix or move channels: after them, the order of a flattened image is not known.
_MOVES_CHANNELS = ("permute", "transpose", "movedim", "swapaxes", "cat", "concat", "stack")


def mapping_of(model: Any) -> dict[str, Leaf]:
    """Builds a mapping from a live ``torch.nn.Module`` to Flax's names and layout.

    Weights of linear layers and convolutions become ``kernel``, transposed; those of
    normalizations ``scale`` and those of embeddings ``embedding``. BatchNorm's running
    statistics become ``mean`` and ``var``, which Flax keeps apart from the parameters: see
    ``Restored.buffers``. All other arrays keep their names and axes. Print the mapping, and change
    it where your network differs.

    A linear layer after a flattened image gets Flax's order of pixels, with channels last, if
    ``torch.fx`` can trace ``model.forward``. If it cannot, a warning names the layers that may
    follow one.

    Example:
      >>> import torch
      >>> from rmsprop_jax import interop
      >>> model = torch.nn.Sequential(
      ...     torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2)
      ... )
      >>> for item in interop.pytorch.mapping_of(model).items():
      ...     print(item)
      ('0.weight', Leaf(path='0/kernel', transpose=(2, 3, 1, 0), reshape=None))
      ('0.bias', Leaf(path='0/bias', transpose=None, reshape=None))
      ('2.weight', Leaf(path='2/kernel', transpose=(2, 1, 0), reshape=(2, 4, 4)))
      ('2.bias', Leaf(path='2/bias', transpose=None, reshape=None))
    """
    # torch.compile wraps the module that has the names.
    model = getattr(model, "_orig_mod", model)
    persistent = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters())
    buffers = [name for name, _ in model.named_buffers() if name in persistent]
    mapping = ModuleMapping()
    for name in [*parameters, *buffers]:
        module, _, kind = name.rpartition(".")
        if kind == _NOT_IN_FLAX:
            continue
        layer = type(model.get_submodule(module)).__name__
        key, transpose = _FLAX.get(layer, {}).get(kind, (kind, None))
        mapping[name] = Leaf("/".join([*filter(None, module.split(".")), key]), transpose)
    for layer, channels in _after_images(model).items():
        name = f"{layer}.weight".removeprefix(".")
        outputs, inputs = model.get_submodule(layer).weight.shape
        mapping[name] = mapping[name]._replace(
            reshape=(outputs, channels, inputs // channels), transpose=(2, 1, 0)
        )
    return mapping


def _after_images(model: Any) -> dict[str, int]:
    """{name: channels} for the linear layers whose input is a flattened image."""
    import torch

    modules = dict(model.named_modules())
    images = {m.out_channels for m in modules.values() if type(m).__name__ in _CONVOLUTIONS}
    suspects = {
        name
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear)
        and any(module.in_features % c == 0 and module.in_features > c for c in images)
    }
    if not suspects:
        return {}
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception:  # Whatever a forward that cannot be traced raises.
        _warn(suspects)
        return {}
    found, unknown = _follow_channels(graph, modules)
    if unknown & suspects:
        _warn(unknown & suspects)
    return found


def _follow_channels(graph: Any, modules: dict[str, Any]) -> tuple[dict[str, int], set[str]]:
    """Linear layers after flattened images: {name: channels}, and those with unknown channels."""
    # For each value in the graph: an image's channels, 0 if they have moved, None if it is none.
    channels: dict[Any, int | None] = {}
    found: dict[str, int] = {}
    unknown: set[str] = set()
    for node in graph.nodes:
        incoming = {channels.get(value) for value in node.all_input_nodes} - {None}
        known = incoming.pop() if len(incoming) == 1 else (0 if incoming else None)
        module = modules.get(node.target) if node.op == "call_module" else None
        kind = type(module).__name__
        called = node.target if isinstance(node.target, str) else node.target.__name__
        if kind in _CONVOLUTIONS:
            known = module.out_channels  # pyright: ignore[reportOptionalMemberAccess]
        elif kind == "Linear":
            inputs = module.in_features  # pyright: ignore[reportOptionalMemberAccess]
            if known and inputs > known and inputs % known == 0:
                found[node.target] = known
            elif known == 0:
                unknown.add(node.target)
            known = None
        elif node.op != "call_module" and called in _MOVES_CHANNELS and known is not None:
            known = 0
        channels[node] = known
    return found, unknown - set(found)


def _warn(layers: set[str]) -> None:
    name = min(layers)
    warnings.warn(
        f"mapping_of cannot see whether {listed(sorted(layers))} follow a flattened image, which "
        "torch keeps with channels first and Flax with channels last. If one does, give its "
        f'mapping["{name}.weight"] reshape=(outputs, channels, pixels), transpose=(2, 1, 0)',
        stacklevel=4,
    )
