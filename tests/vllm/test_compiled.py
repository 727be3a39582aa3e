"""Language models that vLLM compiles, as a server does by default; most tests here have it run without.

On a CPU, vLLM compiles a language model in one graph. The pieces into which it cuts one for a GPU do not run here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm import engine
from tests.vllm.family import Family


@pytest.mark.parametrize("family", ["llava", "next-video", "internvl", "qwen2.5", "qwen3", "glm4.1"], indirect=True)
def test_compiled(family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    with engine.running(family.checkpoint, **family.settings(), enforce_eager=False) as running:
        mode = running.llm.llm_engine.vllm_config.compilation_config.mode
        assert mode.name == "DYNAMO_TRACE_ONCE"
        several = family.requests()
        for request, answer in zip(several.values(), running.answer(*several.values()), strict=True):
            family.check(request, answer)
