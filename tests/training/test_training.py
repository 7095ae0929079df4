"""Few bits train as float32 does: two networks, five seeds, three decays."""

import functools

import pytest
from support.training import DECAYS, NEAREST, STORAGES, TASKS, train

pytestmark = pytest.mark.optimized
EPOCHS = {"digits": 20, "characters": 2}


@functools.cache
def losses(task, storage):
    """The training loss after each epoch: (decays, seeds, epochs)."""
    return train(TASKS[task](), (STORAGES | NEAREST)[storage], EPOCHS[task])


# Each task is trained in one process, which keeps the losses.
TASK = pytest.mark.parametrize(
    "task", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in TASKS]
)


@TASK
@pytest.mark.parametrize("storage", [name for name in STORAGES if name != "float32"])
def test_loss_is_within_the_spread_of_float32s(task, storage):
    ours, float32 = losses(task, storage), losses(task, "float32")
    for decay, narrow, wide in zip(DECAYS, ours[..., -1], float32[..., -1], strict=True):
        assert wide.min() <= narrow.mean() <= wide.max(), decay


@pytest.mark.xdist_group("digits")
def test_rounding_to_nearest_is_told_apart():
    """All in bfloat16, to nearest, is outside the spread: the test above can fail."""
    nearest = losses("digits", "all bfloat16, to nearest")[..., -1].mean(axis=1)
    wide = losses("digits", "float32")[..., -1]
    assert ((nearest < wide.min(axis=1)) | (nearest > wide.max(axis=1))).any()
