"""How an average is stored between steps: in float32, bfloat16 or 8 bits. Independent of RMSprop.

Arithmetic is done in at least float32, whatever the parameters are, and averages are stored in
it unless a lower precision is asked for. That takes stochastic rounding: with rounding to nearest
a low-precision average stalls, because a step adds less than half the distance to the next number.
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
    with_stored,
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
from rmsprop_jax._storage._slots import Slot, after_on_gpu, share, slots

__all__ = [
    "FORMATS",
    "Quantized",
    "Scaled",
    "Slot",
    "after_on_gpu",
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
    "quantize",
    "shard_map_specs",
    "share",
    "slots",
    "store",
    "to_bfloat16",
    "with_stored",
]
