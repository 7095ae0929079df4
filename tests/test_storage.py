"""Averages in 16 and 8 bits: unbiased, of known deviation, the same on all devices."""

import functools
import math
import pickle
import re
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import DictKey
from support import reference
from support.layouts import assert_same_bits

from rmsprop_jax import _storage, dialects, rmsprop, scale_by_rms, scale_by_stddev, second_moment

LOW_PRECISION = [dtype.name for dtype in _storage.low_precision_dtypes()]
DECAYS = [0.9, 0.99, 0.999]
# |g| from 1e-9 to 1e4, in three leaves, each within a factor of 400.
SIZES = {"small": 1e-9, "middle": 1e-3, "large": 25.0}
WIDTH = 2000
# The largest standard deviation of sqrt(v) relative to float64.
DEVIATIONS = {
    "bfloat16": {0.9: 0.004, 0.99: 0.01, 0.999: 0.024},
    "float8_e5m2": {0.9: 0.07, 0.99: 0.11, 0.999: 0.11},
}
MIXED = [{}, {"momentum": 0.9}, {"centered": True}, {"centered": True, "momentum": 0.9}]


@functools.cache
def gradients(kind, steps):
    """Gradients {leaf: (steps, WIDTH)} of each of `SIZES`."""
    rng = np.random.default_rng(0)

    def leaf(size):
        if kind == "heavy-tailed":
            g = rng.standard_t(3, (steps, WIDTH))
        elif kind == "constant":
            g = np.ones((steps, WIDTH))
        else:
            g = rng.standard_normal((steps, WIDTH))
        if kind == "sparse":
            g *= rng.random(g.shape) < 0.1
        if kind == "with a mean":
            g += 1
        return (size * np.geomspace(1, 400, WIDTH) * g).astype(np.float32)

    return {name: leaf(size) for name, size in SIZES.items()}


def last_state(scale_by, g):
    """The state after all ``g``, {leaf: (steps, ...)}, in one compiled loop."""

    def step(state, g):
        return scale_by.update(g, state)[1], None

    first = jax.tree.map(lambda x: x[0], g)
    return jax.jit(lambda g: jax.lax.scan(step, scale_by.init(first), g)[0])(g)


@functools.partial(jax.jit, static_argnames="dtype")
def stored(average, last, step, dtype, decay=1.0):
    """An average, stored after the array ``last`` and read again."""
    kept = _storage.quantize([last], dtype) if _storage.is_scaled(dtype) else [last.astype(dtype)]
    [column] = (_storage.arrays(kept),)
    next_scale, coding = _storage.next_scales(kept, column, [0], decay)
    shared, [[slot]] = _storage.slots(step, ["nu"], [((), average.ndim)], [coding])
    new = _storage.store(average, column[0], slot, shared)
    tree = jax.tree.structure([0])
    kept = _storage.with_stored(kept, tree, column, [0], [new], next_scale)
    return (_storage.dequantize(kept) if _storage.is_quantized(kept) else kept)[0]


def random_bits(shape, step, name, path=()):
    shared, [[slot]] = _storage.slots(jnp.int32(step), [name], [(path, len(shape))], [[]])
    return slot.random_bits(shared, shape)


def run(tx, gradients):
    """All updates, in one compiled loop."""

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    gradients = jnp.asarray(gradients)
    return np.asarray(jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(gradients))


def bias_and_deviation(kept, expected):
    """The bias of an average, and the deviation of its root, relative to float64."""
    nonzero = expected > 0  # a sparse element may not have had a gradient yet
    ratio = np.asarray(kept, np.float64)[nonzero] / expected[nonzero]
    return ratio.mean() - 1, np.sqrt(ratio).std()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "sparse", "constant", "with a mean"])
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_average_is_unbiased(dtype, kind, decay):
    g = gradients(kind, steps=round(3 / (1 - decay)))
    centered = kind == "with a mean"
    scale_by = (scale_by_stddev if centered else scale_by_rms)(decay, accumulator_dtype=dtype)
    state = last_state(scale_by, g)
    expected = reference.variance if centered else reference.mean_square
    kept = second_moment(state)
    for leaf, x in g.items():
        bias, deviation = bias_and_deviation(kept[leaf], expected(x.astype(np.float64), decay))
        assert abs(bias) <= (0.005 if dtype == "bfloat16" else 0.01), leaf
        assert deviation <= DEVIATIONS[dtype][decay], leaf


