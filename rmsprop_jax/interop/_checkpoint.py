"""A checkpoint independent of its framework: `Checkpoint` is read, `Changes` are written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from rmsprop_jax.interop._records import Slots


class Group(NamedTuple):
    """The parameters that an optimizer trains with the same hyperparameters.

    Attributes:
      dialect: The function of `dialects` that builds this optimizer.
      hyperparameters: Its arguments.
      names: The names of the parameters, as in `Checkpoint.values`.
      slots: The framework's names of their averages.
      subtracts_momentum: Whether momentum contains the learning rate and is subtracted from the
        parameters, as in Keras and TensorFlow; Optax adds it.
    """

    dialect: Callable[..., optax.GradientTransformationExtraArgs]
    hyperparameters: dict[str, Any]
    names: Sequence[str]
    slots: Slots
    subtracts_momentum: bool = False


class Checkpoint(NamedTuple):
    """A run in a framework's names and layout. No framework is needed to read it.

    Attributes:
      values: The model's arrays by name: parameters and buffers.
      states: The optimizer's state for each parameter: {name: {slot: array}}. A parameter that
        never received a gradient may be missing.
      groups: The groups of the optimizer's parameters.
      step: Steps taken; ``None`` if it is not known.
      separator: The separator between the parts of a name.
    """

    values: Mapping[str, np.ndarray]
    states: Mapping[str, Mapping[str, np.ndarray]]
    groups: Sequence[Group]
    step: int | None
    separator: str = "/"

    @property
    def trained(self) -> dict[str, bool]:
        """{name: whether it has a state}, for each parameter of the optimizer."""
        return {name: bool(self.states.get(name)) for g in self.groups for name in g.names}


class Changes(NamedTuple):
    """The changes that `save` writes to a checkpoint, in the framework's names and layout.

    Attributes:
      values: New arrays of the model.
      states: New averages: {name: {slot: array}}.
      step: Steps taken.
    """

    values: dict[str, np.ndarray]
    states: dict[str, dict[str, np.ndarray]]
    step: int
