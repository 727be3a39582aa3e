"""InternVL served: what only it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvid_kernels.vision import ATTENTION_SUBSTITUTES
from fastvid_kernels.vllm import processing
from fastvid_kernels.vllm.startup import rotary_positions
from tests.adapters import tiny
from tests.vllm import engine
from tests.vllm.engine import Engine, Request
from tests.vllm.internvl import CONTEXT, KEPT_A_FRAME, NAMES, VIDEO_PAD, InternVL, InternVLChat, pooled
from tests.vllm.llava import video, words

EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
here = pytest.mark.parametrize("family", ["internvl"], indirect=True)
both = pytest.mark.parametrize("family", ["internvl", "internvl-chat"], indirect=True)


@both
def test_the_tower_sees_videos_one_by_one(family: InternVL, served: Engine) -> None:
    """So that no video's tokens depend on those beside it; and a long one in parts, for which there is memory."""
    # Of an engine beside which no other has run: that would have taken its groups of ranks away.
    given: list[int] = []
    tower = served.model.vision_model if isinstance(family, InternVLChat) else served.model.vision_tower
    handle = tower.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    served.forget()
    request = Request([*words(5, 3), family.video, *words(6, 4), family.video], (video(40), video(41, frames=40)))
    family.check(request, *served.answer(request))
    handle.remove()
    assert given == [tiny.FRAMES, 32, 8]


