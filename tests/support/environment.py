"""Flags that make tests fast, set before JAX starts; programs of users do not have them."""

import os
from collections.abc import Iterable
from importlib.metadata import version

# Eight simulated devices: Optax's own sharding tests ask for them by this variable.
_DEVICES = {"xla_force_host_platform_device_count": "8"}
# Slow machine code, compiled in less than half the time in one thread; and the options that undo
# this for a single compilation.
_FAST = {"xla_backend_optimization_level": "0", "xla_cpu_parallel_codegen_split_count": "1"}
OPTIMIZED: dict[str, bool | int] = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_parallel_codegen_split_count": 32,
}
# XLA ends the process at a flag that it does not know.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    _FAST["xla_cpu_use_fusion_emitters"] = "false"
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True


def set_for_tests() -> None:
    """Sets XLA's flags, and one thread per worker. What is already set stays."""
    given = os.environ.get("XLA_FLAGS", "")
    new = [f"--{name}={value}" for name, value in (_DEVICES | _FAST).items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *new])
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")


def for_program(*, optimized: bool) -> dict[str, str]:
    """The environment of a program that a test starts, without simulated devices."""
    flags = _flags_without([*_DEVICES, *(_FAST if optimized else ())])
    return os.environ | {"XLA_FLAGS": flags, "MPLBACKEND": "agg"}


def set_for_libtpu() -> None:
    """Removes XLA's flags: libtpu ends the process at a flag that it does not know."""
    os.environ["XLA_FLAGS"] = _flags_without(_FAST)


def _flags_without(names: Iterable[str]) -> str:
    given = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(flag for flag in given if flag.lstrip("-").partition("=")[0] not in names)
