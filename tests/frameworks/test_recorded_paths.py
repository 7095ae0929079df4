"""The recorded trajectories agree with the frameworks of today. Needs the extra `frameworks`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.trajectories import assert_same_path

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(file.stem for file in GOLDEN.glob("*.json"))


def arrays(leaves):
    return {k: np.asarray(v) for k, v in leaves.items()}


@pytest.fixture
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    subprocess.run([sys.executable, GOLDEN / "record.py", "--output", folder], check=True)
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def test_golden_is_current(fresh, subtests):
    assert set(fresh) == set(NAMES)
    for name in NAMES:
        with subtests.test(name):
            compare(fresh[name], json.loads((GOLDEN / f"{name}.json").read_text()))


def compare(new, old):
    # NumPy only makes the problem, which is compared below.
    for record in (new, old):
        assert record["versions"].pop("numpy")
    assert new["versions"] == old["versions"]
    for given in ("every", "gradients", "params"):
        assert new[given] == old[given]
    assert len(new["cases"]) == len(old["cases"])
    for new_case, old_case in zip(new["cases"], old["cases"], strict=True):
        # Another CPU may round differently.
        new_path, old_path = (arrays(case.pop("path")) for case in (new_case, old_case))
        assert new_case == old_case
        assert_same_path(new_path, old_path, arrays(old["params"]), rtol=1e-6)
