"""Three steps in Keras, three in JAX, and back to Keras, on the backend in KERAS_BACKEND."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax

from rmsprop_jax import interop

LIKE = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
IMAGES = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


def train(model, steps=3):
    for _ in range(steps):
        model.train_on_batch(IMAGES, np.ones((8, 2), np.float32))


def loss(params):
    return jnp.mean((IMAGES @ params["dense"]["kernel"] + params["dense"]["bias"] - 1) ** 2)


model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")], name="net")
model.compile(keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True, epsilon=1e-3), "mse")
train(model)
mapping = {f"net/dense/{kind}": interop.Leaf(f"dense/{kind}") for kind in ("kernel", "bias")}
restored = interop.keras.load(model.optimizer, LIKE, mapping)
params, state = restored.params, restored.state
for _ in range(3):
    updates, state = restored.optimizer.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
train(model)
theirs = interop.keras.load(model.optimizer, LIKE, mapping)
for a, b in zip(
    jax.tree.leaves((params, state)), jax.tree.leaves((theirs.params, theirs.state)), strict=True
):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
interop.keras.save(model.optimizer, params, state, mapping, step=6)
train(model)
print(keras.backend.backend(), "agrees")
