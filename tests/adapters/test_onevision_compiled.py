"""A pruned LLaVA-OneVision under `torch.compile`: its graphs and its answers, without code generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastvid_kernels.adapters import apply_fastvid, versions
from tests.adapters import tiny
from tests.adapters.test_onevision_prefill import inputs_of, video_prompt

CACHES = {
    "dynamic": lambda model: tiny.transformers.DynamicCache(config=model.config.text_config),
    "static": lambda model: tiny.transformers.StaticCache(config=model.config.text_config, max_cache_len=200),
}


@pytest.fixture
def model(siglip_directory: Any) -> Any:
    torch.compiler.reset()
    model = tiny.llava_onevision()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    return model


def test_prefill(model: Any) -> None:
    """The graph breaks where kept tokens are counted, and where the model checks its placeholders."""
    compiled = torch.compile(model, backend="eager")
    for seed in (3, 4):
        inputs = inputs_of(video_prompt(seed))
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compiled", ["wrapped", "in place"])
def test_a_model_that_was_compiled_and_run_before(compiled: str, siglip_directory: Any) -> None:
    """Compiled code does not notice new hooks, nor that they are gone."""
    model, twin = tiny.llava_onevision(), tiny.llava_onevision()
    call = torch.compile(model, backend="eager") if compiled == "wrapped" else model
    if compiled == "in place":
        model.compile(backend="eager")
    inputs = inputs_of(video_prompt(3))
    before = call(**inputs).logits
    for _ in range(2):
        for patched in (model, twin):
            apply_fastvid(patched, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
        torch.testing.assert_close(call(**inputs).logits, twin(**inputs).logits, rtol=0, atol=1e-5)
        for patched in (model, twin):
            patched.fastvid_handle.remove()
        torch.testing.assert_close(call(**inputs).logits, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", CACHES)
def test_decoding_is_one_graph(model: Any, cache: str) -> None:
    prompt = video_prompt(3)
    caches = [CACHES[cache](model) for _ in range(2)]
    for one in caches:
        model(**inputs_of(prompt), past_key_values=one)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for step, token in enumerate(tiny.words(5, 4)):
        inputs = {"input_ids": torch.tensor([[token]]), "position_ids": torch.tensor([[len(prompt.ids) + step]])}
        logits = [
            call(**inputs, past_key_values=one).logits for call, one in zip((model, compiled), caches, strict=True)
        ]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_calls_do_not_ask_for_a_version(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile on torch 2.11, which needs a machine with CUDA, cannot trace the import that asking takes."""
    monkeypatch.setattr(versions, "_installed", lambda: pytest.fail("a call asked for transformers' version"))
    cache = CACHES["dynamic"](model)
    prompt = video_prompt(3)
    model(**inputs_of(prompt), past_key_values=cache)
    model(input_ids=torch.tensor([[5]]), position_ids=torch.tensor([[len(prompt.ids)]]), past_key_values=cache)
