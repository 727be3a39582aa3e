"""The lane of vLLM: in an environment of its own (make test-vllm), offline, on the CPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

if find_spec("vllm") is None:
    # make test-vllm has it, in an environment of its own.
    collect_ignore_glob = ["test_*.py"]

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
