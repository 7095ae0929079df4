"""JAX runs on the CPU, or it would look for a GPU. Here, before a module makes an array."""

import jax

jax.config.update("jax_platforms", "cpu")
