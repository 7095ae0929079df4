"""The TPU compiler without a TPU: extra `tpu`. Asked for by name: pytest tests/tpu."""

import os

import jax

# libtpu asks the machine for these where there is one.
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
jax.config.update("jax_platforms", "cpu")
