"""A run continues on another number of devices."""

import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.commands import finished


def final_params(folder):
    saved = (folder / "checkpoints" / "30" / "default").absolute()
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            checkpointer.metadata(saved).item_metadata.tree,
        )
        tree = checkpointer.restore(saved, restore_args=as_numpy)
    return jax.tree.leaves(tree["params"])


def copy_at_step_20(folder, to):
    """Copies a run as it was at step 20."""
    shutil.copytree(folder / "checkpoints", to / "checkpoints")
    shutil.rmtree(to / "checkpoints" / "30")
    return to


@pytest.mark.parametrize(("layout", "before", "after"), [("zero-1", "8", "2"), ("fsdp", "2", "8")])
def test_continues_on_another_number_of_devices(layout, before, after, tmp_path):
    """Within 1e-6 of the run that kept its devices.

    In float32: in 8 bits a last-bit difference of a sum may round an average up instead of down.
    """
    flags = ["--layout", layout, "--storage", "float32"]
    finished(tmp_path / "stayed", *flags, "--devices", before)
    moved = copy_at_step_20(tmp_path / "stayed", tmp_path / "moved")
    _, messages = finished(moved, *flags, "--devices", after)
    assert "continues at step 20" in messages
    for a, b in zip(final_params(moved), final_params(tmp_path / "stayed"), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
