"""The dialects against paths that the frameworks themselves took: see tests/golden/record.py."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from paths import assert_same_path, path, scheduled

from rmsprop_jax import dialects

RECORDS = {
    name: json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())
    for name in ("pytorch", "keras", "tensorflow_v1")
}
DIALECTS = {
    "pytorch": dialects.pytorch,
    "keras": dialects.keras,
    "tensorflow_v1": dialects.tensorflow_v1,
}


def arrays(leaves, dtype):
    return {k: np.asarray(v, dtype) for k, v in leaves.items()}


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name, record in RECORDS.items() for case in record["cases"]],
    ids=lambda x: x if isinstance(x, str) else f"{x['options']}, schedule={x['schedule']}",
)
def test_path_is_the_frameworks(name, case):
    record, options = RECORDS[name], case["options"]
    gradients, params = (arrays(record[k], np.float32) for k in ("gradients", "params"))
    optimizer = DIALECTS[name](**scheduled(options) if case["schedule"] else options)
    ours = path(optimizer, gradients, params)
    every = record["every"]
    ours = {k: v[every - 1 :: every] for k, v in ours.items()}
    assert_same_path(ours, arrays(case["path"], np.float64), params)


@pytest.mark.parametrize("name", DIALECTS)
def test_every_option_has_a_case(name):
    cases = RECORDS[name]["cases"]
    defaults = {k: p.default for k, p in inspect.signature(DIALECTS[name]).parameters.items()}
    del defaults["accumulator_dtype"]  # no framework's
    changed = {k for case in cases for k, v in case["options"].items() if v != defaults[k]}
    assert changed == set(defaults)
    assert {case["schedule"] for case in cases} == {False, True}
