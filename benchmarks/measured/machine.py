"""Describes the machine of a measurement, to be recorded with the results."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, str | int | float]:
    """CPU, cores, load, software and source revision, ready for JSON. Call it before the measurement adds load."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_gpu() -> dict[str, str | int]:
    """The current CUDA device and its driver."""
    properties = torch.cuda.get_device_properties()
    driver = _printed_by(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "driver": driver.partition("\n")[0] or "unknown",
        "cuda": torch.version.cuda or "none",
    }


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Short revision of this checkout, marked where files differ from it; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return _printed_by(command) or "unknown"


def _printed_by(command: list[str]) -> str:
    """The output of a program run in this checkout; empty if it is absent or fails."""
    try:
        printed = subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return printed.decode().strip()