@pytest.mark.parametrize(("decay", "deviation"), [(0.9, 0.01), (0.99, 0.03), (0.999, 0.06)])
def test_momentum_is_unbiased(decay, deviation):
    """With 8-bit averages the buffer, which has both signs, is in bfloat16."""
    steps = round(3 / (1 - decay))
    u = np.random.default_rng(0).standard_normal((steps, WIDTH)).astype(np.float32)
    # With decay 0 and eps 1, the denominator only depends on the newest gradient.
    optimizer = rmsprop(1.0, 0.0, 1.0, momentum=decay, accumulator_dtype="float8_e5m2")
    scaled = u / np.sqrt(u**2 + 1.0)
    buffer = last_state(optimizer, u)[2].trace
    assert buffer.dtype == jnp.bfloat16
    expected = -sum(
        weight * x
        for weight, x in zip(decay ** np.arange(steps)[::-1], scaled.astype(float), strict=True)
    )
    error = (np.asarray(buffer, float) - expected) / expected.std()
    assert abs(error.mean()) <= 0.004
    assert error.std() <= deviation


@pytest.mark.parametrize(
    ("options", "squares", "others"),
    [({}, 1, 0), ({"momentum": 0.9}, 1, 1), ({"centered": True, "momentum": 0.9}, 1, 2)],
)
@pytest.mark.parametrize(("dtype", "bytes_of_square"), [("bfloat16", 2), ("float8_e5m2", 1)])
def test_state_size(dtype, bytes_of_square, options, squares, others):
    params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    state = jax.eval_shape(rmsprop(0.1, accumulator_dtype=dtype, **options).init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size / 1e6 == pytest.approx(squares * bytes_of_square + others * 2, rel=1e-4)


def test_dtype_of_each_average():
    params = {"real": jnp.ones(3), "complex": jnp.ones(3, jnp.complex64)}
    options = {"centered": True, "momentum": 0.9, "accumulator_dtype": "float8_e5m2"}
    averages, _, buffer = rmsprop(0.1, **options).init(params)
    for codes in averages.var_quantized.codes.values():
        assert codes.dtype == jnp.float8_e5m2
    for average in (averages.mu, buffer.trace):
        assert average["real"].dtype == jnp.bfloat16
        assert average["complex"].dtype == jnp.complex64


@pytest.mark.parametrize("options", MIXED, ids=str)
def test_codes_are_not_called_nu(options):
    """Optax's helpers find no codes under its own names."""
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = rmsprop(0.1, accumulator_dtype="float8_e5m2", **options).init(params)
    for name in ("nu", "var"):
        assert optax.tree_utils.tree_get(state, name) is None
    codes = optax.tree_utils.tree_get(state, "codes")
    assert jax.tree.map(jnp.shape, codes) == jax.tree.map(jnp.shape, params)
    for name in ("amax", "scale"):
        assert optax.tree_utils.tree_get(state, name).shape == (2,)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("options", [MIXED[0], MIXED[-1]], ids=str)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_the_same_bits_on_one_device_and_on_eight(dtype, options, axis_type):
    """Nothing is gathered."""
    optimizer = rmsprop(0.1, accumulator_dtype=dtype, **options)
    rng = np.random.default_rng(0)
    gradients = [{"w": rng.standard_normal((16, 24), np.float32)} for _ in range(5)]
    params = {"w": np.ones((16, 24), np.float32)}

    def states(sharding):
        update = jax.jit(optimizer.update)
        placed = jax.device_put(params, sharding)
        state = optimizer.init(placed)
        for g in gradients:
            updates, state = update(jax.device_put(g, sharding), state, placed)
        text = update.lower(updates, state, placed).compile().as_text()
        assert "all-gather" not in text
        # One number, reduced over one axis of the mesh and then the other.
        reduced = re.findall(r" = (\S+) all-reduce\(", text)
        assert set(reduced) <= {"f32[]"}
        assert len(reduced) <= 2 * (dtype == "float8_e5m2")
        averages = jax.tree.leaves(state)
        assert all(x.sharding.is_equivalent_to(sharding, 2) for x in averages if x.ndim == 2)
        assert all(x.sharding.is_fully_replicated for x in averages if x.ndim < 2)
        return state

    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    one = states(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    for spec in (("a", "b"), (None, ("b", "a"))):
        eight = states(NamedSharding(mesh, PartitionSpec(*spec)))
        jax.tree.map(assert_same_bits, one, eight)


@pytest.mark.parametrize("options", [MIXED[0], MIXED[-1]], ids=str)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_the_same_bits_after_a_checkpoint(dtype, options, tmp_path):
    optimizer = rmsprop(0.1, accumulator_dtype=dtype, **options)
    params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.array(0.5)}
    update = jax.jit(optimizer.update)

    def after(steps, state):
        for step in range(steps):
            size = jnp.cos(step)
            _, state = update(jax.tree.map(size.__mul__, params), state, params)
        return state

    state = after(3, optimizer.init(params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(assert_same_bits, after(3, restored), after(3, state))


def test_random_bits_are_uniform_and_independent():
    """For elements, consecutive steps, and names: all within five standard deviations."""
    width, steps = 1 << 14, 64
    names = ["mu['w']", "var['w']"]
    bits = [random_bits((width,), t, name) for name in names for t in range(steps)]
    x = np.asarray(bits, np.float64) / 2**32 - 0.5
    count = x.size
    assert abs(x.mean()) < 5 / np.sqrt(12 * count)
    assert abs(12 * x.var() - 1) < 5 / np.sqrt(count)
    # Small additions round up only for bits in the tail.
    for tail in (1e-1, 1e-2, 1e-3):
        assert abs((x > 0.5 - tail).mean() - tail) < 5 * np.sqrt(tail / count)
    # A few pairs of steps are slightly correlated: the hash is a cheap one.
    correlations = np.corrcoef(x)[np.triu_indices(len(x), 1)]
    assert correlations.std() < 1.05 / np.sqrt(width)
    assert abs(correlations).max() < 0.1
    for lag in (1, 2, 3, 64):
        assert abs(12 * (x[:, lag:] * x[:, :-lag]).mean()) < 5 / np.sqrt(count)


def test_leaves_steps_and_averages_are_rounded_independently():
    """Also two leaves of the same shape with equal gradients."""
    bits = [
        np.asarray(random_bits((500,), step, name, path=(DictKey(leaf),)))
        for step, name in [(1, "mu"), (1, "var"), (2, "mu")]
        for leaf in "ab"
    ]
    correlations = np.corrcoef(bits)[np.triu_indices(len(bits), 1)]
    assert abs(correlations).max() < 5 / np.sqrt(500)


@given(
    st.integers(0, 2**31 - 1),
    st.text(max_size=20),
    st.sampled_from([(), (5,), (2, 3), (2, 2, 2), (1, 4, 1, 3)]),
)
def test_random_bits_are_this_hash(step, name, shape):
    """Written with Python's integers: the same in every process and on every machine."""

    def hashed(x):
        x = x * 0x7FEB352D % 2**32
        return (x ^ (x >> 15)) * 0x846CA68B % 2**32

    key = hashed(hashed((step * 0x9E3779B9 + zlib.crc32(name.encode())) % 2**32))
    expected = [hashed((index + key) % 2**32) for index in range(math.prod(shape))]
    bits = random_bits(shape, step, name)
    np.testing.assert_array_equal(np.ravel(bits), np.array(expected, np.uint32))


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_gradient_stays_in_its_element(bad, dtype):
    """It changes the shared scale so little that others keep their mantissa bits."""
    # Not infinity at the first step, where it would be all that is known about the leaf's size.
    for at in (0, 3) if np.isnan(bad) else (3,):
        tx, float32 = scale_by_rms(accumulator_dtype=dtype), scale_by_rms()
        g = np.ones((200, 64), np.float32)
        g[100:] = 100
        g[at, 7] = bad
        updates, expected = run(tx, g), run(float32, g)
        np.testing.assert_array_equal(np.isfinite(updates), np.isfinite(expected))
        ratio = np.delete(updates, 7, axis=1) / np.delete(expected, 7, axis=1)
        assert ((ratio > 0.5) & (ratio < 2)).all()
        np.testing.assert_allclose(ratio[-100:].mean(), 1, atol=0.03)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_every_nan_is_kept(bits, dtype):
    """A GPU's has all mantissa bits set: rounding it up would make it a number."""
    average = jnp.asarray(np.array([bits, 0x3F800000], np.uint32).view(np.float32))
    for last in (0.0, 1.0):
        kept = stored(average, jnp.full(2, last), jnp.int32(1), dtype, 0.9)
        np.testing.assert_array_equal(np.isnan(np.asarray(kept, np.float32)), [True, False])


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)], ids=str)
def test_shapes(shape, dtype):
    optimizer = rmsprop(0.1, centered=True, momentum=0.9, accumulator_dtype=dtype)
    params = jnp.ones(shape)
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    chex.assert_shape([updates, second_moment(state), state[0].mu], shape)