@both
def test_positions_beyond_vllm_s_table_are_refused(
    family: InternVL, served: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt and its answer may need 1,024 positions of their own, beside which what 10 frames drop has room here."""
    dropped = tiny.TOKENS_PER_FRAME - KEPT_A_FRAME
    monkeypatch.setattr(processing, "rotary_positions", lambda config: 1024 + 10 * dropped)
    served.forget()
    family.check(request := Request([family.video, *words(1, 3)], (video(30, 10),)), *served.answer(request))
    with pytest.raises(ValueError, match=f"got {11 * dropped} positions of dropped tokens"):
        served.answer(Request([*words(1, 3), family.video], (video(31, 11),)))


@both
def test_the_prompt_holds_the_kept_tokens_and_the_numbers_of_frames(family: InternVL, served: Engine) -> None:
    request = family.requests()["long"]
    (answer,) = served.answer(request)
    dropped = 24 * (tiny.TOKENS_PER_FRAME - KEPT_A_FRAME)
    assert answer.prompt == len(family.unpruned(request)[0]) - dropped


@here
def test_unpruned_prompts_are_as_transformers_writes_them(family: InternVL) -> None:
    frames = video(1, frames=12)
    made = family.processor(text="<video>", videos=[frames], return_tensors="pt")
    ids, _ = family.unpruned(Request([family.video], (frames,)))
    assert made.input_ids[0].tolist() == ids
    torch.testing.assert_close(made.pixel_values, family.pixels(frames))


@both
def test_positions_that_bfloat16_does_not_have(family: InternVL) -> None:
    """They end beyond 1,600; which tokens are kept is read from the pruner, since dtypes differ."""
    request = Request([*words(20, 9), family.video, *words(21, 10)], (video(22, frames=44),))
    with engine.running(family.checkpoint, **family.settings(), dtype="bfloat16") as running:
        kept, given = running.watch()
        (answer,) = running.answer(request, new=1)
    ids, ((_, places),) = family.unpruned(request)
    keep = torch.ones(len(ids), dtype=torch.bool)
    keep[places] = False
    keep[places[kept[0]]] = True
    assert answer.prompt == keep.sum()
    assert torch.equal(given[0][:, : answer.prompt], keep.nonzero()[:, 0].expand(3, -1))


@both
def test_what_vllm_warms_up_with(family: InternVL) -> None:
    """vLLM refuses a video that takes more tokens than its warm-up's, if that is more than it takes at once."""
    short = {"hf_overrides": {"text_config": {"max_position_embeddings": 512}}, "max_model_len": 512}
    short |= {"max_num_batched_tokens": 400, "limit_mm_per_prompt": {"video": 1, "image": 0}}
    request = Request([*words(1, 3), family.video], (video(1, frames=25),))
    with engine.running(family.checkpoint, **(family.settings() | short)) as running:
        (answer,) = running.answer(request)
        assert answer.prompt > 400
        family.check(request, answer)


@pytest.mark.parametrize(
    ("family", "stray"),
    [("internvl", CONTEXT), ("internvl-chat", CONTEXT), ("internvl-chat", VIDEO_PAD)],
    indirect=["family"],
)
def test_a_placeholder_in_the_text_before_a_video(family: InternVL, served: Engine, stray: int) -> None:
    with pytest.raises(ValueError, match="must not contain a placeholder of its own"):
        served.answer(Request([*words(1, 3), stray, family.video], (video(2),)))


def test_a_tokenizer_without_tokens_for_images_and_videos(tmp_path: Path) -> None:
    """As those of InternVL's own checkpoints, for which "<video>" and "<image>" are several tokens."""
    family = InternVLChat(tmp_path, named={one: NAMES[one] for one in NAMES if one not in ("<video>", "<image>")})
    tokenizer = family.processor.tokenizer
    written = {family.video: "<video>", family.image: "<image>"}
    with engine.running(family.checkpoint, **family.settings()) as running:
        for name in ("adjacent videos", "video last", "image, video, image"):
            given = family.requests()[name]
            # Some ids of the vocabulary stand for no character.
            ids = [one for one in given.ids if one in written or len(tokenizer.decode([one])) == 1]
            spelt = [tokenizer(written.get(one) or tokenizer.decode([one]))["input_ids"] for one in ids]
            sent = replace(given, ids=[one for word in spelt for one in word])
            assert len(sent.ids) > len(ids)
            family.check(replace(given, ids=ids), *running.answer(sent))


def test_two_ranks_that_do_not_divide_the_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM then computes the tower on each of them."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    family = InternVLChat(tmp_path, {"num_attention_heads": 1})
    with engine.running(family.checkpoint, **family.settings(), tensor_parallel_size=2) as running:
        family.check(request := family.requests()["video"], *running.answer(request))


@pytest.mark.parametrize("make", [InternVL, InternVLChat])
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        # As in InternViT-6B.
        ({"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False}, {}),
        ({}, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
        ({}, {"model_type": "qwen2"}),
    ],
    ids=["normalized queries and keys", "dynamic RoPE", "Qwen2"],
)
def test_other_settings_of_the_model(make: Any, vision: dict[str, Any], text: dict[str, Any], tmp_path: Path) -> None:
    family = make(tmp_path, vision, text)
    with engine.running(family.checkpoint, **family.settings()) as running:
        for request in (family.requests()["video"], family.short(3)):
            family.check(request, *running.answer(request))
        rotary = next(one for one in running.model.modules() if hasattr(one, "cos_sin_cache"))
        assert len(rotary.cos_sin_cache) == rotary_positions(running.llm.llm_engine.vllm_config.model_config)


@pytest.mark.parametrize("make", [InternVL, InternVLChat])
def test_a_mixture_of_experts_compiled(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM compiles this language model for one row of positions."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    family = make(tmp_path / "model", text=EXPERTS)
    with engine.running(family.checkpoint, **family.settings(), enforce_eager=False) as running:
        assert type(running.model.language_model).__name__ == "Qwen3MoeForCausalLM"
        for name in ("video", "image, video, image"):
            family.check(request := family.requests()[name], *running.answer(request))


@both
@pytest.mark.parametrize("name", ["uniform", "norm"])
def test_a_substitute_chosen_by_name(family: InternVL, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def substitute(pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        states = family.model.model.vision_tower(pixels).last_hidden_state
        return pooled(ATTENTION_SUBSTITUTES[name](states[:, 1:])), None

    monkeypatch.setattr(family, "attention_and_features", substitute)
    with engine.running(family.checkpoint, **family.settings(attention=name)) as running:
        family.check(request := family.requests()["video"], *running.answer(request))


@pytest.mark.parametrize("family", ["internvl-chat"], indirect=True)
def test_graphs_of_the_tower_hold_no_videos(family: InternVL, served: Engine) -> None:
    """They would leave pruning out."""
    assert served.model.get_encoder_cudagraph_config().modalities == ["image"]


@here
@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        ({}, {"video_pruning_rate": 0.99}, "K = 0"),
        ({"siglip": "somewhere"}, {}, "attention must be one of cls, .* got siglip"),
        ({"attention": "mean-key"}, {}, "attention must be one of cls, .* got mean-key"),
        ({}, {"hf_overrides": {"vision_feature_layer": -2}}, "vision_feature_layer of the model must be -1, got -2"),
        ({}, {"hf_overrides": {"ps_version": "v1"}}, "ps_version of the model must be 'v2', got 'v1'"),
        ({}, {"hf_overrides": {"downsample_ratio": 0.75}}, "downsample_ratio, .* got 10 by 10 patches and 0.75"),
        ({}, {"hf_overrides": {"downsample_ratio": 0.25}}, "downsample_ratio, .* got 10 by 10 patches and 0.25"),
    ],
)
def test_what_cannot_work_is_refused_at_start_up(
    family: InternVL, own: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    family.check_refused(message, own, asked)


@pytest.mark.parametrize("family", ["internvl-chat"], indirect=True)
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode must be 'weights' with fastvid, got 'data'"),
        (
            {"hf_overrides": {"llm_config": {"rope_parameters": {"rope_type": "dynamic", "alpha": 2.0}}}},
            "must be 'default' or 'dynamic' with fastvid, got 'dynamic' with alpha",
        ),
    ],
)
def test_what_is_refused_in_internvl_s_own_format(family: InternVL, asked: dict[str, Any], message: str) -> None:
    family.check_refused(message, {}, asked)


def test_a_language_model_without_videos_is_refused(tmp_path: Path) -> None:
    family = InternVLChat(tmp_path, text={"model_type": "llama"})
    family.check_refused("must be a qwen2, qwen3 or qwen3_moe with fastvid, got llama", {}, {})
