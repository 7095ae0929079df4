"""How an average is kept between steps: in float32, bfloat16 or 8 bits. No RMSprop in it.

Arithmetic is done in at least float32, whatever the parameters are, and averages are kept so
unless a narrower dtype is asked for. What is kept in fewer bits is rounded stochastically:
rounded to nearest, a low-precision average stalls, as what a step adds is less than half the
distance to the next number.
"""

from rmsprop_jax._storage._accumulator import (
    LOW_PRECISION_DTYPES,
    SUPPORTED_DTYPES,
    convert,
    init,
    is_low_precision,
    kept_dtype,
    load,
    store,
)
from rmsprop_jax._storage._float8 import FLOAT8, OneByteArray, is_one_byte
from rmsprop_jax._storage._rounding import Rounding, roundings, share, to_bfloat16
from rmsprop_jax._storage._shards import shard_map_specs

__all__ = [
    "FLOAT8",
    "LOW_PRECISION_DTYPES",
    "SUPPORTED_DTYPES",
    "OneByteArray",
    "Rounding",
    "convert",
    "init",
    "is_low_precision",
    "is_one_byte",
    "kept_dtype",
    "load",
    "roundings",
    "shard_map_specs",
    "share",
    "store",
    "to_bfloat16",
]
