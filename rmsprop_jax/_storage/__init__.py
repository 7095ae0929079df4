"""How an average is kept between steps: in float32, bfloat16 or 8 bits. No RMSprop in it.

Arithmetic is done in at least float32, whatever the parameters are, and averages are kept so
unless a narrower dtype is asked for. What is kept in fewer bits is rounded stochastically:
rounded to nearest, a low-precision average stalls, as what a step adds is less than half the
distance to the next number.
"""

from rmsprop_jax._storage._formats import Scaled
from rmsprop_jax._storage._quantized import (
    Quantized,
    arrays,
    dequantize,
    init,
    is_quantized,
    largest_codes,
    next_scales,
    quantize,
    replaced,
)
from rmsprop_jax._storage._registry import (
    FORMATS,
    is_low_precision,
    is_scaled,
    kept_dtype,
    load,
    low_precision_dtypes,
    store,
)
from rmsprop_jax._storage._rounding import to_bfloat16
from rmsprop_jax._storage._shards import shard_map_specs
from rmsprop_jax._storage._slots import Slot, one_by_one, share, slots

__all__ = [
    "FORMATS",
    "Quantized",
    "Scaled",
    "Slot",
    "arrays",
    "dequantize",
    "init",
    "is_low_precision",
    "is_quantized",
    "is_scaled",
    "kept_dtype",
    "largest_codes",
    "load",
    "low_precision_dtypes",
    "next_scales",
    "one_by_one",
    "quantize",
    "replaced",
    "shard_map_specs",
    "share",
    "slots",
    "store",
    "to_bfloat16",
]