def averages(smallest, largest):
    """Averages of a leaf, all sizes with the same frequency."""
    exponents = st.floats(np.log2(smallest), np.log2(largest))
    elements = exponents.map(lambda x: np.float32(2.0**x))
    return hnp.arrays(np.float32, 20, elements=elements | st.just(np.float32(0)))


@given(averages(2.0**-90, 2.0**60), st.sampled_from([0.5, 0.9, 0.999]), st.integers(0, 2**31 - 1))
def test_8_bits_are_within_the_spacing_of_their_codes(average, decay, step):
    """The error is at most 1/8, or 2**-25 of the largest; zero is exact."""
    new = np.asarray(stored(average, average, jnp.int32(step), "float8_e5m2", decay), float)
    x = average.astype(float)
    assert (new[x == 0] == 0).all()
    assert (abs(new - x) <= x / 8 + max(x.max(), 2.0**-100) * 2.0**-25).all()


@given(averages(2.0**-90, 2.0**46))
def test_first_average_is_within_a_factor_of_two(average):
    """Codes are powers of two until the amax is known."""
    zero = np.zeros_like(average)
    x, new = average.astype(float), np.asarray(stored(average, zero, 1, "float8_e5m2", 0.9), float)
    assert ((new >= x / 2) & (new <= x * 2)).all()


