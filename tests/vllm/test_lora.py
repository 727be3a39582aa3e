"""Requests with LoRA adapters, against the models into which PEFT has merged them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.vllm import engine
from tests.vllm.family import Family
from tests.vllm.qwen import Qwen

peft = pytest.importorskip("peft")

LORA = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
PROJECTIONS = r".*language_model.*\.(q_proj|v_proj)"


def adapter(model: Any, targets: str, directory: Path, seed: int = 3) -> Any:
    """Save an adapter whose random weights change what the model says; returns a model into which it is merged."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=8, target_modules=targets, init_lora_weights=False)
    trained = peft.get_peft_model(copy.deepcopy(model), config)
    trained.save_pretrained(directory)
    return trained.merge_and_unload()


@pytest.mark.parametrize(
    "family", ["next-video", "internvl", "qwen2", "qwen2.5", "qwen3", "qwen3.5", "glm4.1"], indirect=True
)
def test_requests_with_adapters_and_without(family: Family, tmp_path: Path) -> None:
    adapters = [tmp_path / "one", tmp_path / "two"]
    merged = [adapter(family.model, PROJECTIONS, one, seed) for seed, one in enumerate(adapters)]
    several = list(family.requests().values())
    with engine.running(family.checkpoint, **family.settings(), **LORA) as running:
        # Beside requests with an adapter, vLLM on a CPU gives those without one the last adapter, text or video.
        plain = running.answer(*several)
        answers = running.answer(*[one for one in several for _ in adapters], adapters=adapters * len(several))
    for number, request in enumerate(several):
        family.check(request, plain[number])
        for one, model in enumerate(merged):
            with mock.patch.object(family, "model", model):
                family.check(request, answers[len(adapters) * number + one])


@pytest.mark.parametrize("family", ["internvl", "qwen3", "glm4.1"], indirect=True)
def test_an_adapter_of_the_embedding_is_refused(family: Qwen, tmp_path: Path) -> None:
    """By the plug-in for InternVL and Qwen3-VL, by vLLM itself for GLM."""
    adapter(family.model, r".*language_model\.embed_tokens", tmp_path)
    request = family.requests()["video"]
    with (
        engine.running(family.checkpoint, **family.settings(), **LORA) as running,
        pytest.raises(Exception, match="embed_tokens"),
    ):
        running.answer(request, adapters=[tmp_path])


@pytest.mark.parametrize("family", ["qwen2.5"], indirect=True)
def test_adapters_of_the_tower_are_refused(family: Qwen) -> None:
    asked = LORA | {"enable_tower_connector_lora": True}
    family.check_refused("--enable-tower-connector-lora must be off with fastvid", {}, asked)
