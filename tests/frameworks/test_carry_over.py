"""Real runs carried from each framework to JAX and back: a small network on the digits.

The framework trains 100 steps. Then it continues by itself, and JAX continues from its
checkpoint on the same batches: after 100 steps the parameters agree. JAX's are then
carried back, and the framework continues from them for 100 more.
"""

import itertools
import warnings
from collections import OrderedDict

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tensorflow.compat.v1 as tf
import tf_keras
import torch
from sklearn.datasets import load_digits
from support.modules import module_alone

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


# For a layer after the convolution, which only some runs have.
BATCH_NORM = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
STATISTICS = {"norm": {"mean": np.zeros(8, np.float32), "var": np.ones(8, np.float32)}}


def normalize(x, params, statistics, training):
    """BatchNorm with torch's running statistics: it divides the variance of a batch by n - 1."""
    if not training:
        mean, var = statistics["mean"], statistics["var"]
    else:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        unbiased = var * (x.size / 8) / (x.size / 8 - 1)
        new = {"mean": mean, "var": unbiased}
        statistics = {k: 0.9 * v + 0.1 * new[k] for k, v in statistics.items()}
    x = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    return x, statistics


def network(params, buffers, images, training):
    """Logits and new buffers. Smooth, so that rounding cannot select another branch."""
    x = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    if "norm" not in params:
        x = x + params["conv"]["bias"]
    else:
        x, statistics = normalize(x, params["norm"], buffers["norm"], training)
        buffers = {"norm": statistics}
    x = jnp.tanh(x).reshape(len(images), -1)
    x = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["output"]["kernel"] + params["output"]["bias"], buffers


def loss(params, buffers, images, labels):
    logits, buffers = network(params, buffers, images, training=True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), buffers


def train_in_jax(restored, batches):
    """Parameters, state and buffers after the steps that JAX takes from ``restored``."""

    @jax.jit
    def step(params, state, buffers, images, labels):
        gradients, buffers = jax.grad(loss, has_aux=True)(params, buffers, images, labels)
        updates, state = restored.optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, buffers

    params, state, buffers = restored.params, restored.state, restored.buffers
    for batch in batches:
        params, state, buffers = step(params, state, buffers, IMAGES[batch], LABELS[batch])
    return params, state, buffers


KERAS_MAPPING = {
    f"net/{layer}/{kind}": Leaf(f"{layer}/{kind}") for layer in START for kind in START[layer]
}


class Torch:
    """A run in torch, which keeps images and kernels in its own layout."""

    optimizer_class = torch.optim.RMSprop
    arguments = {}  # noqa: RUF012
    like = LIKE

    def __init__(self, options, folder):
        self.file = folder / "run.pt"
        self.model = torch.nn.Sequential(OrderedDict(self.layers()))
        self.mapping = interop.pytorch.mapping_of(self.model)
        shapes = {name: tuple(w.shape) for name, w in self.model.named_parameters()}
        start = START | {"norm": BATCH_NORM}
        values = {
            name: torch.tensor(
                self.mapping[name].from_jax(value_at(start, self.mapping[name].path), shape)
            )
            for name, shape in shapes.items()
        }
        self.model.load_state_dict(values, strict=False)
        self.optimizer = self.optimizer_class(
            self.model.parameters(), 1e-3, alpha=0.9, eps=1e-2, **options
        )

    def layers(self):
        return {
            "conv": torch.nn.Conv2d(1, 8, 3, padding="same"),
            "tanh": torch.nn.Tanh(),
            "flat": torch.nn.Flatten(),
            "hidden": torch.nn.Linear(8 * 8 * 8, 24),
            "tanh2": torch.nn.Tanh(),
            "output": torch.nn.Linear(24, 10),
        }

    def train(self, batches):
        for batch in batches:
            self.optimizer.zero_grad()
            logits = self.model(torch_images(batch))
            torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS[batch])).backward()
            self.optimizer.step()

    def checkpoint(self):
        return {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }

    def load(self):
        torch.save(self.checkpoint(), self.file)
        return interop.pytorch.load(self.file, self.like, self.mapping, **self.arguments)

    def save(self, params, state, step, buffers):
        torch.save(self.checkpoint(), self.file)
        options = {"step": step, "buffers": buffers or None} | self.arguments
        interop.pytorch.save(self.file, params, state, self.mapping, **options)
        saved = torch.load(self.file)
        self.model.load_state_dict(saved["model_state_dict"])
        self.optimizer.load_state_dict(saved["optimizer_state_dict"])


class Timm(Torch):
    """A run with timm's rule, which is recognized by its groups."""

    optimizer_class = module_alone("timm.optim.rmsprop_tf").RMSpropTF


class StableBaselines3(Torch):
    """A run with Stable-Baselines3's rule, whose groups look like torch's: it must be named."""

    optimizer_class = module_alone(
        "stable_baselines3.common.sb2_compat.rmsprop_tf_like"
    ).RMSpropTFLike
    arguments = {"dialect": "stable_baselines3"}  # noqa: RUF012


class TorchBatchNorm(Torch):
    """A run whose model also keeps running statistics."""

    like = LIKE | {
        "conv": {"kernel": LIKE["conv"]["kernel"]},
        "norm": jax.tree.map(np.zeros_like, BATCH_NORM),
    }

    def layers(self):
        convolution = torch.nn.Conv2d(1, 8, 3, padding="same", bias=False)
        layers = super().layers() | {"conv": convolution}
        return {"conv": layers.pop("conv"), "norm": torch.nn.BatchNorm2d(8)} | layers