@pytest.mark.parametrize("size", [1e6, 1e9, 1e15])
def test_huge_first_gradient(size):
    """An average too large for the first step's codes is clipped, not infinite."""
    updates = run(scale_by_rms(accumulator_dtype="float8_e5m2"), np.full((40, 9), size, np.float32))
    assert ((updates > 0.5) & (updates < 1 / np.sqrt(1 - 0.9) + 1e-3)).all()
    np.testing.assert_allclose(updates[-1], 1, rtol=0.3)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_x64(dtype, x64):
    """Parameters and hyperparameters in float64."""
    g = np.linspace(-1, 1, 10)
    for decay in (0.9, np.float64(0.9), jnp.float64(0.9)):
        options = {"centered": True, "bias_correction": True, "momentum": 0.9, "eps": 0.1}
        low_precision = run(
            rmsprop(0.1, decay, accumulator_dtype=dtype, **options), np.stack([g, -g, 2 * g])
        )
        expected = run(rmsprop(0.1, decay, **options), np.stack([g, -g, 2 * g]))
        assert low_precision.dtype == np.float64
        np.testing.assert_allclose(low_precision, expected, rtol=0.3, atol=1e-12)


@pytest.mark.parametrize(("mean", "least", "most"), [(30, 1.01, 1.07), (100, 1.1, 1.3)])
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_rounding_of_the_mean_inflates_the_variance(dtype, mean, least, most):
    """By as much as `rmsprop` says, for gradients of this mean and standard deviation 1."""
    g = mean + np.random.default_rng(0).standard_normal((2000, 500))
    state = last_state(scale_by_stddev(0.99, accumulator_dtype=dtype), g.astype(np.float32))
    var = second_moment(state)
    assert least < (np.asarray(var, float) / reference.variance(g, 0.99)).mean() < most


