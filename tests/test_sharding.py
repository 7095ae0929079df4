"""Sharded state: layouts, the same bits on one device and on eight, and ZeRO-1's memory."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.layouts import (
    LAYOUTS,
    OPTIONS,
    STORAGES,
    assert_placed,
    assert_same_bits,
    assert_same_updates_and_state,
    assert_trained_alike,
    mesh_of,
    model,
    placed,
    trained,
    updates_and_state,
)

from rmsprop_jax import apply_updates, rmsprop, scale_by_rms, second_moment, sharding

AXIS_TYPES = [AxisType.Auto, AxisType.Explicit]


def mesh_of_two_axes(axis_type=AxisType.Auto):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)


# Layouts.

MASK = {"w": True, "b": False}
OPTIMIZERS = {
    "float32": rmsprop(1e-3),
    "one byte": rmsprop(1e-3, centered=True, momentum=0.9, accumulator_dtype="float8_e5m2"),
    "bfloat16": rmsprop(1e-3, momentum=0.9, accumulator_dtype="bfloat16", weight_decay=0.1),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0),
        scale_by_rms(accumulator_dtype="float8_e5m2"),
        optax.trace(0.9),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.1, 10)),
    ),
    "masked": optax.masked(rmsprop(1e-3, accumulator_dtype="float8_e5m2"), MASK),
    "partition": optax.partition(
        {True: rmsprop(1e-3, momentum=0.9), False: optax.adam(1e-3)}, MASK
    ),
    "MultiSteps": optax.MultiSteps(rmsprop(1e-3), 2).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(rmsprop, static_args="weight_decay")(1e-3),
    "apply_if_finite": optax.apply_if_finite(rmsprop(1e-3, momentum=0.9), 5),
    "schedule_free": optax.contrib.schedule_free(rmsprop(1e-3), 1e-3),
    "ema": optax.ema(0.9),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=4),
}


@pytest.mark.parametrize(
    ("name", "axis_type"),
    [
        *[(name, AxisType.Auto) for name in OPTIMIZERS],
        ("one byte", AxisType.Explicit),
        ("masked", AxisType.Explicit),
    ],
    ids=str,
)
def test_averages_are_sharded_like_their_parameter(name, axis_type):
    """Everything else is replicated, also after a compiled step."""
    optimizer, mesh = OPTIMIZERS[name], mesh_of_two_axes(axis_type)
    specs = {"w": P("b", "a"), "b": P(None, "a")}
    params = {"w": jnp.ones((8, 12)), "b": jnp.ones((3, 4))}
    params = jax.device_put(params, {k: NamedSharding(mesh, s) for k, s in specs.items()})
    state_shardings = sharding.state_shardings(optimizer, params)

    state = jax.eval_shape(optimizer.init, {"w": jnp.ones((8, 12)), "b": jnp.ones((3, 4))})
    assert jax.tree.structure(state_shardings) == jax.tree.structure(state)
    found = 0
    for (path, leaf), given in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(state_shardings), strict=True
    ):
        names = {key.key for key in path if isinstance(key, jax.tree_util.DictKey)}
        param = next((params[k] for k in names & {"w", "b"} if params[k].shape == leaf.shape), None)
        assert given == (NamedSharding(mesh, P()) if param is None else param.sharding)
        found += param is not None
    assert found > 0

    with jax.set_mesh(mesh):
        state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)
        step = jax.jit(optimizer.update, out_shardings=(None, state_shardings))
        _, state = step(params, state, params)
    assert_placed(state, state_shardings)


def test_abstract_parameters_and_shardings_given():
    mesh = mesh_of(8)
    params = jax.eval_shape(lambda: {"w": jnp.ones((16, 4)), "b": jnp.ones(8)})
    sharded = sharding.shard_over(params, mesh)
    state_shardings = sharding.state_shardings(rmsprop(1e-3), params, sharded)
    rows = NamedSharding(mesh, P("data"))
    assert sharding.state_shardings(rmsprop(1e-3), params, rows)[0].nu == {"w": rows, "b": rows}
    assert (
        state_shardings[0].nu
        == sharded
        == {"w": NamedSharding(mesh, P("data", None)), "b": sharded["b"]}
    )


def test_flax_state():
    mesh, optimizer = mesh_of(8), rmsprop(1e-3, momentum=0.9, accumulator_dtype="float8_e5m2")
    params = nnx.state(nnx.Linear(16, 8, rngs=nnx.Rngs(0)), nnx.Param)
    sharded = sharding.shard_over(params, mesh)
    state_shardings = sharding.state_shardings(optimizer, params, sharded)
    state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)
    _, state = jax.jit(optimizer.update, out_shardings=(sharded, state_shardings))(
        params, state, params
    )
    assert_placed(state, state_shardings)
    (codes,) = jax.tree.leaves(state[0].nu_quantized.codes["kernel"])
    assert len(codes.addressable_shards[0].data) == 2


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16,), P("data")),
        ((8, 24), P(None, "data")),
        ((24, 8), P("data", None)),
        ((16, 16), P("data", None)),
        ((100, 8), P(None, "data")),
        ((3, 3, 64, 128), P(None, None, None, "data")),
        ((), P()),
    ],
)
def test_shard_over_takes_the_largest_divisible_dimension(shape, spec):
    mesh = mesh_of(8)
    assert sharding.shard_over(jnp.ones(shape), mesh) == NamedSharding(mesh, spec)


def test_shard_over_names_leaves_that_stay_replicated():
    params = {"w": jnp.ones((8, 8)), "head": {"b": jnp.ones(10), "small": jnp.ones(1)}}
    expected = re.escape(
        "no free dimension is divisible by the 8 devices of 'data', so these leaves stay "
        "replicated over it: "
        "params['head']['b'] (10,)"
    )
    with pytest.warns(UserWarning, match=f"{expected}$"):
        sharded = sharding.shard_over(params, mesh_of(8))
    assert sharded["head"]["b"].is_fully_replicated


def test_shard_over_keeps_other_axes():
    """Tensor-parallel parameters stay sharded over their axis, and are sharded over another."""
    mesh = mesh_of_two_axes()
    over_b = NamedSharding(mesh, P(None, "b"))
    w = jax.device_put(jnp.ones((8, 64)), over_b)
    assert sharding.shard_over(w, mesh, "a").spec == P("a", "b")
    assert sharding.shard_over(w, mesh, "b") == over_b
    # A sharding on another mesh is ignored.
    assert sharding.shard_over(w, mesh_of(8)).spec == P(None, "data")


# Numbers.


@pytest.mark.parametrize(
    ("layout", "options", "axis_type"),
    [
        ("data-parallel", OPTIONS[0], AxisType.Auto),
        ("ZeRO-1", OPTIONS[1], AxisType.Auto),
        ("FSDP", OPTIONS[1], AxisType.Explicit),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", STORAGES)
def test_the_same_bits_on_one_device_and_on_eight(dtype, options, layout, axis_type):
    """With the same gradients, the state is the same bit for bit, and updates within 2 ulp."""
    eight, one = (
        updates_and_state(mesh_of(devices, axis_type), layout, dtype, options) for devices in (8, 1)
    )
    assert_same_updates_and_state(eight, one)


@pytest.mark.parametrize(
    ("layout", "axis_type"), [*zip(LAYOUTS, [*AXIS_TYPES, AxisType.Explicit], strict=True)], ids=str
)
def test_training_is_that_of_one_device(layout, axis_type, x64):
    """Sums are in another order; after 200 steps in float64 they agree within 1e-9."""
    eight, one = (trained(mesh_of(devices, axis_type), layout) for devices in (8, 1))
    assert_trained_alike(eight, one)


# Inside shard_map.


def in_shard_map(update, mesh, params, specs, state_specs, check_vma=True):
    return jax.jit(
        jax.shard_map(
            update,
            mesh=mesh,
            in_specs=(specs, state_specs, specs, P()),
            out_specs=(specs, state_specs),
            check_vma=check_vma,
        )
    )


@pytest.mark.parametrize("dtype", STORAGES[1:])
@pytest.mark.parametrize(
    ("specs", "check_vma", "axis_type"),
    [
        (P(), True, AxisType.Auto),
        ({"w": P("a", "b"), "b": P(("b", "a"))}, True, AxisType.Explicit),
        ({"w": P(None, ("b", "a")), "b": P("b")}, False, AxisType.Auto),
    ],
    ids=str,
)
def test_the_same_bits_inside_shard_map(specs, check_vma, axis_type, dtype):
    """In the state and in bfloat16 parameters."""
    optimizer = rmsprop(0.1, accumulator_dtype=dtype, **OPTIONS[1])
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.standard_normal((32, 48)), jnp.bfloat16),
        "b": jnp.asarray(rng.standard_normal(16), jnp.bfloat16),
    }
    gradients = [
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
        for _ in range(3)
    ]

    def update(params, state, gradients, step):
        with sharding.shard_map_specs(specs):
            updates, state = optimizer.update(gradients, state, params)
            return apply_updates(params, updates, step), state

    mesh = mesh_of_two_axes(axis_type)
    spec_of = dict.fromkeys(params, specs) if specs == P() else specs
    shardings = {k: NamedSharding(mesh, spec) for k, spec in spec_of.items()}
    sharded_params = jax.device_put(params, shardings)
    state_shardings = sharding.state_shardings(optimizer, sharded_params)
    state_specs = jax.tree.map(lambda s: s.spec, state_shardings)
    inside = in_shard_map(update, mesh, params, spec_of, state_specs, check_vma)

    def outside(params, state, gradients, step):
        updates, state = optimizer.update(gradients, state, params)
        return apply_updates(params, updates, step), state

    expected, expected_state = params, optimizer.init(params)
    state = jax.jit(optimizer.init, out_shardings=state_shardings)(sharded_params)
    for step, g in enumerate(gradients):
        sharded_g = jax.device_put(g, shardings)
        sharded_params, state = inside(sharded_params, state, sharded_g, step)
        expected, expected_state = jax.jit(outside)(expected, expected_state, g, step)
    jax.tree.map(assert_same_bits, (sharded_params, state), (expected, expected_state))


@pytest.mark.parametrize("dtype", STORAGES)
def test_shard_map_without_specs(dtype):
    """Each shard is rounded as if it were a leaf of its own, but with the scale of the leaf."""
    optimizer, mesh = rmsprop(0.1, 0.5, accumulator_dtype=dtype), mesh_of(8)
    params = jnp.geomspace(1e-3, 1, 512).reshape(64, 8)
    state = optimizer.init(params)
    specs = jax.tree.map(lambda x: P("data") if x.ndim == 2 else P(), state)
    step = jax.jit(
        jax.shard_map(
            optimizer.update, mesh=mesh, in_specs=(P("data"), specs), out_specs=(P("data"), specs)
        )
    )
    expected = state
    for _ in range(12):
        _, state = step(params, state)
        _, expected = optimizer.update(params, expected)
    ratio = second_moment(state) / second_moment(expected)
    np.testing.assert_allclose(ratio, 1, atol=0.3)
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.01)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if x.ndim == 1:
            np.testing.assert_allclose(x, y, rtol=0.3)


@pytest.mark.parametrize("dtype", STORAGES)
def test_pmap_without_specs(dtype):
    """One copy of the state on each device, as in Brax and Flax."""
    optimizer = rmsprop(0.1, accumulator_dtype=dtype, momentum=0.9)
    params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.ones(4)}

    def step(state, g):
        return optimizer.update(jax.lax.pmean(g, "i"), state, params)

    stack = partial(jax.tree.map, lambda x: jnp.stack([x] * 8))
    expected = state = optimizer.init(params)
    state = stack(state)
    for _ in range(3):
        updates, state = jax.pmap(step, axis_name="i")(state, stack(params))
        one, expected = jax.jit(optimizer.update)(params, expected, params)
    for x, y in zip(*map(jax.tree.leaves, ((updates, state), (one, expected))), strict=True):
        on_devices = np.asarray(x.astype(jnp.float32))
        np.testing.assert_array_equal(on_devices, on_devices[:1].repeat(8, 0))
        np.testing.assert_allclose(on_devices[0], y.astype(jnp.float32), rtol=0.3, atol=1e-6)


def test_specs_that_do_not_fit_are_rejected():
    """Only in low precision; float32 does not need them."""
    params, mesh = jnp.ones((16, 2)), mesh_of(8)

    def compiled(dtype, specs):
        optimizer = rmsprop(0.1, accumulator_dtype=dtype)

        def step(params, state, gradients, _):
            with sharding.shard_map_specs(specs):
                return optimizer.update(gradients, state, params)

        state = optimizer.init(params)
        state_specs = jax.tree.map(lambda x: P("data") if x.ndim == 2 else P(), state)
        step = in_shard_map(step, mesh, params, P("data"), state_specs)
        return step(params, state, params, 0)

    compiled(None, {"w": P("data")})
    for dtype in STORAGES[1:]:
        compiled(dtype, P("data"))
        with pytest.raises(ValueError, match="no PartitionSpec for the leaf ''"):
            compiled(dtype, {"w": P("data")})
        for misfit in (P("model"), P("data", None, None)):
            with pytest.raises(ValueError, match="for the leaf '', which has 2 axes, inside"):
                compiled(dtype, misfit)


# ZeRO-1.


@pytest.mark.parametrize("dtype", STORAGES)
def test_zero_1_holds_an_eighth(dtype):
    """Each of eight devices holds 1/8 of the state, also in the compiled program."""
    optimizer = rmsprop(0.1, accumulator_dtype=dtype, **OPTIONS[1])
    mesh = mesh_of(8)
    replicated = NamedSharding(mesh, P())
    params = jax.device_put({"w": jnp.ones((512, 128)), "b": jnp.ones(512)}, replicated)
    sharded = sharding.shard_over(params, mesh)
    state_shardings = sharding.state_shardings(optimizer, params, sharded)
    state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)
    replicated_state = optimizer.init(params)

    total = sum(leaf.nbytes for leaf in jax.tree.leaves(replicated_state))
    for device in mesh.devices.flat:
        shards = [s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards]
        held = sum(s.data.nbytes for s in shards if s.device == device)
        assert total / 8 <= held <= 1.01 * total / 8

    def argument_bytes(state, sharded, state_shardings):
        def step(gradients, state):
            updates, state = optimizer.update(
                sharding.with_sharding_constraint(gradients, sharded), state
            )
            return sharding.with_sharding_constraint(updates, sharded), state

        step = jax.jit(step, donate_argnums=1, out_shardings=(sharded, state_shardings))
        analysis = step.lower(params, state).compile().memory_analysis()
        return analysis.argument_size_in_bytes - sum(p.nbytes for p in jax.tree.leaves(params))

    assert total / 8 <= argument_bytes(state, sharded, state_shardings) <= 1.01 * total / 8
    # The same with a replicated state: bytes are counted per device.
    all_replicated = jax.tree.map(lambda _: replicated, (sharded, state_shardings))
    replicated_state = jax.device_put(replicated_state, replicated)
    assert argument_bytes(replicated_state, *all_replicated) >= total


# Gradients that are not finite.


@pytest.mark.parametrize(
    ("layout", "bad", "axis_type", "dtype"),
    [
        ("ZeRO-1", np.nan, AxisType.Auto, None),
        ("ZeRO-1", np.inf, AxisType.Explicit, "float8_e5m2"),
        ("FSDP", np.nan, AxisType.Explicit, "bfloat16"),
        ("FSDP", np.inf, AxisType.Auto, "float8_e5m2"),
    ],
    ids=str,
)
def test_all_devices_skip_a_bad_step_together(bad, dtype, layout, axis_type):
    """With apply_if_finite, a bad number in the shard of one device stops all eight."""
    optimizer = optax.apply_if_finite(rmsprop(0.1, momentum=0.9, accumulator_dtype=dtype), 3)
    mesh, rng = mesh_of(8, axis_type), np.random.default_rng(0)
    host, _, _ = model(rng)
    params, state, param_shardings, state_shardings, gradient_shardings = placed(
        optimizer, host, mesh, layout
    )

    def step(params, state, gradients):
        gradients = sharding.with_sharding_constraint(gradients, gradient_shardings)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, out_shardings=(param_shardings, state_shardings))
    good = jax.device_put(host, param_shardings)
    params, state = step(params, state, good)
    spoilt = jax.tree.map(np.copy, host)
    spoilt["layer 0"]["w"][3, 17] = bad
    after, skipped = step(params, state, jax.device_put(spoilt, param_shardings))
    jax.tree.map(assert_same_bits, (after, skipped.inner_state), (params, state.inner_state))
    assert int(skipped.total_notfinite) == int(skipped.notfinite_count) == 1
    assert not skipped.last_finite
    # The next step is taken again.
    again, state = step(after, skipped, good)
    assert int(state.notfinite_count) == 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), again, after)
    assert moved["layer 0"]["w"]


# Bad input.

PARAMS = {"w": np.ones((16, 4), np.float32)}


def replicated_on(mesh):
    return {"w": NamedSharding(mesh, P())}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sharding.shard_over(PARAMS, mesh_of(8), "model"), ValueError,
         r"axis must be one of the mesh's, \('data',\), got 'model'"),
        (lambda: sharding.state_shardings(rmsprop(1e-3), PARAMS), TypeError,
         r"params\['w'\] must be on a mesh, with a NamedSharding, got None"),
        (lambda: sharding.state_shardings(rmsprop(1e-3), jax.tree.map(jnp.asarray, PARAMS)),
         TypeError,
         r"params\['w'\] must be on a mesh, with a NamedSharding, got SingleDeviceSharding"),
        (lambda: sharding.state_shardings(rmsprop(1e-3), PARAMS, {"w": P("data")}), TypeError,
         r"shardings\['w'\] must be a NamedSharding, got (P|PartitionSpec)\('data',?\)"),
        (lambda: sharding.state_shardings(
            rmsprop(1e-3), PARAMS, {"v": NamedSharding(mesh_of(8), P())}), ValueError,
         r"shardings must have the structure of params: missing leaves: \['w'\]"),
        (lambda: sharding.state_shardings(
            rmsprop(1e-3), PARAMS | {"b": PARAMS["w"]},
            replicated_on(mesh_of(8)) | {"b": NamedSharding(mesh_of(4), P())}), ValueError,
         r"shardings\['w'\] must be on the mesh of the others"),
        (lambda: sharding.state_shardings(rmsprop(1e-3), {}), ValueError, "params has no leaves"),
        (lambda: sharding.with_sharding_constraint(PARAMS, {"w": None}), ValueError, r"\['w'\]"),
        (lambda: sharding.with_sharding_constraint(PARAMS, NamedSharding(jax.make_mesh(
            (4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Explicit)), P())),
         ValueError, "shardings must be on a mesh with axes of one type"),
        (lambda: sharding.shard_map_specs({"w": "data"}).__enter__(), TypeError,
         r"specs\['w'\] must be a PartitionSpec, got 'data'"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
