"""What closes the gap in the quickstart's picture: how updates are added, not how v is stored."""

from argparse import Namespace

import jax.numpy as jnp
import optax
import pytest
import quickstart

from rmsprop_jax import apply_updates, rmsprop

ARGS = Namespace(epochs=30, batch_size=32, learning_rate=2e-3, decay=0.9, seed=0)


@pytest.fixture(scope="module")
def end():
    """Trains with everything in bfloat16, or in float32, to the loss of the last epoch."""
    data = quickstart.load(ARGS.seed)
    schedule = optax.cosine_decay_schedule(ARGS.learning_rate, ARGS.epochs * (1198 // 32))

    def train(rmsprop, apply=quickstart.add, dtype=jnp.bfloat16, **options):
        optimizer = rmsprop(schedule, decay=ARGS.decay, eps=quickstart.EPS, **options)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
        run = quickstart.Run(optimizer, dtype, apply)
        return quickstart.train(run, data, ARGS, "gap").epoch_losses[-1]

    return train


def test_apply_updates_closes_it_and_the_storage_does_not(end):
    wide = end(rmsprop, dtype=jnp.float32)
    assert end(optax.rmsprop, apply_updates) < 1.6 * wide
    assert end(rmsprop, accumulator_dtype="float8_e5m2") > 1.6 * wide
