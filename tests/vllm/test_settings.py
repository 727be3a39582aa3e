"""Settings of vLLM: those that cannot work are refused at start-up; without ours, vLLM behaves as always."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastvid_kernels.vllm import register
from tests.vllm import engine
from tests.vllm.family import Family

FAMILIES = ["llava", "next-video", "internvl", "internvl-chat", "qwen2", "qwen2.5", "qwen3", "qwen3.5", "glm4.1"]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, indirect=True)
STRETCHED = {"text_config": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}}
WITHOUT_PLUGIN = os.environ | {"VLLM_PLUGINS": ""}


@pytest.mark.parametrize("family", ["llava"], indirect=True)
@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        ({}, {"video_pruning_rate": 0.99}, "K = 0"),
        ({"taus": 1}, {}, "got taus"),
        ({"siglip": "nowhere/at/all"}, {}, "nowhere"),
        ({"attention": "cls"}, {}, "attention must be one of"),
        ({"tau": "high"}, {}, "tau"),
        ({}, {"hf_overrides": STRETCHED}, "rope_type must be 'default' with fastvid, got 'linear'"),
        ({}, {"enable_prompt_embeds": True}, "--enable-prompt-embeds must be off with fastvid"),
        ({}, {"mm_encoder_only": True}, "--mm-encoder-only, .*, must be off with fastvid"),
    ],
)
def test_what_cannot_work_is_refused_at_start_up(
    family: Family, own: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    family.check_refused(message, own, asked)


@pytest.mark.parametrize("family", ["qwen2.5"], indirect=True)
def test_a_model_of_another_class_is_refused(family: Family) -> None:
    """vLLM itself would silently prune nothing."""
    other = {"hf_overrides": {"architectures": ["KeyeForConditionalGeneration"]}}
    message = "fastvid is for Llava.*, got KeyeForConditionalGeneration"
    with pytest.raises(Exception, match=message), engine.running(family.checkpoint, **family.settings(), **other):
        pass


@pytest.mark.parametrize(
    "family", ["llava", "next-video", "internvl", "internvl-chat", "qwen2", "glm4.1"], indirect=True
)
def test_a_rate_without_a_method_is_refused_where_vllm_has_none(family: Family) -> None:
    """Without the plug-in vLLM takes the rate, and silently prunes nothing."""
    settings = family.engine_settings | {"limit_mm_per_prompt": family.limits}
    with (
        pytest.raises(Exception, match="'evs' is not supported"),
        engine.running(family.checkpoint, video_pruning_rate=0.5, **settings),
    ):
        pass


@pytest.mark.parametrize("family", ["qwen2.5"], indirect=True)
@pytest.mark.parametrize("rate", [None, 0.0])
def test_the_method_without_a_rate_is_refused(family: Family, rate: float | None) -> None:
    """vLLM would silently prune nothing."""
    settings = family.settings() | {"video_pruning_rate": rate}
    with (
        pytest.raises(Exception, match=f"--video-pruning-rate must be above 0 .* got {rate}"),
        engine.running(family.checkpoint, **settings),
    ):
        pass


def test_with_an_unknown_version_of_vllm_nothing_is_added(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllm.version.__version__", "0.34.0")
    monkeypatch.setattr("fastvid_kernels.vllm.method.add_method", pytest.fail)
    register()
    assert "fastvid_kernels supports vLLM 0.32 and 0.33, got 0.34.0" in caplog.text


@EVERY_FAMILY
def test_without_the_method_vllm_is_what_it_is_without_the_plug_in(family: Family, tmp_path: Path) -> None:
    """Bit for bit, though the plug-in's classes take the place of vLLM's."""
    # One by one: vLLM itself fails on two videos of different lengths in a batch.
    several = [one for name, one in family.requests().items() if name in ("text", "video", "image", "long")]
    requests, answers = tmp_path / "requests", tmp_path / "answers"
    settings = family.engine_settings | {"limit_mm_per_prompt": family.limits}
    requests.write_bytes(pickle.dumps((settings, several)))
    found = []
    # Each in a process of its own: an engine that was compiled earlier in a process changes the bits of later ones.
    for environment in (os.environ, WITHOUT_PLUGIN):
        program = [sys.executable, "-m", "tests.vllm.alone", family.checkpoint, requests, answers]
        subprocess.run(program, env=environment, check=True)
        found.append(pickle.loads(answers.read_bytes()))
    (module, imported, ours), (their_module, their_imported, theirs) = found
    assert (module.startswith("fastvid_kernels.vllm."), imported) == (True, True)
    assert (their_module.startswith("vllm.model_executor.models."), their_imported) == (True, False)
    assert ours == theirs


@pytest.mark.parametrize("family", ["qwen3.5"], indirect=True)
def test_vllm_s_own_configuration_of_a_model_is_done(family: Family) -> None:
    """vLLM's hook for Qwen3.5 reads from the checkpoint in what dtype states are kept."""
    asked = {"hf_overrides": {"text_config": {"mamba_ssm_dtype": "bfloat16"}}}
    with engine.running(family.checkpoint, **family.settings(), **asked) as running:
        cache = running.llm.llm_engine.vllm_config.cache_config
    assert cache.mamba_ssm_cache_dtype == "bfloat16"


def test_without_the_plug_in_there_is_no_such_method() -> None:
    """vLLM gives the same message as for any other unknown name."""
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    asked = ["--video-pruning-rate", "0.9", "--video-pruning-method"]
    errors = [
        subprocess.run([*program, *asked, name], env=WITHOUT_PLUGIN, capture_output=True, text=True)
        for name in ("fastvid", "slowvid")
    ]
    assert [one.returncode for one in errors] == [2, 2]
    first, second = (one.stderr.strip().rpartition("\n")[2] for one in errors)
    assert "argument --video-pruning-method: invalid choice: 'fastvid'" in first
    assert first.replace("fastvid", "slowvid") == second