def torch_images(batch):
    return torch.tensor(IMAGES[batch].transpose(0, 3, 1, 2))


def keras_network(library, optimizer_class, options):
    """The network in Keras 3 or in tf.keras, compiled."""
    layers = library.layers
    model = library.Sequential(
        [
            layers.InputLayer((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="tanh", name="conv"),
            layers.Flatten(),
            layers.Dense(24, activation="tanh", name="hidden"),
            layers.Dense(10, name="output"),
        ],
        name="net",
    )
    model.set_weights([x for layer in START.values() for x in layer.values()])
    model.compile(
        optimizer_class(1e-3, epsilon=1e-4, **options),
        library.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


class Keras:
    """A run in Keras with a live optimizer, which saves into itself."""

    def __init__(self, options, folder):
        self.file = folder / "run.keras"
        self.model = keras_network(keras, keras.optimizers.RMSprop, options)
        self.model.optimizer.build(self.model.trainable_variables)

    def train(self, batches):
        for batch in batches:
            self.model.train_on_batch(IMAGES[batch], LABELS[batch])

    def load(self):
        return interop.keras.load(self.model.optimizer, LIKE, KERAS_MAPPING)

    def save(self, params, state, step, buffers):
        assert not buffers
        interop.keras.save(self.model.optimizer, params, state, KERAS_MAPPING, step=step)


class KerasFile(Keras):
    """A run in Keras, through a `.keras` file."""

    def load(self):
        self.model.save(self.file)
        return interop.keras.load(self.file, LIKE, KERAS_MAPPING)

    def save(self, params, state, step, buffers):
        assert not buffers
        self.model.save(self.file)
        interop.keras.save(self.file, params, state, KERAS_MAPPING, step=step)
        self.model = keras.saving.load_model(self.file)


class KerasWeights(Keras):
    """A run in Keras, through a `.weights.h5` file, which holds no hyperparameters."""

    def __init__(self, options, folder):
        super().__init__(options, folder)
        self.file = folder / "run.weights.h5"
        self.options = {"epsilon": 1e-4} | options
        self.mapping = {
            f"{layer}/{i}": Leaf(f"{layer}/{kind}")
            for layer in START
            for i, kind in enumerate(("kernel", "bias"))
        }

    def load(self):
        self.model.save_weights(self.file)
        return interop.keras.load(self.file, LIKE, self.mapping, **self.options)

    def save(self, params, state, step, buffers):
        assert not buffers
        self.model.save_weights(self.file)
        interop.keras.save(self.file, params, state, self.mapping, step=step)
        self.model.load_weights(self.file)


class TfKeras(Keras):
    """A run in tf.keras 2, whose optimizer needs its model, through an `.h5` file."""

    def __init__(self, options, folder):
        self.file = folder / "run.h5"
        self.model = keras_network(tf_keras, tf_keras.optimizers.legacy.RMSprop, options)
        self.model.optimizer._create_all_weights(self.model.trainable_variables)

    def load(self):
        self.write()
        return interop.keras.load(self.file, LIKE, KERAS_MAPPING)

    def write(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # HDF5 is an old format.
            self.model.save(self.file)

    def save(self, params, state, step, buffers):
        assert not buffers
        self.write()
        interop.keras.save(self.file, params, state, KERAS_MAPPING, step=step)
        self.model = tf_keras.models.load_model(self.file)


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

    def save(self, params, state, step, buffers):
        self.write()
        assert not buffers
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


RULES = [Torch, TorchBatchNorm, Timm, StableBaselines3, Keras, TfKeras, TensorFlowV1]
FILES = [KerasFile, KerasWeights]


@pytest.mark.parametrize(
    ("framework", "options"),
    [*itertools.product(RULES, OPTIONS), *itertools.product(FILES, OPTIONS[::3])],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_run_continues_in_jax_and_back(framework, options, tmp_path):
    first, second, third = BATCHES[:STEPS], BATCHES[STEPS : 2 * STEPS], BATCHES[2 * STEPS :]
    theirs = framework(options, tmp_path)
    theirs.train(first)
    restored = theirs.load()
    assert restored.step == STEPS
    moved = [
        np.linalg.norm(
            leaf
            - value_at(
                START | {"norm": BATCH_NORM}, jax.tree_util.keystr(path, simple=True, separator="/")
            )
        )
        for path, leaf in jax.tree.leaves_with_path(restored.params)
    ]
    assert min(moved) > 0.01

    theirs.train(second)
    params, state, buffers = train_in_jax(restored, second)
    assert_agree(params, theirs.load().params)
    assert_agree(buffers, theirs.load().buffers)

    back = framework(options, tmp_path)
    back.save(params, state, 2 * STEPS, buffers)
    theirs.train(third)
    back.train(third)
    assert back.load().step == 3 * STEPS
    assert_agree(back.load().params, theirs.load().params)
    assert_agree(back.load().buffers, theirs.load().buffers)


def test_logits_of_a_restored_model_with_batch_norm(tmp_path):
    theirs = TorchBatchNorm({}, tmp_path)
    theirs.train(BATCHES[:STEPS])
    theirs.model.eval()
    restored, batch = theirs.load(), BATCHES[STEPS]
    with torch.no_grad():
        expected = theirs.model(torch_images(batch)).numpy()
    logits, _ = network(restored.params, restored.buffers, IMAGES[batch], training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    # Without the running statistics the logits are wrong, and nothing says so.
    wrong, _ = network(restored.params, STATISTICS, IMAGES[batch], training=False)
    assert abs(wrong - expected).max() > 1
