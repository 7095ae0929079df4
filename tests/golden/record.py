"""Records trajectories of the frameworks' own RMSprops, for tests that run without them.

Needs the extra `frameworks`: python tests/golden/record.py. One file per framework:
versions, a small problem of tests/support/trajectories.py, and the parameters every fifth step.
"""

import argparse
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
STEPS, EVERY, WIDTH = 40, 5, 6

TORCH = {"lr": 1e-2}
TORCH_ALL = {
    "lr": 2e-2,
    "alpha": 0.9,
    "eps": 1e-4,
    "weight_decay": 1e-3,
    "momentum": 0.9,
    "maximize": True,
}
KERAS = {"learning_rate": 1e-2}
KERAS_ALL = {
    "learning_rate": 2e-2,
    "rho": 0.95,
    "momentum": 0.9,
    "epsilon": 1e-4,
    "weight_decay": 1e-2,
}
TF_KERAS = {"learning_rate": 1e-2}
TF_KERAS_ALL = {
    "learning_rate": 2e-2,
    "rho": 0.95,
    "momentum": 0.9,
    "epsilon": 1e-4,
    "decay": 0.1,
}
TIMM = {"lr": 1e-2}
TIMM_ALL = {"lr": 2e-2, "alpha": 0.95, "eps": 1e-3, "weight_decay": 1e-3, "momentum": 0.9}
OUTSIDE = {"lr_in_momentum": False}
DECOUPLED = {"decoupled_decay": True}
SB3 = {"lr": 7e-4}
TF1 = {"learning_rate": 1e-2}
TF1_ALL = {"learning_rate": 2e-2, "decay": 0.95, "momentum": 0.9, "epsilon": 1e-3}
CENTERED = {"centered": True}

# The arguments of each case, and whether its learning rate falls.
CASES = {
    "pytorch": [
        ({}, False),
        (TORCH, False),
        (TORCH | {"alpha": 0.9}, False),
        (TORCH | {"eps": 1e-2}, False),
        (TORCH | {"weight_decay": 1e-2}, False),
        (TORCH | {"momentum": 0.9}, False),
        (TORCH | CENTERED, False),
        (TORCH | {"maximize": True}, False),
        (TORCH | {"momentum": 0.9}, True),
        *((TORCH_ALL | more, falls) for more in ({}, CENTERED) for falls in (False, True)),
    ],
    "keras": [
        ({}, False),
        (KERAS, False),
        (KERAS | {"rho": 0.99}, False),
        (KERAS | {"momentum": 0.9}, False),
        (KERAS | {"epsilon": 1e-2}, False),
        (KERAS | CENTERED, False),
        (KERAS | {"weight_decay": 1e-2}, False),
        (KERAS | {"clipnorm": 0.5}, False),
        (KERAS | {"clipvalue": 0.1}, False),
        (KERAS | {"global_clipnorm": 0.5}, False),
        (KERAS | {"momentum": 0.9}, True),
        (KERAS_ALL | {"clipnorm": 0.5}, False),
        (KERAS_ALL | {"clipvalue": 0.1}, True),
        (KERAS_ALL | CENTERED | {"clipnorm": 0.5}, True),
        (KERAS_ALL | CENTERED | {"global_clipnorm": 0.5}, False),
    ],
    "tf_keras": [
        ({}, False),
        (TF_KERAS, True),
        (TF_KERAS | {"momentum": 0.9}, False),
        (TF_KERAS | {"epsilon": 1e-2}, False),
        (TF_KERAS | {"epsilon": 0.0}, False),
        (TF_KERAS | {"decay": 0.1}, False),
        (TF_KERAS | CENTERED, False),
        (TF_KERAS | {"clipnorm": 0.5, "clipvalue": 0.1}, False),
        (TF_KERAS | {"global_clipnorm": 0.5}, False),
        *((TF_KERAS_ALL | more, falls) for more in ({}, CENTERED) for falls in (False, True)),
    ],
    "timm": [
        ({}, False),
        (TIMM | {"momentum": 0.9}, True),
        (TIMM | {"weight_decay": 1e-2}, False),
        (TIMM | {"weight_decay": 1e-2} | DECOUPLED, False),
        (TIMM | CENTERED, False),
        *(
            (TIMM_ALL | more, True)
            for more in ({}, CENTERED, OUTSIDE, DECOUPLED, OUTSIDE | DECOUPLED)
        ),
    ],
    "stable_baselines3": [
        ({}, False),
        (SB3 | {"eps": 1e-5}, False),
        (SB3 | {"momentum": 0.9}, True),
        *((TIMM_ALL | more, falls) for more in ({}, CENTERED) for falls in (False, True)),
    ],
    "tensorflow_v1": [
        (TF1, False),
        (TF1 | {"decay": 0.99}, False),
        (TF1 | {"momentum": 0.9}, False),
        (TF1 | {"epsilon": 1.0}, False),
        (TF1 | CENTERED, False),
        (TF1 | {"momentum": 0.9}, True),
        *((TF1_ALL | more, falls) for more in ({}, CENTERED) for falls in (False, True)),
    ],
}
SEEDS = {"pytorch": 0, "keras": 1, "tensorflow_v1": 2}
PACKAGES = {
    "pytorch": ["torch", "numpy"],
    "keras": ["keras", "tensorflow", "numpy"],
    "tf_keras": ["tf-keras", "tensorflow", "numpy"],
    "timm": ["timm", "torch", "numpy"],
    "stable_baselines3": ["stable-baselines3", "torch", "numpy"],
    "tensorflow_v1": ["tensorflow", "numpy"],
}


def recorded(framework, framework_path, gradients, params):
    def case(options, schedule):
        taken = framework_path(options, gradients, params, schedule)
        path = {k: rounded_lists(v[EVERY - 1 :: EVERY]) for k, v in taken.items()}
        return {"options": options, "schedule": schedule, "path": path}

    return {
        "versions": {name: version(name).partition("+")[0] for name in PACKAGES[framework]},
        "every": EVERY,
        "gradients": {k: rounded_lists(g) for k, g in gradients.items()},
        "params": {k: rounded_lists(w) for k, w in params.items()},
        "cases": [case(*options_and_schedule) for options_and_schedule in CASES[framework]],
    }


def rounded_lists(array):
    """Nested lists of numbers with nine digits, enough to restore any float32."""
    if array.ndim:
        return [rounded_lists(row) for row in array]
    return float(f"{array:.9g}")


def text(record):
    """JSON with one line per step."""
    indented = json.dumps(record, indent=1)
    joined = re.sub(r"\[[^][{}]*\]", lambda row: " ".join(row[0].split()), indented)
    return joined.replace("[ ", "[").replace(" ]", "]") + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER")
    output = parser.parse_args().output

    sys.path.insert(0, str(FOLDER.parent))
    from support import frameworks
    from support.trajectories import problem

    for framework in CASES:
        # torch's weight decay needs it: see tests/frameworks/test_parity.py.
        smallest = 1e-3 if "torch" in PACKAGES[framework] else 1e-6
        gradients, params = problem(SEEDS.get(framework, 3), STEPS, WIDTH, smallest)
        framework_path = getattr(frameworks, f"{framework}_path")
        record = recorded(framework, framework_path, gradients, params)
        (output / f"{framework}.json").write_text(text(record))


if __name__ == "__main__":
    main()
