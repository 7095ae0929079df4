"""Leaves out the doctests that need a framework which is not installed: extra `frameworks`."""

from importlib.util import find_spec

collect_ignore = [
    f"rmsprop_jax/interop/{name}.py" for name in ("torch", "keras") if find_spec(name) is None
]
