"""The lane of vLLM: in an environment of its own (make test-vllm), offline, on the CPU."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("vllm", reason="make test-vllm has vLLM in an environment of its own")

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
