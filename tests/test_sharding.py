"""Where the state lives: layouts, the same bits on one device and on eight, ZeRO-1's memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import (
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

from rmsprop_jax import apply_updates, rmsprop, scale_by_rms, sharding

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
def test_averages_lie_where_their_parameter_does(name, axis_type):
    """And all else on every device; a compiled step leaves it there."""
    optimizer, mesh = OPTIMIZERS[name], mesh_of_two_axes(axis_type)
    specs = {"w": P("b", "a"), "b": P(None, "a")}
    params = {"w": jnp.ones((8, 12)), "b": jnp.ones((3, 4))}
    params = jax.device_put(params, {k: NamedSharding(mesh, s) for k, s in specs.items()})
    places = sharding.of_state(optimizer, params)

    state = jax.eval_shape(optimizer.init, {"w": jnp.ones((8, 12)), "b": jnp.ones((3, 4))})
    assert jax.tree.structure(places) == jax.tree.structure(state)
    cut = 0
    for (path, leaf), place in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(places), strict=True
    ):
        names = {key.key for key in path if isinstance(key, jax.tree_util.DictKey)}
        of = next((params[k] for k in names & {"w", "b"} if params[k].shape == leaf.shape), None)
        assert place == (NamedSharding(mesh, P()) if of is None else of.sharding)
        cut += of is not None
    assert cut > 0

    with jax.set_mesh(mesh):
        state = jax.jit(optimizer.init, out_shardings=places)(params)
        step = jax.jit(optimizer.update, out_shardings=(None, places))
        _, state = step(params, state, params)
    assert_placed(state, places)


def test_abstract_parameters_and_shardings_given():
    mesh = mesh_of(8)
    params = jax.eval_shape(lambda: {"w": jnp.ones((16, 4)), "b": jnp.ones(8)})
    parts = sharding.spread(params, mesh)
    places = sharding.of_state(rmsprop(1e-3), params, parts)
    rows = NamedSharding(mesh, P("data"))
    assert sharding.of_state(rmsprop(1e-3), params, rows)[0].nu == {"w": rows, "b": rows}
    assert places[0].nu == parts == {"w": NamedSharding(mesh, P("data", None)), "b": parts["b"]}


def test_flax_state():
    mesh, optimizer = mesh_of(8), rmsprop(1e-3, momentum=0.9, accumulator_dtype="float8_e5m2")
    params = nnx.state(nnx.Linear(16, 8, rngs=nnx.Rngs(0)), nnx.Param)
    parts = sharding.spread(params, mesh)
    places = sharding.of_state(optimizer, params, parts)
    state = jax.jit(optimizer.init, out_shardings=places)(params)
    _, state = jax.jit(optimizer.update, out_shardings=(parts, places))(params, state, params)
    assert_placed(state, places)
    codes = jax.tree.leaves(state[0].nu["kernel"])[0]
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
def test_spread_cuts_the_largest_axis_that_divides(shape, spec):
    mesh = mesh_of(8)
    assert sharding.spread(jnp.ones(shape), mesh) == NamedSharding(mesh, spec)


def test_spread_names_what_stays_whole():
    params = {"w": jnp.ones((8, 8)), "head": {"b": jnp.ones(10), "small": jnp.ones(1)}}
    expected = re.escape(
        "no free axis divides by the 8 devices of 'data', so these are not spread: "
        "params['head']['b'] (10,)"
    )
    with pytest.warns(UserWarning, match=f"{expected}$"):
        parts = sharding.spread(params, mesh_of(8))
    assert parts["head"]["b"].is_fully_replicated


def test_spread_leaves_other_axes_as_they_are():
    """Tensor-parallel parameters: what is cut along one axis is spread over the other, too."""
    mesh = mesh_of_two_axes()
    cut = NamedSharding(mesh, P(None, "b"))
    w = jax.device_put(jnp.ones((8, 64)), cut)
    assert sharding.spread(w, mesh, "a").spec == P("a", "b")
    assert sharding.spread(w, mesh, "b") == cut
    # A sharding of another mesh says nothing of this one.
    assert sharding.spread(w, mesh_of(8)).spec == P(None, "data")


# Numbers.


@pytest.mark.parametrize(
    ("layout", "options", "axis_type"),
    [
        ("data-parallel", OPTIONS[0], AxisType.Auto),
        ("ZeRO-1", OPTIONS[1], AxisType.Auto),
        ("fully sharded", OPTIONS[1], AxisType.Explicit),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", STORAGES)
def test_the_same_bits_on_one_device_and_on_eight(dtype, options, layout, axis_type):
    """On the same gradients: each bit of the state, and updates within 2 ulp."""
    eight, one = (
        updates_and_state(mesh_of(devices, axis_type), layout, dtype, options) for devices in (8, 1)
    )
    assert_same_updates_and_state(eight, one)


@pytest.mark.parametrize(
    ("layout", "axis_type"), [*zip(LAYOUTS, [*AXIS_TYPES, AxisType.Explicit], strict=True)], ids=str
)
def test_training_is_that_of_one_device(layout, axis_type, x64):
    """Sums run in another order; 200 steps in float64 agree within 1e-9."""
    eight, one = (trained(mesh_of(devices, axis_type), layout) for devices in (8, 1))
    assert_trained_alike(eight, one)


# Inside shard_map.


def sharded(update, mesh, params, specs, state_specs, check_vma=True):
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
    """Of the state and of bfloat16 parameters."""
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

    def step(params, state, gradients, count):
        with sharding.local_shards(specs):
            updates, state = optimizer.update(gradients, state, params)
            return apply_updates(params, updates, count), state

    mesh = mesh_of_two_axes(axis_type)
    spec_of = dict.fromkeys(params, specs) if specs == P() else specs
    shardings = {k: NamedSharding(mesh, spec) for k, spec in spec_of.items()}
    split = jax.device_put(params, shardings)
    places = sharding.of_state(optimizer, split)
    state_specs = jax.tree.map(lambda s: s.spec, places)
    inside = sharded(step, mesh, params, spec_of, state_specs, check_vma)

    def outside(params, state, gradients, count):
        updates, state = optimizer.update(gradients, state, params)
        return apply_updates(params, updates, count), state

    one, whole = optimizer.init(params), params
    state = jax.jit(optimizer.init, out_shardings=places)(split)
    for count, g in enumerate(gradients):
        split, state = inside(split, state, jax.device_put(g, shardings), count)
        whole, one = jax.jit(outside)(whole, one, g, count)
    jax.tree.map(assert_same_bits, (split, state), (whole, one))


def test_shard_map_without_local_shards_is_refused():
    """Only where something is rounded: in float32 there is nothing to know."""
    params, mesh = jnp.ones((16, 2)), mesh_of(8)

    def compiled(dtype, specs=None):
        optimizer = rmsprop(0.1, accumulator_dtype=dtype)

        def step(params, state, gradients, count):
            if specs is None:
                return optimizer.update(gradients, state, params)
            with sharding.local_shards(specs):
                return optimizer.update(gradients, state, params)

        state = optimizer.init(params)
        state_specs = jax.tree.map(lambda x: P("data") if x.ndim else P(), state)
        step = sharded(step, mesh, params, P("data"), state_specs)
        return step(params, state, params, 0)

    compiled(None)
    for dtype in STORAGES[1:]:
        with pytest.raises(ValueError, match=r"sharding\.local_shards\(specs\)"):
            compiled(dtype)
        compiled(dtype, P("data"))
        with pytest.raises(ValueError, match="no PartitionSpec for the leaf ''"):
            compiled(dtype, {"w": P("data")})
        for misfit in (P("model"), P("data", None, None)):
            with pytest.raises(ValueError, match="for the leaf '', which has 2 axes, inside"):
                compiled(dtype, misfit)


# ZeRO-1.


@pytest.mark.parametrize("dtype", STORAGES)
def test_zero_1_holds_an_eighth(dtype):
    """Of the state, on each of eight devices: by what they hold, and by the compiled program."""
    optimizer = rmsprop(0.1, accumulator_dtype=dtype, **OPTIONS[1])
    mesh = mesh_of(8)
    everywhere = NamedSharding(mesh, P())
    params = jax.device_put({"w": jnp.ones((512, 128)), "b": jnp.ones(512)}, everywhere)
    parts = sharding.spread(params, mesh)
    places = sharding.of_state(optimizer, params, parts)
    state = jax.jit(optimizer.init, out_shardings=places)(params)
    whole = optimizer.init(params)

    total = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
    for device in mesh.devices.flat:
        shards = [s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards]
        held = sum(s.data.nbytes for s in shards if s.device == device)
        assert total / 8 <= held <= 1.01 * total / 8

    def argument_bytes(state, parts, places):
        def step(gradients, state):
            updates, state = optimizer.update(sharding.constrain(gradients, parts), state)
            return sharding.constrain(updates, parts), state

        step = jax.jit(step, donate_argnums=1, out_shardings=(parts, places))
        analysis = step.lower(params, state).compile().memory_analysis()
        return analysis.argument_size_in_bytes - sum(p.nbytes for p in jax.tree.leaves(params))

    assert total / 8 <= argument_bytes(state, parts, places) <= 1.01 * total / 8
    # The same of a state that every device has whole: the count is one of bytes a device.
    all_whole = jax.tree.map(lambda _: everywhere, (parts, places))
    whole = jax.device_put(whole, everywhere)
    assert argument_bytes(whole, *all_whole) >= total


# Gradients that are not finite.


@pytest.mark.parametrize(
    ("layout", "bad", "axis_type", "dtype"),
    [
        ("ZeRO-1", np.nan, AxisType.Auto, None),
        ("ZeRO-1", np.inf, AxisType.Explicit, "float8_e5m2"),
        ("fully sharded", np.nan, AxisType.Explicit, "bfloat16"),
        ("fully sharded", np.inf, AxisType.Auto, "float8_e5m2"),
    ],
    ids=str,
)
def test_all_devices_skip_a_bad_step_together(bad, dtype, layout, axis_type):
    """One device of eight has the bad number in its part; with apply_if_finite none moves."""
    optimizer = optax.apply_if_finite(rmsprop(0.1, momentum=0.9, accumulator_dtype=dtype), 3)
    mesh, rng = mesh_of(8, axis_type), np.random.default_rng(0)
    host, _, _ = model(rng)
    params, state, of_params, of_state, of_gradients = placed(optimizer, host, mesh, layout)

    def step(params, state, gradients):
        gradients = sharding.constrain(gradients, of_gradients)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, out_shardings=(of_params, of_state))
    good = jax.device_put(host, of_params)
    params, state = step(params, state, good)
    spoilt = jax.tree.map(np.copy, host)
    spoilt["layer 0"]["w"][3, 17] = bad
    after, skipped = step(params, state, jax.device_put(spoilt, of_params))
    jax.tree.map(assert_same_bits, (after, skipped.inner_state), (params, state.inner_state))
    assert int(skipped.total_notfinite) == int(skipped.notfinite_count) == 1
    assert not skipped.last_finite
    # And the next one counts again.
    again, state = step(after, skipped, good)
    assert int(state.notfinite_count) == 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), again, after)
    assert moved["layer 0"]["w"]


# Bad input.

PARAMS = {"w": np.ones((16, 4), np.float32)}


def whole_on(mesh):
    return {"w": NamedSharding(mesh, P())}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sharding.spread(PARAMS, mesh_of(8), "model"), ValueError,
         r"axis must be one of the mesh's, \('data',\), got 'model'"),
        (lambda: sharding.of_state(rmsprop(1e-3), PARAMS), TypeError,
         r"params\['w'\] must be on a mesh, with a NamedSharding, got None"),
        (lambda: sharding.of_state(rmsprop(1e-3), jax.tree.map(jnp.asarray, PARAMS)), TypeError,
         r"params\['w'\] must be on a mesh, with a NamedSharding, got SingleDeviceSharding"),
        (lambda: sharding.of_state(rmsprop(1e-3), PARAMS, {"w": P("data")}), TypeError,
         r"shardings\['w'\] must be a NamedSharding, got (P|PartitionSpec)\('data',?\)"),
        (lambda: sharding.of_state(rmsprop(1e-3), PARAMS, {"v": NamedSharding(mesh_of(8), P())}),
         AssertionError, r"shardings must be built as params: missing leaves: \['w'\]"),
        (lambda: sharding.of_state(
            rmsprop(1e-3), PARAMS | {"b": PARAMS["w"]},
            whole_on(mesh_of(8)) | {"b": NamedSharding(mesh_of(4), P())}), ValueError,
         r"shardings\['w'\] must be on the mesh of the others"),
        (lambda: sharding.of_state(rmsprop(1e-3), {}), ValueError, "params has no leaves"),
        (lambda: sharding.constrain(PARAMS, {"w": None}), AssertionError, r"\['w'\]"),
        (lambda: sharding.constrain(PARAMS, NamedSharding(jax.make_mesh(
            (4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Explicit)), P())),
         ValueError, "shardings must be on a mesh with axes of one type"),
        (lambda: sharding.local_shards({"w": "data"}).__enter__(), TypeError,
         r"specs\['w'\] must be a PartitionSpec, got 'data'"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
