"""For every test: eight simulated devices, fast compilation, reproducible property tests."""

import gc
from functools import partialmethod

import pytest

pytest.register_assert_rewrite("support")

from support import environment  # noqa: E402

environment.set_for_tests()

import hypothesis  # noqa: E402
import jax  # noqa: E402

hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("default")


def pytest_collection_finish():
    """Excludes imported objects from garbage collection, which would scan them all the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def optimized(request):
    """In a test marked `optimized`, ahead-of-time compilation optimizes as it does for users."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    compile_ = partialmethod(jax.stages.Lowered.compile, compiler_options=environment.OPTIMIZED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compile_)
        yield


@pytest.fixture
def x64():
    """64-bit types for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
