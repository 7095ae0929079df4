"""A step as XLA compiles it for CPU: no copies, all in place, no more bytes than Optax."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from support.environment import for_program

import rmsprop_jax

pytestmark = pytest.mark.optimized
SIZE = 1 << 20
MOMENTA = {
    "none": {},
    "heavy-ball": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}


def compile_step(optimizer, dtype=jnp.float32):
    """A training step without the gradient, on one leaf, with parameters and state donated."""

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.ShapeDtypeStruct((SIZE,), dtype)
    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()


def bytes_accessed(compiled):
    return compiled.cost_analysis()["bytes accessed"]


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state_size(optimizer):
    """Bytes of parameters and state."""
    params = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    return bytes_of((params, jax.eval_shape(optimizer.init, params)))


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize("centered", [False, True])
def test_step(centered, eps_in_sqrt, bias_correction, momentum):
    options = {
        "centered": centered,
        "eps_in_sqrt": eps_in_sqrt,
        "bias_correction": bias_correction,
        **MOMENTA[momentum],
    }
    optimizer = rmsprop_jax.rmsprop(1e-3, **options)
    ours, optax_s = compile_step(optimizer), compile_step(optax.rmsprop(1e-3, **options))

    assert not re.findall(r" copy(?:-start)?\(", ours.as_text())
    # Exactly the arrays of parameters and state are written in place.
    assert ours.memory_analysis().alias_size_in_bytes == state_size(optimizer)
    # The hyperparameters are one vector of three or four floats, and the corrected variance reads
    # the weight of the step twice: a few bytes of 29 million.
    assert bytes_accessed(ours) <= bytes_accessed(optax_s) + 64
    if momentum == "nesterov":  # gradient over root is written once, not twice
        assert bytes_accessed(ours) < bytes_accessed(optax_s) - 4 * SIZE + 64


def test_the_copies_test_can_fail():
    """An array is copied if another needs its old value; the check above would see it."""

    def old_mean(params, state, gradients):
        m, s = state
        new = (m + 0.1 * (gradients - m), 0.9 * s + 0.09 * (gradients - m) ** 2)
        return params - gradients / jnp.sqrt(new[1] + 1e-8), new

    p = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    compiled = jax.jit(old_mean, donate_argnums=(0, 1)).lower(p, (p, p), p).compile()
    ours = compile_step(rmsprop_jax.rmsprop(1.0, centered=True))
    assert re.findall(r" copy(?:-start)?\(", compiled.as_text())
    assert bytes_accessed(compiled) > bytes_accessed(ours)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_half_precision_is_in_place_too(dtype):
    optimizer = rmsprop_jax.rmsprop(1e-3, centered=True, momentum=0.9)
    compiled = compile_step(optimizer, dtype)
    assert not re.findall(r" copy(?:-start)?\(", compiled.as_text())
    assert compiled.memory_analysis().alias_size_in_bytes == SIZE * (2 + 3 * 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, 1),
        ({"bias_correction": True}, 1),
        ({"momentum": 0.9}, 2),
        ({"centered": True}, 2),
        ({"centered": True, "momentum": 0.9}, 3),
        ({"weight_decay": 0.1}, 1),
    ],
)
def test_state_size(options, words):
    """One float32 per parameter and average, and at most one counter."""
    params = {"w": jax.ShapeDtypeStruct((1000,), jnp.float32)}
    state = jax.eval_shape(rmsprop_jax.rmsprop(1e-3, **options).init, params)
    assert bytes_of(state) == 4 * (1000 * words + options.get("bias_correction", False))


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 110), ("float8_e5m2", 245)])
def test_low_precision_is_a_short_program(dtype, most):
    """``most`` instructions per leaf, and 70 % more with momentum or the mean."""
    shapes = [(64, 64)] * 4 + [(64,)] * 4 + [(256, 64)] * 4
    for options, factor in (({}, 1), ({"momentum": 0.9}, 1.7), ({"centered": True}, 1.7)):
        optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype=dtype, **options)
        params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        state = jax.eval_shape(optimizer.init, params)

        def step(params, state, gradients, optimizer=optimizer):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
        count = len(re.findall(r"^.* = ", compiled.as_text(), re.MULTILINE))
        assert count <= factor * most * len(shapes)


def test_checks_leave_nothing_in_the_program():
    """The compiled program is only arithmetic: no callback, branch, loop or assertion."""
    text = compile_step(rmsprop_jax.rmsprop(1e-3, centered=True, momentum=0.9)).as_text()
    operations = set(re.findall(r" ([a-z-]+)\(", text[text.index("ENTRY") :]))
    assert operations <= {"parameter", "constant", "fusion", "add", "tuple"}


PRINT_PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
from test_compiled import described
print(described())
"""


def described():
    """The program of a centred step, whose fusions depend on the flags of the tests."""
    compiled = compile_step(rmsprop_jax.rmsprop(1e-3, centered=True, momentum=0.9))
    # Only the instructions, which are indented: the other lines name files and lines.
    text = "".join(re.findall(r"^  .*\n", compiled.as_text(), re.MULTILINE))
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    return hashlib.sha256(text.encode()).hexdigest(), bytes_accessed(compiled)


def test_the_marker_gives_the_program_that_users_have():
    """The same as in a process without the flags of `support.environment`."""
    folder = Path(__file__).parent
    program = [sys.executable, "-c", PRINT_PROGRAM, folder, folder.parent]
    environment = for_program(optimized=True)
    users = subprocess.run(program, env=environment, check=True, capture_output=True, text=True)
    assert users.stdout.strip() == str(described())


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_uncompiled_steps_do_not_recompile(wrapped, dtype, caplog):
    """Also with optax.inject_hyperparams, which makes a new optimizer at each step."""
    make = rmsprop_jax.rmsprop
    if wrapped:
        make = optax.inject_hyperparams(make, static_args="accumulator_dtype")
    optimizer = make(0.1, momentum=0.9, accumulator_dtype=dtype)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(params, state, params)
    with jax.log_compiles():
        optimizer.update(params, state, params)
    assert "Compiling" not in caplog.text
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(jnp.ones(17))
    assert "Compiling" in caplog.text
