"""Eight virtual CPU devices for all tests, and reproducible properties."""

import os

import hypothesis
import jax
import pytest

# Optax's own sharding tests ask for the devices by this variable.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)

hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
# For the second and third environment of a run.
hypothesis.settings.register_profile(
    "few", hypothesis.settings.get_profile("default"), max_examples=5
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def x64():
    """64-bit types for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
