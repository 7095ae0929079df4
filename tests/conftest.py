"""For every test: eight simulated devices, quick compilations, reproducible properties."""

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
    """What is imported stays: Python need not look through it for garbage after every trace."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def optimized(request):
    """Programs that a test marked `optimized` compiles ahead of time are as users have them."""
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