def test_updates_are_one_or_two_per_cent_larger_in_8_bits():
    g = np.random.default_rng(0).standard_normal((1500, WIDTH)).astype(np.float32)
    for decay in (0.99, 0.999):
        low_precision, float32 = (
            abs(run(scale_by_rms(decay, accumulator_dtype=dtype), g)[-500:]).mean()
            for dtype in ("float8_e5m2", None)
        )
        assert 1.005 < low_precision / float32 < 1.02


def test_leaf_with_rare_gradients():
    """Updates are bounded, but after many zero gradients the average is clipped: too small."""
    rng = np.random.default_rng(0)
    active = rng.random((3000, 1)) < 0.02
    g = np.where(active, rng.standard_normal((3000, 100)), 0).astype(np.float32)
    low_precision, float32 = (
        run(scale_by_rms(0.9, eps=0.0, accumulator_dtype=d), g) for d in ("float8_e5m2", None)
    )
    assert abs(low_precision).max() <= 1 / np.sqrt(1 - 0.9) + 1e-4
    ratio = abs(low_precision).sum() / abs(float32).sum()
    assert 1 < ratio < 1.2


def test_range_of_8_bits():
    """As `rmsprop` says about elements far below the leaf's largest."""
    rng = np.random.default_rng(0)
    below = 10.0 ** np.arange(0, 8)  # the largest |g| over that of each row
    g = rng.standard_normal((300, len(below), 2000)) / below[:, None]
    state = last_state(scale_by_rms(0.99, accumulator_dtype="float8_e5m2"), g.astype(np.float32))
    v = second_moment(state)
    expected = reference.mean_square(g, 0.99)
    measured = [bias_and_deviation(*x) for x in zip(np.asarray(v), expected, strict=True)]
    deviation = dict(zip(below, (deviation for _, deviation in measured), strict=True))
    assert deviation[1e3] < 0.12
    assert 0.3 < deviation[1e4] < 1
    # Even smaller ones are mostly zero.
    assert (np.asarray(v)[-2:] == 0).mean() > 0.99


def moments_and_ratios(decay, cases):
    """For gradients (cases, steps, elements), one leaf per case, after each step.

    Returns v in 8 bits, v in float64, and by which factor updates are too large, summed over all
    elements except the first.
    """
    tx = scale_by_rms(decay, eps=0.0, accumulator_dtype="float8_e5m2")

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, (updates, second_moment(state))

    def run_one(g):
        return jax.lax.scan(step, tx.init(g[0]), g)[1]

    updates, v = jax.jit(jax.vmap(run_one))(jnp.asarray(cases, jnp.float32))
    expected, last = np.zeros(cases.shape), 0.0
    for t in range(cases.shape[1]):
        last = decay * last + (1 - decay) * cases[:, t].astype(float) ** 2
        expected[:, t] = last
    lengths = abs(cases[..., 1:] / np.sqrt(expected[..., 1:])).sum(-1)
    return np.asarray(v, float), expected, abs(np.asarray(updates))[..., 1:].sum(-1) / lengths


