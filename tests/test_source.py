"""The source itself: short functions, short files, and types that hold at run time."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rmsprop_jax

PACKAGE = Path(rmsprop_jax.__file__).parent
CORE = sorted([*PACKAGE.glob("_*.py"), *PACKAGE.glob("_storage/*.py")])


def bodies(file):
    """The number of lines of each function, without its docstring."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.name)
def test_functions_are_short(file):
    assert {name: lines for name, lines in bodies(file) if lines >= 40} == {}


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.name)
def test_files_of_the_core_are_short(file):
    assert len(file.read_text().splitlines()) <= 250


def test_import_starts_no_backend():
    """Otherwise jax.distributed.initialize() after the import would be too late."""
    code = (
        "import rmsprop_jax, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.devices())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert run.stdout.count("CpuDevice") == 3


CHECKED = """
from beartype.claw import beartype_package

beartype_package("rmsprop_jax")
import jax, jax.numpy as jnp, numpy as np, optax
import rmsprop_jax
from rmsprop_jax import dialects, rmsprop, scale_by_rms, scale_by_stddev, untouched_rows

params = {"w": jnp.ones((2, 3)), "n": 3}
gradients = {"w": jnp.ones((2, 3)), "n": None}
mask = {"w": True, "n": False}
for optimizer in [
    rmsprop(1),
    rmsprop(optax.cosine_decay_schedule(0.1, 3), 0, np.float32(0), momentum=jnp.array(0.9)),
    rmsprop(0.1, centered=True, bias_correction=True, momentum=0, accumulator_dtype="float8_e5m2"),
    rmsprop(0.1, weight_decay=1, mask=mask, accumulator_dtype=jnp.bfloat16),
    scale_by_rms(),
    scale_by_stddev(),
    dialects.pytorch(weight_decay=0.1, momentum=0.9),
    dialects.keras(clipnorm=1, weight_decay=0.1),
    dialects.tf_keras(clipvalue=1, decay=0.1),
    dialects.tensorflow_v1(0.1, momentum=0.9),
    dialects.timm(weight_decay=0.1, mask=mask),
    dialects.stable_baselines3(weight_decay=0.1),
    dialects.fastai(0.1, mom=0.9, wd=0.1),
    untouched_rows(rmsprop(1)),
    dialects.hinton(1),
    dialects.graves(),
    dialects.dqn(),
]:
    for update in (optimizer.update, jax.jit(optimizer.update)):
        updates, _ = update(gradients, optimizer.init(params), gradients)
    for step in (3, jnp.int32(3)):
        rmsprop_jax.apply_updates({"w": jnp.ones((2, 3), jnp.bfloat16), "n": 3}, updates, step)
"""


def test_types_hold_at_run_time():
    """Beartype's import hook checks them at every call."""
    subprocess.run([sys.executable, "-c", CHECKED], check=True, timeout=300)
