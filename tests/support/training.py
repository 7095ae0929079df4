"""Trains two small networks with averages in each format.

A dense network on scikit-learn's digits, and a recurrent one on the characters of Python's own
help texts, with several seeds each.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import rmsprop_jax
from support.trajectories import compiled

SEEDS = 5
DECAYS = (0.9, 0.99, 0.999)
BATCH = 64


class Task(NamedTuple):
    """A network and its data.

    Attributes:
      init: A function from a key to parameters.
      loss: The mean loss of parameters on a batch of examples.
      examples: Arrays with the examples along their first axis.
      learning_rate: A suitable learning rate.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    examples: Any
    learning_rate: float


class Storage(NamedTuple):
    """How parameters and averages are stored.

    Attributes:
      optimizer: A function from learning rate and decay to an optimizer.
      dtype: The dtype of parameters and gradients.
      apply: A function from parameters, updates and step to new parameters.
      traced: Whether the decay may be traced; in Optax this would widen a bfloat16 average.
    """

    optimizer: Callable[..., optax.GradientTransformation]
    dtype: Any = jnp.float32
    apply: Callable[[Any, Any, Any], Any] = lambda params, updates, _: optax.apply_updates(
        params, updates
    )
    traced: bool = True


def ours(accumulator_dtype: Any) -> Callable[..., optax.GradientTransformation]:
    """Our RMSprop with averages in this dtype."""
    return partial(rmsprop_jax.rmsprop, accumulator_dtype=accumulator_dtype)


def to_nearest(dtype: Any) -> Callable[..., optax.GradientTransformation]:
    """Optax's RMSprop, with averages rounded to nearest in ``dtype``, scaled by their maximum."""

    class State(NamedTuple):
        inner: Any
        scales: Any

    def rounded(inner: Any) -> Any:
        scales = jax.tree.map(lambda x: jnp.maximum(jnp.max(x), 1e-30) / 2**15, inner)
        return State(
            jax.tree.map(lambda x, scale: (x / scale).astype(dtype), inner, scales), scales
        )

    def make(learning_rate: Any, decay: Any) -> optax.GradientTransformation:
        optimizer = optax.rmsprop(learning_rate, decay)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            inner = jax.tree.map(lambda x, s: x.astype(jnp.float32) * s, state.inner, state.scales)
            updates, inner = optimizer.update(updates, inner, params)
            return updates, rounded(inner)

        return optax.GradientTransformation(lambda params: rounded(optimizer.init(params)), update)

    return make


STORAGES = {
    "float32": Storage(ours(None)),
    "bfloat16": Storage(ours("bfloat16")),
    "one byte": Storage(ours("float8_e5m2")),
    "all bfloat16, one byte": Storage(ours("float8_e5m2"), jnp.bfloat16, rmsprop_jax.apply_updates),
}
NEAREST = {
    "bfloat16, to nearest": Storage(to_nearest(jnp.bfloat16)),
    "one byte, to nearest": Storage(to_nearest(jnp.float8_e5m2)),
    "all bfloat16, to nearest": Storage(optax.rmsprop, jnp.bfloat16, traced=False),
}


def digits() -> Task:
    """A network with one hidden layer, on handwritten digits of 8 by 8 pixels."""
    images, labels = load_digits(return_X_y=True)

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        return {
            "hidden": {"w": jax.random.normal(first, (64, 64)) / 8, "b": jnp.zeros(64)},
            "output": {"w": jax.random.normal(second, (64, 10)) / 8, "b": jnp.zeros(10)},
        }

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        hidden = images.astype(params["hidden"]["w"].dtype) @ params["hidden"]["w"]
        hidden = jnp.tanh(hidden + params["hidden"]["b"])
        logits = hidden @ params["output"]["w"] + params["output"]["b"]
        return cross_entropy(logits, labels)

    examples = (jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels))
    return Task(init, loss, examples, learning_rate=1e-3)


def characters() -> Task:
    """An Elman network that reads Python's help texts and predicts the next character."""
    text = np.frombuffer("".join(topics.values())[:65_536].encode("ascii", "replace"), np.uint8)
    alphabet, text = np.unique(text, return_inverse=True)
    length, width, size = 32, 64, len(alphabet)

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(keys[0], (size, width)) / 8,
            "recurrent": jax.random.normal(keys[1], (width, width)) / 8,
            "output": {"w": jax.random.normal(keys[2], (width, size)) / 8, "b": jnp.zeros(size)},
        }

    def loss(params: Any, batch: Any) -> jax.Array:
        def read(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.tanh(params["embedding"][x] + state @ params["recurrent"])
            return state, state

        start = jnp.zeros((len(batch), width), params["recurrent"].dtype)
        _, states = jax.lax.scan(read, start, batch[:, :-1].T)
        logits = states @ params["output"]["w"] + params["output"]["b"]
        return cross_entropy(logits, batch[:, 1:].T)

    count = len(text) // (length + 1)
    examples = jnp.asarray(text[: count * (length + 1)].reshape(count, length + 1))
    return Task(init, loss, examples, learning_rate=1e-3)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross entropy, in float32, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return losses.mean()


TASKS = {"digits": digits, "characters": characters}


def train(
    task: Task,
    storage: Storage,
    epochs: int,
    seeds: int = SEEDS,
    all_decays: Sequence[float] = DECAYS,
) -> np.ndarray:
    """The loss on all examples after each epoch: (decays, seeds, epochs)."""
    examples = len(jax.tree.leaves(task.examples)[0])
    steps = examples // BATCH

    def run(decay: Any, key: jax.Array) -> jax.Array:
        optimizer = storage.optimizer(task.learning_rate, decay)

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state, number = carry
            gradients = jax.grad(task.loss)(params, jax.tree.map(lambda x: x[batch], task.examples))
            updates, state = optimizer.update(gradients, state, params)
            return (storage.apply(params, updates, number), state, number + 1), None

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            order = jax.random.permutation(key, examples)[: steps * BATCH].reshape(steps, BATCH)
            carry, _ = jax.lax.scan(step, carry, order)
            params = jax.tree.map(lambda p: p.astype(jnp.float32), carry[0])
            return carry, task.loss(params, task.examples)

        key, init_key = jax.random.split(key)
        params = jax.tree.map(lambda p: p.astype(storage.dtype), task.init(init_key))
        carry = (params, optimizer.init(params), jnp.int32(0))
        return jax.lax.scan(epoch, carry, jax.random.split(key, epochs))[1]

    keys = jax.random.split(jax.random.key(0), seeds)
    over_seeds = jax.vmap(run, in_axes=(None, 0))
    if storage.traced:
        over_decays = jax.vmap(over_seeds, in_axes=(0, None))
        return np.asarray(compiled(over_decays, jnp.asarray(all_decays), keys))
    return np.stack([compiled(partial(over_seeds, decay), keys) for decay in all_decays])
