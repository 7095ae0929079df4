"""Values that hyperparameters must not have."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np

NAN, INF = float("nan"), float("inf")
NOT_IN_UNIT_INTERVAL = [1, 1 - 1e-9, 1.0, 1.5, -0.1, NAN, INF, jnp.float32(1), jnp.bfloat16(0.999)]
NOT_FINITE = [1e39, NAN, INF, -INF, np.float64("nan")]
NOT_A_SIZE = [-1e-3, 1e39, NAN, INF, -INF, jnp.float32(-1), np.float64("nan")]
NOT_A_NUMBER = [
    "0.1",
    None,
    True,
    1j,
    Fraction(1, 2),
    [0.1],
    {"lr": 0.1},
    jnp.array(1j),
    jnp.array(True),
]


def name_of(value):
    return getattr(value, "__name__", None) or repr(value)