def noise(cases, before, after, elements=300):
    """The same random gradients for each case."""
    g = np.random.default_rng(0).standard_normal((before + after, elements))
    return np.stack([g] * cases).astype(np.float32)


@pytest.mark.parametrize("decay", DECAYS)
def test_spike_in_one_element_does_not_enlarge_the_updates_of_others(decay):
    """Nor do several in a row: amax grows by at most 4 per step."""
    spikes = [(size, steps) for size in (1e3, 1e6, 1e9, 1e12) for steps in (1, 2, 10)]
    before = round(3 / (1 - decay))
    g = noise(len(spikes), before, 110)
    for case, (size, steps) in zip(g, spikes, strict=True):
        case[before : before + steps, 0] *= size
    _, _, ratios = moments_and_ratios(decay, g)
    assert ratios[:, before:].max() <= 1.2


@pytest.mark.parametrize("decay", DECAYS)
def test_average_catches_up_with_a_lasting_growth_of_gradients(decay):
    before = round(3 / (1 - decay))
    g = noise(2, before, 40)
    for case, size in zip(g, (1e3, 1e6), strict=True):
        case[before:] *= size
    v, expected, _ = moments_and_ratios(decay, g)
    assert (v[:, -1].mean(-1) >= 0.5 * expected[:, -1].mean(-1)).all()


@pytest.mark.parametrize(
    ("decay", "least"),
    [(0.9, (0.7, 0.1, 0.001)), (0.99, (0.95, 0.4, 0.005)), (0.999, (0.95, 0.95, 0.05))],
)
def test_bad_batch_is_partly_lost_from_the_average(decay, least):
    """At least this fraction of the average is left."""
    before = round(3 / (1 - decay))
    g = noise(3, before, 21, elements=1000)
    for case, size in zip(g, (30, 100, 1000), strict=True):
        case[before] *= size
    v, expected, _ = moments_and_ratios(decay, g)
    left = v[:, -1].mean(-1) / expected[:, -1].mean(-1)
    assert (left >= least).all()
    assert (left <= 2.5 * np.array(least) + 0.01).all()


@pytest.mark.parametrize("decay", DECAYS)
def test_periodic_gradients(decay):
    """One step in 2, 10 or 64 has gradients three times as large as the others."""
    periods = (2, 10, 64)
    g = noise(len(periods), 0, round(6 / (1 - decay)), elements=500)
    for case, period in zip(g, periods, strict=True):
        case[::period] *= 3
    v, expected, _ = moments_and_ratios(decay, g)
    last = slice(-2 * max(periods), None)
    assert (abs((v[:, last] / expected[:, last]).mean((1, 2)) - 1) <= 0.01).all()


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("step", [2**24, 2**31 - 3, -(2**31), -2])
def test_random_bits_never_stop_changing(step, dtype):
    """After 2**31 - 1 steps the counter continues with negative numbers."""
    tx = scale_by_rms(0.99, accumulator_dtype=dtype, bias_correction=True)
    g = jnp.ones(2000)
    state = last_state(tx, np.ones((10, 2000), np.float32))
    state = state._replace(count=jnp.int32(step))
    seen, roots = set(), []
    for _ in range(6):
        updates, state = jax.jit(tx.update)(g, state)
        v = second_moment(state)
        seen.add(np.asarray(v).tobytes())
        roots.append(np.asarray(updates))
    assert len(seen) == 6
    # After that many steps bias correction has no effect.
    np.testing.assert_allclose(np.mean(roots) ** -2, float(v.mean()), rtol=0.2)


