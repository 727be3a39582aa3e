"""The lane of vLLM: in an environment of its own (make test-vllm), offline, on the CPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

from tests.vllm.engine import ENVIRONMENT

if find_spec("vllm") is None:
    # make test-vllm has it, in an environment of its own.
    collect_ignore_glob = ["test_*.py"]

os.environ |= ENVIRONMENT
