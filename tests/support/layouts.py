"""A small network in each layout, on a mesh of one device, of eight, or of two processes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rmsprop_jax import _storage, rmsprop, sharding

STORAGES = [None, *(dtype.name for dtype in _storage.low_precision_dtypes())]
OPTIONS = [{}, {"centered": True, "momentum": 0.9, "bias_correction": True}]
LAYOUTS = ["data-parallel", "ZeRO-1", "FSDP"]


def mesh_of(devices, axis_type=AxisType.Auto):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:devices]
    )


def model(rng, dtype=np.float32):
    """A small network and its data; the size of its last bias is not divisible by eight."""
    sizes = [(16, 64), (64, 10)]
    params = {
        f"layer {i}": {
            "w": rng.standard_normal(size).astype(dtype) / size[0] ** 0.5,
            "b": np.zeros(size[1], dtype),
        }
        for i, size in enumerate(sizes)
    }
    x = rng.standard_normal((64, 16)).astype(dtype)
    return params, x, np.tanh(x @ rng.standard_normal((16, 10)).astype(dtype))


def loss_of(params, x, y):
    for layer in params.values():
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean((x - y) ** 2)


def placed(optimizer, params, mesh, layout):
    """Parameters and state in a layout, and the shardings of both and of the gradients."""
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, P()), params)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no free dimension is divisible", UserWarning)
        sharded = sharding.shard_over(params, mesh)
    param_shardings = sharded if layout == "FSDP" else replicated
    gradient_shardings = replicated if layout == "data-parallel" else sharded
    state_shardings = sharding.state_shardings(optimizer, params, gradient_shardings)
    params = jax.device_put(params, param_shardings)
    state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)
    return params, state, param_shardings, state_shardings, gradient_shardings


def on_host(tree, mesh):
    """The full arrays in NumPy, including shards on the devices of other processes."""
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, P()), tree)
    gather = jax.jit(lambda tree: sharding.with_sharding_constraint(tree, replicated))
    return jax.tree.map(np.asarray, gather(tree))


def assert_placed(tree, shardings):
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


def updates_and_state(mesh, layout, dtype, options):
    """The updates of six steps with fixed gradients, and the state after them."""
    optimizer = rmsprop(0.1, accumulator_dtype=dtype, **options)
    rng = np.random.default_rng(0)
    host, _, _ = model(rng)
    params, state, param_shardings, state_shardings, gradient_shardings = placed(
        optimizer, host, mesh, layout
    )

    def update(gradients, state, params):
        return optimizer.update(
            sharding.with_sharding_constraint(gradients, gradient_shardings), state, params
        )

    like = jax.device_put(host, param_shardings)
    update = jax.jit(update, out_shardings=(param_shardings, state_shardings)).lower(
        like, state, params
    )
    update, every = update.compile(), []
    for _ in range(6):
        size = np.float32(10.0 ** rng.uniform(-4, 2))
        g = jax.tree.map(lambda p, s=size: s * rng.standard_normal(p.shape, np.float32), host)
        updates, state = update(jax.device_put(g, param_shardings), state, params)
        every.append(updates)
    assert_placed(state, state_shardings)
    return on_host((every, state), mesh)


def trained(mesh, layout):
    """The parameters after 200 steps in float64."""
    optimizer = rmsprop(1e-3, momentum=0.9)
    host, x, y = model(np.random.default_rng(0), np.float64)
    params, state, param_shardings, state_shardings, gradient_shardings = placed(
        optimizer, host, mesh, layout
    )
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, P()), host)
    rows = NamedSharding(mesh, P("data"))

    def step(params, state, x, y):
        gathered = sharding.with_sharding_constraint(params, replicated)
        gradients = sharding.with_sharding_constraint(
            jax.grad(loss_of)(gathered, x, y), gradient_shardings
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(param_shardings, state_shardings))
    batches = np.random.default_rng(1)
    for _ in range(200):
        # Another batch each time: on a single one RMSprop ends up jumping around a minimum, and
        # every jump doubles a difference.
        batch = batches.permutation(len(x))[:32]
        data = jax.device_put((x[batch], y[batch]), rows)
        # One at a time: eight devices on few cores can deadlock while many steps are queued.
        params, state = jax.block_until_ready(step(params, state, *data))
    assert_placed((params, state), (param_shardings, state_shardings))
    return on_host(params, mesh)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(*(np.atleast_1d(np.asarray(x)).view(np.uint8) for x in (a, b)))


def assert_same_updates_and_state(result, expected):
    """The state bit for bit, updates within 2 ulp."""
    jax.tree.map(assert_same_bits, result[1], expected[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_max_ulp(a, b, maxulp=2), result[0], expected[0]
    )


def assert_trained_alike(params, expected):
    """Within 1e-9 of each leaf's largest element, and far from the start."""
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), params, expected)
    assert max(jax.tree.leaves(difference)) < 1e-9
    start, _, _ = model(np.random.default_rng(0), np.float64)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, start)
    assert min(jax.tree.leaves(moved)) > 1e-2