class FourBits(_storage.Scaled):
    """A toy format: sixteen codes, the squares of 0 to 15, in the low bits of a byte."""

    dtype = jnp.dtype("uint8")
    log2_of_amax = 6
    zero = 0

    def encoding(self, scale):
        return (abs(scale),)

    decoding = encoding

    def encode(self, x, random_bits, scale):
        code = jnp.sqrt(x / scale) + random_bits.astype(jnp.float32) / 2.0**32
        return jnp.clip(code, 0, 15).astype(jnp.uint8)

    def decode(self, codes, scale):
        return codes.astype(jnp.float32) ** 2 * scale


def test_new_format_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(_storage.FORMATS, FourBits.dtype, FourBits())
    target = jnp.linspace(-1, 1, 50)
    optimizer = rmsprop(0.02, 0.9, accumulator_dtype="uint8", momentum=0.5)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params - target, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.zeros(50)
    start = params, optimizer.init(params)
    (params, state), _ = jax.jit(lambda start: jax.lax.scan(step, start, length=300))(start)
    assert state[0].nu_quantized.codes.dtype == jnp.uint8
    assert float(abs(params - target).max()) < 0.1


def test_state_of_zeros_works_as_an_initial_state():
    """As made from shapes, or to reset a state."""
    tx = rmsprop(0.1, accumulator_dtype="float8_e5m2")
    state = tx.init(jnp.ones(3))
    updates, after = tx.update(jnp.ones(3), state)
    zeros = jax.tree.map(jnp.zeros_like, after)
    np.testing.assert_array_equal(second_moment(zeros), 0)
    np.testing.assert_array_equal(tx.update(jnp.ones(3), zeros)[0], updates)


def test_pickle_and_flax():
    """Both restore the state bit for bit."""
    tx = rmsprop(0.1, accumulator_dtype="float8_e5m2")
    _, state = tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}))
    for restored in (
        pickle.loads(pickle.dumps(state)),
        serialization.from_bytes(tx.init({"w": jnp.ones(3)}), serialization.to_bytes(state)),
    ):
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(assert_same_bits, restored, state)


def npy(codes, path):
    np.save(path / "codes.npy", codes)
    return np.load(path / "codes.npy")


def npz(codes, path):
    np.savez(path / "codes.npz", codes=codes)
    return np.load(path / "codes.npz")["codes"]


@pytest.mark.parametrize("write_and_read", [npy, npz])
def test_file_without_the_dtype_can_hold_its_bytes(write_and_read, tmp_path):
    """NumPy writes float8 but cannot read it; stored as uint8 it can."""
    _, state = (tx := scale_by_rms(accumulator_dtype="float8_e5m2")).update(
        jnp.linspace(0.1, 1, 9), tx.init(jnp.ones(9))
    )
    codes = state.nu_quantized.codes
    with pytest.raises(ValueError, match="not a valid dtype"):
        write_and_read(codes, tmp_path)
    read = jnp.asarray(write_and_read(codes.view(jnp.uint8), tmp_path)).view(codes.dtype)
    again = state._replace(nu_quantized=state.nu_quantized._replace(codes=read))
    np.testing.assert_array_equal(second_moment(again), second_moment(state))


@pytest.mark.parametrize("field", ["amax", "scale"])
def test_vectors_of_another_tree_are_rejected(field):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    tx = scale_by_rms(accumulator_dtype="float8_e5m2")
    state = tx.init(params)
    short = state.nu_quantized._replace(**{field: jnp.ones(1)})
    with pytest.raises(
        ValueError, match=rf"{field} must have one number for each of 2 leaves.*\(1,\)"
    ):
        tx.update(params, state._replace(nu_quantized=short))


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_gradient_of_none_changes_neither_codes_nor_scale(dtype):
    """Also where one None stands for several leaves."""
    params = {"a": jnp.ones(3), "b": {"c": jnp.ones(2), "d": jnp.ones(4)}, "e": jnp.ones(1)}
    tx = scale_by_rms(accumulator_dtype=dtype)
    _, state = tx.update(params, tx.init(params))
    _, after = tx.update(params | {"b": None}, state)
    v, before = second_moment(after), second_moment(state)
    jax.tree.map(assert_same_bits, v["b"], before["b"])
    assert (v["a"] > before["a"]).all()
    assert (v["e"] > before["e"]).all()


