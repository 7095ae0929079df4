"""Kills runs that would outlive their test."""

import contextlib
import os
import signal

import pytest
from support.commands import STARTED


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    while STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)
