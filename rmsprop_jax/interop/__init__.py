"""Continue runs from other frameworks in JAX, and write them back.

Every framework has a module with the same two functions::

    restored = interop.pytorch.load(checkpoint, params, mapping)
    restored.params, restored.optimizer, restored.state  # continue from here
    checkpoint = interop.pytorch.save(checkpoint, params, state, mapping, step=step)

``load`` reads and checks parameters, averages and hyperparameters, and returns them with the
optimizer that the framework used. ``save`` writes parameters and state in the format that
``load`` reads; files are replaced as a whole or not at all. A mapping is a dictionary of `Leaf`:
for each array of the framework, its path in ``params`` and how its axes are transposed. All
arrays are NumPy; a framework is imported only when you pass one of its objects or files.

============= ============================================ ================ ===========
module        reads and writes                             hyperparameters  mapping
============= ============================================ ================ ===========
pytorch       dictionaries and files with two state_dicts  read             yes
keras         live optimizers, .keras, .h5, TensorFlow 2   mostly read      yes
tensorflow_v1 a ``Saver`` checkpoint                       arguments        yes
optax         states of ``optax.rmsprop`` in any chain     arguments        not needed
============= ============================================ ================ ===========

``docs/checkpoints.md`` shows each of them, and how to continue in Flax. Internally every module
reads its format into a ``_checkpoint.Checkpoint``; ``_convert`` does the rest for all of them.
"""

from rmsprop_jax.interop import keras, optax, pytorch, tensorflow_v1
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import Leaf

__all__ = ["FORMATS", "Leaf", "Restored", "keras", "optax", "pytorch", "tensorflow_v1"]

# The modules, by name.
FORMATS = {"pytorch": pytorch, "keras": keras, "tensorflow_v1": tensorflow_v1, "optax": optax}