def test_vmap_over_models():
    """Each has its own scale."""
    tx = scale_by_rms(0.9, accumulator_dtype="float8_e5m2")
    g = jnp.array([[1e-6] * 50, [1e3] * 50])

    def run_one(g):
        return jax.lax.scan(lambda s, _: (tx.update(g, s)[1], None), tx.init(g), length=60)[0]

    nu = np.asarray(second_moment(jax.vmap(run_one)(g)))
    np.testing.assert_allclose(nu.mean(1), [1e-12, 1e6], rtol=0.05)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_derivatives_treat_stored_averages_as_constants(dtype):
    """With respect to the newest gradient they are those of float32."""

    def second_update(rate, first, g, accumulator_dtype):
        tx = rmsprop(rate, accumulator_dtype=accumulator_dtype)
        _, state = tx.update(first, tx.init(first))
        return tx.update(g, state)[0].sum()

    first, g = jnp.linspace(1, 2, 5), jnp.linspace(-1, 1, 5)
    slopes = jax.grad(second_update, argnums=(0, 1, 2))(0.1, first, g, dtype)
    float32 = jax.grad(second_update, argnums=(0, 1, 2))(0.1, first, g, None)
    np.testing.assert_array_equal(slopes[1], 0)
    np.testing.assert_allclose(slopes[2], float32[2], rtol=0.3, atol=1e-3)
    assert np.isfinite(slopes[0])


@pytest.mark.parametrize("name", dialects.DIALECTS)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_dialects(name, dtype):
    """Each moves the parameters in low precision as far as in float32."""
    dialect = dialects.DIALECTS[name]
    rng = np.random.default_rng(0)
    g = (rng.standard_normal((200, 400)) + 0.3).astype(np.float32)

    def total(optimizer):
        def step(state, g):
            updates, state = optimizer.update(g, state, g)
            return state, updates

        return jax.jit(lambda g: jax.lax.scan(step, optimizer.init(g[0]), g)[1].sum(0))(g)

    moved, expected = total(dialect(0.01, accumulator_dtype=dtype)), total(dialect(0.01))
    np.testing.assert_allclose(moved.mean(), expected.mean(), rtol=0.03)
    np.testing.assert_allclose(moved, expected, rtol=0.3, atol=0.3 * abs(expected).mean())


@pytest.mark.parametrize(
    "options", [{}, {"centered": True, "momentum": 0.9, "nesterov": True}], ids=str
)
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_composes(dtype, options):
    """Masks, partitions, injected hyperparameters and accumulated steps; one compilation."""
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}

    def composed(dtype):
        make = functools.partial(rmsprop, accumulator_dtype=dtype, **options)
        return (
            optax.masked(make(0.1), {"w": True, "b": False}),
            optax.partition({"a": make(0.1), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
            optax.inject_hyperparams(make, static_args=("accumulator_dtype", "weight_decay"))(0.1),
            optax.MultiSteps(make(0.1), 2),
            optax.apply_if_finite(make(0.1), 3),
        )

    for low_precision, float32 in zip(composed(dtype), composed(None), strict=True):
        step, float32_step = jax.jit(low_precision.update), jax.jit(float32.update)
        state, float32_state = low_precision.init(params), float32.init(params)
        for t in range(4):
            g = jax.tree.map(lambda p, t=t: p * (t - 1.5), params)
            updates, state = step(g, state, params)
            expected, float32_state = float32_step(g, float32_state, params)
            chex.assert_trees_all_close(updates, expected, rtol=0.5, atol=0.05)
        assert step._cache_size() == 1
