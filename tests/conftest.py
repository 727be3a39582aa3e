"""Shared by all tests: the lane of those that run kernels."""

from tests.emulator.lane import emulated as emulated
from tests.emulator.lane import pytest_addoption as pytest_addoption
from tests.emulator.lane import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.emulator.lane import pytest_report_header as pytest_report_header
from tests.emulator.lane import pytest_terminal_summary as pytest_terminal_summary
