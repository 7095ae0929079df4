"""Runs begun in another framework, carried on in JAX, and carried back.

One module a framework, one pattern:

    resumed = interop.torch.load(checkpoint, params, mapping)
    resumed.params, resumed.optimizer, resumed.state  # go on from here
    checkpoint = interop.torch.save(checkpoint, params, state, mapping, step=step)

`load` reads parameters, averages and hyperparameters, checks all of it, and returns
the transformation that the framework ran; `save` puts parameters and state into what
`load` reads. A mapping, a dictionary of `Place`, says where each array lies in
``params`` and how its axes are turned. Everything is NumPy; a framework is imported
only when an object or a file of its own is handed over.

============= ==================================== ==================== ===========
module        what it reads and writes             hyperparameters      mapping
============= ==================================== ==================== ===========
torch         state dictionaries, a ``.pt`` file   from the checkpoint  yes
keras         a live optimizer, a ``.keras`` file  from the checkpoint  yes
tensorflow_v1 a ``Saver`` checkpoint               arguments            yes
optax         a state of ``optax.rmsprop``         arguments            not needed
============= ==================================== ==================== ===========
"""

from rmsprop_jax.interop import keras, optax, tensorflow_v1, torch
from rmsprop_jax.interop._state import Place, Resumed

__all__ = ["Place", "Resumed", "keras", "optax", "tensorflow_v1", "torch"]
