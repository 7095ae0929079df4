"""Optax's own tests, with our rmsprop instead of Optax's.

The wheel of Optax includes its tests. Four of its files run here with two changes: ``rmsprop``,
``scale_by_rms`` and ``scale_by_stddev`` are ours, and the tables of optimizers contain only
RMSprop, with more of its options. What the tests do and expect is unchanged.
"""

import ast
import importlib.util
import sys
import types

import optax
import pytest
from absl.testing import parameterized

import rmsprop_jax

pytestmark = pytest.mark.filterwarnings("default")  # Optax's tests, Optax's warnings

OURS = {name: getattr(rmsprop_jax, name) for name in ("rmsprop", "scale_by_rms", "scale_by_stddev")}

OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"eps_in_sqrt": False},
    {"bias_correction": True},
    {"centered": True},
    {"centered": True, "eps_in_sqrt": False, "momentum": 0.9},
    {"centered": True, "bias_correction": True, "eps": 1e-2},
]
PARTS = {"centered", "momentum", "nesterov"}


def named(options):
    return "_".join(["rmsprop", *(f"{k}_{v}" for k, v in options.items())])


TABLES = {
    "alias_test": {
        "_OPTIMIZERS_UNDER_TEST": tuple(
            {"opt_name": "rmsprop", "opt_kwargs": {"learning_rate": 5e-3, **options}}
            for options in OPTIONS
        ),
    },
    "sharding_test": {
        "OPTIMIZERS": {named(options): OURS["rmsprop"](1.0, **options) for options in OPTIONS},
    },
    "float64_test": {
        "ALL_MODULES": [
            (f"{name}_{i}", OURS[name], {k: v for k, v in options.items() if k not in PARTS})
            for name in ("scale_by_rms", "scale_by_stddev")
            for i, options in enumerate(OPTIONS)
        ]
        + [
            (named(options), OURS["rmsprop"], {"learning_rate": 0.1, **options})
            for options in OPTIONS
        ],
    },
    "transform_test": {},
}

# Which tests of each class concern RMSprop.
CHOSEN = {
    "AliasTest": lambda name: not name.startswith("test_explicit_dtype"),
    "ShardingTest": lambda name: "microbatch" not in name,
    "Float64Test": lambda _: True,
    "TransformTest": lambda name: (
        name in {"test_scalers_rmsprop", "test_scalers_stddev", "test_rms_match_adam"}
    ),
}


class Rewrite(ast.NodeTransformer):
    """Replaces the module's tables by ours, and removes skips by JAX's version."""

    def __init__(self, tables):
        self.tables = tables
        self.replaced = set()

    def visit_Assign(self, node):
        name = getattr(node.targets[0], "id", None)
        if name in self.tables:
            self.replaced.add(name)
            node.value = ast.parse(f"_rmsprop_jax_tables[{name!r}]", mode="eval").body
            ast.fix_missing_locations(node)
        return node

    def visit_If(self, node):
        # Optax compares JAX's version as a string, in which 0.10 is older than 0.7.
        return None if ast.unparse(node.test).startswith("jax.__version__ <") else node


class WithOurs(types.ModuleType):
    """A module of Optax in which three names are ours."""

    def __init__(self, module):
        super().__init__(module.__name__)
        self.__dict__.update(vars(module))
        self.__dict__.update({k: v for k, v in OURS.items() if hasattr(module, k)})


def load(file_name, tables):
    """Executes a test file of Optax with our names and tables, as a new module."""
    spec = importlib.util.find_spec(f"optax._src.{file_name}")
    with open(spec.origin) as file:
        rewrite = Rewrite(tables)
        source = rewrite.visit(ast.parse(file.read()))
    assert rewrite.replaced == set(tables), "Optax has renamed its tables"

    module = types.ModuleType(f"optax_{file_name}_with_ours")
    module.__file__ = spec.origin
    module._rmsprop_jax_tables = tables
    sys.modules[module.__name__] = module
    # The files say `from optax._src import alias`, which is ours during the import.
    replaced = {
        name: WithOurs(sys.modules[name]) for name in ("optax._src.alias", "optax._src.transform")
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, replacement in replaced.items():
            patch.setitem(sys.modules, name, replacement)
            patch.setattr(optax._src, name.rsplit(".", 1)[1], replacement)
        exec(compile(source, spec.origin, "exec"), vars(module))
    return module


def optaxs_cases():
    """The test classes of all files, reduced to the cases of RMSprop."""
    cases = {}
    for file_name, tables in TABLES.items():
        for name, case in vars(load(file_name, tables)).items():
            if isinstance(case, type) and issubclass(case, parameterized.TestCase):
                if name in CHOSEN:
                    cases[name] = case
                for method in [m for m in dir(case) if m.startswith("test")]:
                    if name in CHOSEN and not CHOSEN[name](method):
                        setattr(case, method, None)
    return cases


globals().update(optaxs_cases())


@pytest.mark.parametrize(
    ("name", "per_option"), [("AliasTest", 10), ("ShardingTest", 3), ("Float64Test", 3)]
)
def test_every_option_is_tested(name, per_option):
    """Fails if Optax stops using a table or renames a test."""
    cases = [
        m for m in vars(globals()[name]) if m.startswith("test") and getattr(globals()[name], m)
    ]
    assert len(cases) >= per_option * len(OPTIONS)


def test_transforms_are_tested():
    cases = {m for m in vars(globals()["TransformTest"]) if getattr(globals()["TransformTest"], m)}
    assert {"test_scalers_rmsprop", "test_scalers_stddev", "test_rms_match_adam"} <= cases


def test_ours_are_what_is_tested():
    module = sys.modules["optax_alias_test_with_ours"]
    assert module.alias.rmsprop is rmsprop_jax.rmsprop
    assert (
        sys.modules["optax_transform_test_with_ours"].transform.scale_by_rms is OURS["scale_by_rms"]
    )
    assert optax._src.alias.rmsprop is optax.rmsprop  # outside that module
