"""Makes JAX run on the CPU instead of looking for a GPU, before any module makes an array."""

import jax

jax.config.update("jax_platforms", "cpu")
