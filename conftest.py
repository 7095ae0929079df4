"""The option `--no-skips`, and doctests to ignore because their framework is not installed."""

from importlib.util import find_spec

import pytest

collect_ignore = [
    f"rmsprop_jax/interop/{module}.py"
    for module, framework in {"_torch_modules": "torch", "keras": "keras"}.items()
    if find_spec(framework) is None
]


def pytest_addoption(parser):
    """`.ci/run` sets it in PYTEST_ADDOPTS."""
    parser.addoption("--no-skips", action="store_true", help="fail if any test is not run")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """With --no-skips, fails the run if a test was skipped, deselected or expected to fail."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("no_skips") or reporter is None:
        return
    kinds = ("skipped", "deselected", "xfailed", "xpassed")
    counts = {kind: len(reporter.stats.get(kind, [])) for kind in kinds}
    if any(counts.values()):
        reporter.write_line(f"\n--no-skips: {counts}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
