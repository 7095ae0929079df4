"""A checkpoint as a value: each framework's is read into one, and written from one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from rmsprop_jax.interop._records import Slots


class Group(NamedTuple):
    """The parameters that an optimizer trains with the same hyperparameters.

    Attributes:
      dialect: The function of `dialects` that is this optimizer.
      hyperparameters: Its arguments.
      names: Of the parameters, as in `Checkpoint.values`.
      slots: What the framework calls their averages.
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
      values: The arrays of the model by name, parameters and buffers.
      states: What the optimizer keeps of each parameter: {name: {slot: array}}. A parameter
        that never received a gradient may be missing.
      groups: The groups of the optimizer's parameters.
      step: Steps taken; ``None`` if it is not known.
      separator: What stands between the parts of a name.
    """

    values: Mapping[str, np.ndarray]
    states: Mapping[str, Mapping[str, np.ndarray]]
    groups: Sequence[Group]
    step: int | None
    separator: str = "/"

    @property
    def trained(self) -> dict[str, bool]:
        """The names of the optimizer's parameters, and whether it has a state of each."""
        return {name: bool(self.states.get(name)) for g in self.groups for name in g.names}


class Changes(NamedTuple):
    """What `save` writes into a checkpoint, in the framework's names and layout.

    Attributes:
      values: New arrays of the model.
      states: New averages: {name: {slot: array}}.
      step: Steps taken.
    """

    values: dict[str, np.ndarray]
    states: dict[str, dict[str, np.ndarray]]
    step: int
