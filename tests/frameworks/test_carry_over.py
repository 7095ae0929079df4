"""Real runs carried from each framework to JAX and back: a small network on the digits.

The framework trains 100 steps. Then it goes on by itself, and JAX goes on from its
checkpoint, on the same batches: after 100 steps the parameters agree. JAX's are
carried back, and the framework goes on with them for 100 more.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tensorflow.compat.v1 as tf
import torch
from sklearn.datasets import load_digits

from rmsprop_jax import interop
from rmsprop_jax.interop import Leaf

STEPS = 100
RNG = np.random.default_rng(0)
IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
BATCHES = RNG.integers(len(LABELS), size=(3 * STEPS, 32))


def glorot(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


START = {
    "conv": {"kernel": glorot(3, 3, 1, 8), "bias": np.zeros(8, np.float32)},
    "hidden": {"kernel": glorot(8 * 8 * 8, 24), "bias": np.zeros(24, np.float32)},
    "output": {"kernel": glorot(24, 10), "bias": np.zeros(10, np.float32)},
}
LIKE = jax.tree.map(np.zeros_like, START)
OPTIONS = [
    {},
    {"momentum": 0.9},
    {"centered": True},
    {"momentum": 0.9, "centered": True},
]


def loss(params, images, labels):
    """Smooth everywhere, so that a rounding does not grow to another branch."""
    x = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(x + params["conv"]["bias"]).reshape(len(images), -1)
    x = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = x @ params["output"]["kernel"] + params["output"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def go_on(restored, batches):
    """Parameters and state after the steps that JAX takes from ``restored``."""

    @jax.jit
    def step(params, state, images, labels):
        gradients = jax.grad(loss)(params, images, labels)
        updates, state = restored.optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = restored.params, restored.state
    for batch in batches:
        params, state = step(params, state, IMAGES[batch], LABELS[batch])
    return params, state


TORCH_MAPPING = {
    "0.weight": Leaf("conv/kernel", transpose=(2, 3, 1, 0)),
    "0.bias": Leaf("conv/bias"),
    "3.weight": Leaf("hidden/kernel", transpose=(2, 3, 1, 0), reshape=(24, 8, 8, 8)),
    "3.bias": Leaf("hidden/bias"),
    "5.weight": Leaf("output/kernel", transpose=(1, 0)),
    "5.bias": Leaf("output/bias"),
}
KERAS_MAPPING = {
    f"net/{layer}/{kind}": Leaf(f"{layer}/{kind}") for layer in START for kind in START[layer]
}


class Torch:
    """A run in torch, which keeps images and kernels in its own layout."""

    def __init__(self, options):
        self.model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding="same"),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * 8 * 8, 24),
            torch.nn.Tanh(),
            torch.nn.Linear(24, 10),
        )
        shapes = {name: tuple(w.shape) for name, w in self.model.named_parameters()}
        start = {mapped.path: value_at(START, mapped.path) for mapped in TORCH_MAPPING.values()}
        self.model.load_state_dict(
            {
                name: torch.tensor(mapped.from_jax(start[mapped.path], shapes[name]))
                for name, mapped in TORCH_MAPPING.items()
            }
        )
        self.optimizer = torch.optim.RMSprop(
            self.model.parameters(), 1e-3, alpha=0.9, eps=1e-2, **options
        )

    def train(self, batches):
        for batch in batches:
            images = torch.tensor(IMAGES[batch].transpose(0, 3, 1, 2))
            self.optimizer.zero_grad()
            logits = self.model(images)
            torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS[batch])).backward()
            self.optimizer.step()

    def checkpoint(self):
        return {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }

    def load(self):
        return interop.pytorch.load(self.checkpoint(), LIKE, TORCH_MAPPING)

    def save(self, params, state, step):
        saved = interop.pytorch.save(self.checkpoint(), params, state, TORCH_MAPPING, step=step)
        self.model.load_state_dict(saved["model_state_dict"])
        self.optimizer.load_state_dict(saved["optimizer_state_dict"])


class Keras:
    """A run in Keras with a live optimizer, which saves into itself."""

    def __init__(self, options):
        self.model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(8, 3, padding="same", activation="tanh", name="conv"),
                keras.layers.Flatten(),
                keras.layers.Dense(24, activation="tanh", name="hidden"),
                keras.layers.Dense(10, name="output"),
            ],
            name="net",
        )
        self.model.set_weights(
            [START[k][part] for k in ("conv", "hidden", "output") for part in ("kernel", "bias")]
        )
        self.model.compile(
            keras.optimizers.RMSprop(1e-3, epsilon=1e-4, **options),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self.model.optimizer.build(self.model.trainable_variables)

    def train(self, batches):
        for batch in batches:
            self.model.train_on_batch(IMAGES[batch], LABELS[batch])

    def load(self):
        return interop.keras.load(self.model.optimizer, LIKE, KERAS_MAPPING)

    def save(self, params, state, step):
        interop.keras.save(self.model.optimizer, params, state, KERAS_MAPPING, step=step)


class TensorFlowV1:
    """A run in a TensorFlow 1 graph, which saves to a real checkpoint."""

    def __init__(self, options, folder):
        self.hyperparameters = {"learning_rate": 1e-3, "epsilon": 1e-4} | options
        self.prefix = str(folder / "model.ckpt")
        self.session = tf.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            self.images = tf.placeholder(tf.float32, [None, 8, 8, 1])
            self.labels = tf.placeholder(tf.int64, [None])
            step = tf.train.create_global_step()
            optimizer = tf.train.RMSPropOptimizer(**self.hyperparameters)
            self.update = optimizer.minimize(self.loss(), global_step=step)
            self.saver = tf.train.Saver()
            self.session.run(tf.global_variables_initializer())

    def loss(self):
        weights = {}
        for layer, kinds in START.items():
            with tf.variable_scope(layer):
                for kind, value in kinds.items():
                    initial = tf.constant(value)
                    weights[layer, kind] = tf.get_variable(kind, initializer=initial)
        x = tf.nn.conv2d(self.images, weights["conv", "kernel"], padding="SAME")
        x = tf.reshape(tf.tanh(x + weights["conv", "bias"]), [-1, 8 * 8 * 8])
        x = tf.tanh(x @ weights["hidden", "kernel"] + weights["hidden", "bias"])
        logits = x @ weights["output", "kernel"] + weights["output", "bias"]
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=self.labels, logits=logits)
        )

    def train(self, batches):
        for batch in batches:
            feed = {self.images: IMAGES[batch], self.labels: LABELS[batch]}
            self.session.run(self.update, feed)

    def write(self):
        with self.session.graph.as_default():
            self.saver.save(self.session, self.prefix)

    def load(self):
        self.write()
        return interop.tensorflow_v1.load(self.prefix, LIKE, **self.hyperparameters)

    def save(self, params, state, step):
        self.write()
        interop.tensorflow_v1.save(self.prefix, params, state, step=step)
        with self.session.graph.as_default():
            self.saver.restore(self.session, self.prefix)


def value_at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def assert_agree(ours, theirs, rtol=1e-4):
    for (path, x), y in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        error = np.linalg.norm(x - y) / np.linalg.norm(y)
        assert error <= rtol, f"{jax.tree_util.keystr(path)}: {error:.2g}"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("framework", [Torch, Keras, TensorFlowV1])
def test_a_run_goes_on_in_jax_and_back(framework, options, tmp_path):
    def start():
        return framework(options, tmp_path) if framework is TensorFlowV1 else framework(options)

    first, second, third = BATCHES[:STEPS], BATCHES[STEPS : 2 * STEPS], BATCHES[2 * STEPS :]
    theirs = start()
    theirs.train(first)
    restored = theirs.load()
    assert restored.step == STEPS
    moved = jax.tree.map(lambda a, b: np.linalg.norm(a - b), restored.params, START)
    assert min(jax.tree.leaves(moved)) > 0.01

    theirs.train(second)
    params, state = go_on(restored, second)
    assert_agree(params, theirs.load().params)

    back = start()
    back.save(params, state, 2 * STEPS)
    theirs.train(third)
    back.train(third)
    assert back.load().step == 3 * STEPS
    assert_agree(back.load().params, theirs.load().params)
