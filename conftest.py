"""Leaves out the doctests that need a framework which is not installed: extra `frameworks`."""

from importlib.util import find_spec

collect_ignore = [
    f"rmsprop_jax/interop/{module}.py"
    for module, framework in {"pytorch": "torch", "keras": "keras"}.items()
    if find_spec(framework) is None
]
