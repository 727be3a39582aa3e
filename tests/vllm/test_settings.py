"""What vLLM is asked for: refused at start-up in one message, or left as it is without the plug-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.adapters import tiny
from tests.vllm import checkpoints, engine
from tests.vllm.test_llava import requests, settings


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("llava")
    checkpoints.save_llava(checkpoints.llava(), root / "model")
    checkpoints.save_siglip(root / "siglip")
    return root


@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        ({}, {"video_pruning_rate": 0.99}, "K = 0"),
        ({"taus": 1}, {}, "got taus"),
        ({"siglip": "nowhere/at/all"}, {}, "nowhere"),
        ({"attention": "cls"}, {}, "attention must be one of"),
        ({"tau": "high"}, {}, "tau"),
    ],
)
def test_what_cannot_work_is_refused_at_start_up(
    directory: Path, own: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with (
        pytest.raises(Exception, match=message),
        engine.running(directory / "model", **(settings(directory, **own) | asked)),
    ):
        pass


def test_without_the_method_vllm_is_what_it_was(directory: Path) -> None:
    """Its own class's answers, to the bit, from the class that stands in front of it."""
    several = {name: one for name, one in requests().items() if name in ("text", "video", "image", "long")}
    with engine.running(directory / "model") as plain:
        # One by one: vLLM itself fails on two videos of different lengths in a batch.
        ours = [plain.answer(one)[0] for one in several.values()]
        used = type(plain.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.get_model())
    assert used.__module__.startswith("fastvid_kernels.vllm")
    from vllm.model_executor.models import ModelRegistry

    ModelRegistry.register_model(
        "LlavaOnevisionForConditionalGeneration",
        "vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration",
    )
    try:
        with engine.running(directory / "model") as upstream:
            theirs = [upstream.answer(one)[0] for one in several.values()]
    finally:
        ModelRegistry.register_model(
            "LlavaOnevisionForConditionalGeneration",
            "fastvid_kernels.vllm.llava_onevision:LlavaOnevisionForConditionalGeneration",
        )
    assert ours == theirs
    assert len(ours[1].ids) == engine.NEW
    assert ours[1].prompt == 11 + tiny.FRAMES * tiny.TOKENS_PER_FRAME + 1
