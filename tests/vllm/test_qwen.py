"""Qwen and GLM served: what only they have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.adapters.tiny_qwen import END, START, VIDEO, words
from tests.vllm import checkpoints, engine
from tests.vllm.engine import Engine, Request
from tests.vllm.qwen import CLIP, WIDE, Qwen, video

QWEN = ["qwen2", "qwen2.5", "qwen3", "qwen3-moe", "qwen3.5"]
every = pytest.mark.parametrize("family", [*QWEN, "glm4.1", "glm4.6"], indirect=True)


@pytest.mark.parametrize("family", QWEN, indirect=True)
def test_a_video_needs_text_behind_it(family: Qwen, served: Engine) -> None:
    """A video's last token places what follows, but may be dropped; Qwen3-VL ends videos with a word of its own."""
    bare = Request([*words(1, 2), START, VIDEO], (video(1),))
    adjacent = Request([START, VIDEO, VIDEO, END], (video(1), video(2)))
    for request in (bare, adjacent):
        if family.kind.startswith("qwen3"):
            family.check(request, *served.answer(request))
        else:
            with pytest.raises(ValueError, match="must be followed by text"):
                served.answer(request)


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"], indirect=True)
def test_a_video_s_embeddings_are_refused(family: Qwen, served: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM allows them wherever a connector for caches may need them; in the model they would end the engine."""
    multimodal = served.llm.llm_engine.model_config.multimodal_config
    monkeypatch.setattr(multimodal, "enable_mm_embeds", True)
    grid = torch.tensor([[6, 6, 10]])
    width = served.model.embedding_width
    embedded = {"video_embeds": torch.zeros(90, width), "video_grid_thw": grid, "second_per_grid_ts": torch.ones(1),
                "timestamps": [[0.5] * 6]}  # fmt: skip
    with pytest.raises(ValueError, match="a video must be given as frames"):
        served.llm.generate([{"prompt_token_ids": [*CLIP, *words(1, 3)], "multi_modal_data": {"video": embedded}}])
    request = Request([*CLIP, *words(1, 3)], (video(1),))
    family.check(request, *served.answer(request))


@pytest.mark.parametrize("family", ["qwen2", "qwen2.5", "qwen3", "glm4.1"], indirect=True)
def test_the_tower_sees_videos_one_by_one(family: Qwen, served: Engine) -> None:
    """vLLM's runners for a CPU, and V1's for a GPU, give a model that prunes one video at a time; V2 does not."""
    # Of an engine beside which no other has run: that would have taken its groups of ranks away.
    model = served.model
    clips = [
        family.processor(
            text=family.processor.video_token,
            videos=[frames],
            video_metadata=[{key: value for key, value in metadata.items() if key != "do_sample_frames"}],
            do_sample_frames=False,
            return_tensors="pt",
        )
        for frames, metadata in (video(1), video(2, 18, WIDE))
    ]
    several = {
        "type": "pixel_values_videos",
        "pixel_values_videos": torch.cat([one.pixel_values_videos for one in clips]),
        "video_grid_thw": torch.cat([one.video_grid_thw for one in clips]),
    }
    vllms = next(one for one in type(model).__mro__ if one.__module__.startswith("vllm."))
    seen = []

    def run(video_input: Any) -> Any:
        seen.append(len(video_input["video_grid_thw"]))
        return vllms._process_video_input(model, video_input)

    width = checkpoints.QWEN_TEXT["hidden_size"]
    with torch.inference_mode():
        found = model.pruned_videos(run, several, width)
        alone = [model.pruned_videos(run, {**one, "type": several["type"]}, width) for one in clips]
    assert seen == [1, 1, 1, 1]
    for (_, kept), [(_, expected)] in zip(found, alone, strict=True):
        assert torch.equal(kept.indices, expected.indices)
        assert torch.equal(kept.tokens, expected.tokens)


@pytest.mark.parametrize("family", ["qwen2", "qwen2.5", "qwen3", "glm4.1"], indirect=True)
def test_positions_that_bfloat16_does_not_have(family: Qwen) -> None:
    """The video's positions begin beyond 256; which tokens are kept is read from the pruner, since dtypes differ."""
    request = Request([*words(20, 301), *CLIP, *words(21, 10)], (video(22, frames=40),))
    with engine.running(family.checkpoint, **family.settings(), dtype="bfloat16") as running:
        kept, given = running.watch()
        (answer,) = running.answer(request, new=1)
    positions, types = family.positions(request)
    keep = types != 2
    keep[(types == 2).nonzero()[:, 0][kept[0]]] = True
    assert answer.prompt == int(keep.sum())
    assert torch.equal(given[0][:, : answer.prompt], positions[:, keep])


@every
def test_a_video_of_too_small_frames(family: Qwen, served: Engine) -> None:
    with pytest.raises(ValueError, match="K = 0"):
        served.answer(Request(CLIP, (video(1, 8, (8, 16)),)))


@every
def test_what_vllm_warms_up_with_is_processed(family: Qwen, served: Engine) -> None:
    """vLLM itself reports only that its warm-up failed, not why."""
    processor = served.llm.llm_engine.renderer.mm_processor
    counts = {"image": 1, "video": 1 if family.is_glm else 2}
    made = processor.get_dummy_mm_inputs(counts)["mm_placeholders"]
    assert {name: len(ranges) for name, ranges in made.items()} == counts


@pytest.mark.parametrize("family", ["qwen2"], indirect=True)
def test_graphs_of_the_tower_hold_no_videos(family: Qwen, served: Engine) -> None:
    """They would leave pruning out."""
    assert served.model.get_encoder_cudagraph_config().modalities == ["image"]


@pytest.mark.parametrize("family", ["glm4.1"], indirect=True)
def test_timestamps_that_do_not_fit_the_frames(family: Qwen, served: Engine) -> None:
    """vLLM computes timestamps without the request's fps; unpruned, such a request ends the engine."""
    frames, metadata = video(1, 40)
    sampled = Request(CLIP, ((frames, metadata | {"fps": 8.0, "duration": 5.0, "do_sample_frames": True}),))
    with pytest.raises(ValueError, match="one timestamp for each of its"):
        served.llm.generate([sampled.for_vllm() | {"mm_processor_kwargs": {"fps": 1}}], use_tqdm=False)


@pytest.mark.parametrize("family", ["glm4.6"], indirect=True)
def test_timestamps_are_whole_seconds(family: Qwen, served: Engine) -> None:
    """As vLLM writes them. All placeholders stand in the first frame, so the timestamps follow one another."""
    frames, metadata = video(1, 12)
    request = Request(CLIP, ((frames, metadata | {"fps": 3.0, "duration": 4.0}),))
    (output,) = served.llm.generate([request.for_vllm()], use_tqdm=False)
    prompt = family.processor.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=True)
    assert prompt == "".join(f"{first // 3}.0 seconds" for first in range(0, 12, 2))
