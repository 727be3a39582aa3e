"""Shared by all tests: the plugin for tests that run kernels, and an option for untested versions."""

import os

import pytest

from tests.emulator import lane
from tests.emulator.lane import emulated as emulated
from tests.emulator.lane import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.emulator.lane import pytest_report_header as pytest_report_header
from tests.emulator.lane import pytest_terminal_summary as pytest_terminal_summary


def pytest_addoption(parser: pytest.Parser) -> None:
    lane.pytest_addoption(parser)
    parser.addoption("--any-version", action="store_true", help="try adapters on versions of transformers they refuse")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # Processes that share cores get one thread each, unless told otherwise: with more, they take ten times as long.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.option.any_version:
        from fastvid_kernels.adapters import versions

        versions.TOO_NEW = "999"
