"""Which checkpoints `examples/checkpoints.py` rejects, and which it restores instead."""

import re
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from checkpoints import Checkpoints, UnfitCheckpointsError
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support.layouts import assert_placed, assert_same_bits, mesh_of

from rmsprop_jax import rmsprop, sharding

LEAF = "params.layer 0.w"


@cache
def tree_of(step, devices=8, dtype="float8_e5m2", rows=16):
    """Sharded parameters and state, with values that depend on the step."""
    mesh = mesh_of(devices)
    params = {"layer 0": {"w": jnp.full((rows, 8), float(step)), "b": jnp.full(8, step / 3)}}
    params = jax.device_put(params, sharding.shard_over(params, mesh))
    optimizer = rmsprop(1e-3, momentum=0.9, accumulator_dtype=dtype)
    state = jax.jit(optimizer.init, out_shardings=sharding.state_shardings(optimizer, params))(
        params
    )
    _, state = jax.jit(optimizer.update)(params, state, params)
    return {"params": params, "state": state}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, tree_of(step))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Checkpoints of steps 10, 20 and 30, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def restored(folder, **options):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(tree_of(0, **options))


@pytest.mark.parametrize("devices", [8, 2, 1])
def test_restores_bit_for_bit_on_any_number_of_devices(devices, folder):
    like = tree_of(0, devices)
    with Checkpoints(folder) as checkpoints:
        step, tree = checkpoints.restore(like)
    assert step == 30
    assert jax.tree.structure(tree) == jax.tree.structure(like)
    jax.tree.map(assert_same_bits, tree, tree_of(30))
    assert_placed(tree, jax.tree.map(lambda leaf: leaf.sharding, like))


def test_restores_by_shape_and_sharding(folder):
    """As README says, where there is no state yet to serve as an example."""
    expected = tree_of(30)
    optimizer = rmsprop(1e-3, momentum=0.9, accumulator_dtype="float8_e5m2")
    weights = expected["params"]
    shardings = sharding.state_shardings(optimizer, weights)
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, weights),
        shardings,
    )
    with Checkpoints(folder) as checkpoints:
        _, tree = checkpoints.restore({"params": weights, "state": abstract})
    jax.tree.map(assert_same_bits, tree, expected)
    assert_placed(tree["state"], shardings)


def test_without_a_checkpoint_the_run_begins(tmp_path):
    assert restored(tmp_path / "new") is None


def test_unsealed_checkpoints_do_not_count(folder, capsys):
    """Killed while it wrote the first one: the same command begins again."""
    for step in (10, 20, 30):
        (folder / str(step) / "seal.json").unlink()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(tree_of(0)) is None
        checkpoints.save(10, tree_of(10))
    assert restored(folder)[0] == 10
    assert capsys.readouterr().err.count("it was not finished, it has no seal.json") == 3


def test_bad_input(folder):
    with Checkpoints(folder) as checkpoints:
        for step in (20, 30):
            with pytest.raises(ValueError, match=f"step must be above 30, got {step}"):
                checkpoints.save(step, tree_of(1))
        with pytest.raises(ValueError, match=r"leaf a\.b must be an array, and the only one"):
            checkpoints.save(40, {"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}})
        with pytest.raises(ValueError, match="leaf count must be an array"):
            checkpoints.save(40, {"count": 3})
    assert restored(folder)[0] == 30
    with pytest.raises(ValueError, match=r"keep >= 2.* got .* and 1"):
        Checkpoints(folder, keep=1)
    with pytest.raises(ValueError, match="a folder that is mounted"):
        Checkpoints(Path("gs://bucket/run"))


def test_keeps_the_newest(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(40, tree_of(40))
        assert checkpoints.manager.all_steps() == [30, 40]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-5])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


def remove(file):
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, empty, remove])
@pytest.mark.parametrize(
    ("file", "leaf"),
    [
        (f"default/{LEAF}/0.0", LEAF),
        (f"default/{LEAF}/.zarray", LEAF),
        (
            "default/state.0.nu_quantized.codes.layer 0.w/3.0",
            "state.0.nu_quantized.codes.layer 0.w",
        ),
        ("default/state.0.nu_quantized.scale/0", "state.0.nu_quantized.scale"),
        ("default/_METADATA", "default"),
        ("seal.json", None),
    ],
)
def test_a_damaged_checkpoint_is_rejected_and_the_older_one_restored(
    file, leaf, damage, folder, capsys
):
    damage(folder / "30" / file)
    step, tree = restored(folder)
    assert step == 20
    jax.tree.map(assert_same_bits, tree, tree_of(20))
    message = capsys.readouterr().err
    assert message.startswith("checkpoint 30 is rejected: ")
    if leaf is not None:
        how = "missing" if damage is remove else "damaged"
        assert f"leaf {leaf}: its file {file.split('/')[-1]} is {how}" in message
    elif damage is not flip:
        assert "it has no seal.json" in message or "its seal.json is damaged" in message


def test_a_rejected_checkpoint_is_renamed_and_its_step_can_be_saved_again(folder):
    flip(folder / "30" / "default" / LEAF / "0.0")
    with Checkpoints(folder) as checkpoints:
        step, tree = checkpoints.restore(tree_of(0))
        checkpoints.save(30, tree)
    assert step == 20
    assert restored(folder)[0] == 30
    assert len(list(folder.glob("rejected-30-*"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 24}, r"leaf params.layer 0.w is float32\[16, 8\], and must be float32\[24, 8\]"),
        ({"dtype": "bfloat16"}, r"leaf state.0.nu.layer 0.[bw](.codes)? is .*, and must be .*"),
        ({"dtype": None}, r"leaf state.2.trace.layer 0.[bw] is bfloat16.*, and must be float32"),
    ],
)
def test_checkpoints_of_another_model_or_storage_are_rejected(options, message, folder, capsys):
    """No new run is started instead, and nothing is renamed."""
    with pytest.raises(ValueError, match=r"no checkpoint in .* is good"):
        restored(folder, **options)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"checkpoint {step} is rejected" for step in (30, 20, 10)
    ]
    assert re.search(f"{message}.*: of another model or storage", lines[0])
    assert restored(folder)[0] == 30


def test_a_checkpoint_of_another_run_is_rejected(tmp_path, capsys):
    tree = tree_of(10)
    with Checkpoints(tmp_path, {"seed": 0}) as checkpoints:
        checkpoints.save(10, tree)
        assert checkpoints.restore(tree)[0] == 10
    unfit = pytest.raises(UnfitCheckpointsError, match="is good for this run")
    with Checkpoints(tmp_path, {"seed": 5}) as checkpoints, unfit:
        checkpoints.restore(tree)
    assert "its run had seed 0, and this one has 5" in capsys.readouterr().err


def test_a_checkpoint_of_another_storage_yields_to_an_older_good_one(tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, tree_of(10))
        checkpoints.save(20, tree_of(20, dtype="bfloat16"))
    assert restored(tmp_path)[0] == 10
    assert (
        "checkpoint 20 is rejected: leaf state.0.nu_quantized.amax is not there"
        in capsys.readouterr().err
    )


def test_replicated_arrays(tmp_path):
    tree = {"w": jax.device_put(jnp.arange(6.0), NamedSharding(mesh_of(8), P()))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        step, again = checkpoints.restore(tree)
    assert step == 1
    assert_same_bits(again["w"], tree["w"])
