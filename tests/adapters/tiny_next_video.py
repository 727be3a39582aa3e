"""A small LLaVA-NeXT-Video with random weights, from real configs, and what it should answer, computed another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reference
from tests.adapters import independent, tiny
from tests.adapters.independent import Prompt

CLIP = {**tiny.VISION, "model_type": "clip_vision_model", "num_hidden_layers": 4}
TEXT = {**tiny.TEXT, "model_type": "llama"}


def model(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    vision: Any = CLIP,
    text: Any = TEXT,
    runs: bool = True,
    **settings: Any,
) -> Any:
    """`LlavaNextVideoForConditionalGeneration`, its weights spread so wide that attention is far from uniform.

    It never generates a placeholder. `runs=False` is for settings with which no model runs.
    """
    config = tiny.transformers.LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tiny.IMAGE,
        video_token_index=tiny.VIDEO,
        image_grid_pinpoints=[[40, 40], [40, 80], [80, 40]],
        **settings,
    )
    torch.manual_seed(seed)
    built = tiny.transformers.LlavaNextVideoForConditionalGeneration(config)
    tiny.spread(built)
    # Behind CLIP's normalisation, [CLS] would attend to all patches almost alike.
    for layer in built.model.vision_tower.encoder.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.data.mul_(5)
    built.set_attn_implementation(attention)
    if not runs:
        return built
    tiny.talkative(built.eval(), *(inputs_of(video_prompt(one)) for one in range(4)))
    built.lm_head.weight.data[tiny.VIDEO :] = 0
    return built.to(dtype)


def placeholders(frames: int = tiny.FRAMES) -> list[int]:
    """Placeholder ids for a video, which has no newline."""
    return [tiny.VIDEO] * (frames * tiny.TOKENS_PER_FRAME)


def video_prompt(seed: int, before: int = 4, after: int = 7, frames: int = tiny.FRAMES) -> Prompt:
    """Words, a video, and words."""
    ids = tiny.words(seed, before) + placeholders(frames) + tiny.words(seed + 1, after)
    return Prompt(ids, (tiny.film(seed, frames)[0],))


def inputs_of(*prompts: Prompt, side: str = "left") -> dict[str, Tensor]:
    """Arguments of the model for a batch of prompts."""
    inputs = tiny.batch([prompt.ids for prompt in prompts], side)
    inputs["pixel_values_videos"] = torch.stack([video for prompt in prompts for video in prompt.videos])
    return inputs


def attention_and_features(twin: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    """[CLS] attention `[F, P]` and states of [CLS] by transformers' own eager attention, which returns its weights."""
    tower = twin.model.vision_tower
    layer = twin.config.vision_feature_layer
    used = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    outputs = tower(video, output_attentions=True, output_hidden_states=True)
    tower.set_attn_implementation(used)
    # There is one more of the hidden states than of the layers' attentions: what enters the first layer.
    weights = outputs.attentions[layer if layer < 0 else layer - 1]
    return weights[:, :, 0, 1:].mean(1), outputs.hidden_states[layer][:, 0]


def pooled(twin: Any, grid: Tensor) -> Tensor:
    """`[F, 10, 10, ...]` pooled to `[F, 25, ...]`."""
    windows = grid.unflatten(1, (5, 2)).unflatten(3, (5, 2))
    reduced = windows.amax((2, 4)) if twin.config.spatial_pool_mode == "max" else windows.mean((2, 4))
    return reduced.flatten(1, 2)


def pruned_video(twin: Any, video: Tensor, hyperparameters: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embeddings of a video's kept tokens, and their places among its placeholders."""
    states = twin.model.vision_tower(video, output_hidden_states=True).hidden_states
    patches = states[twin.config.vision_feature_layer][:, 1:].unflatten(1, (10, 10))
    tokens = twin.model.multi_modal_projector(pooled(twin, patches))
    attention, features = attention_and_features(twin, video)
    attention = pooled(twin, attention.unflatten(1, (10, 10)))
    pruned = reference.prune(tokens, attention, features, None, **hyperparameters)
    return pruned.tokens.to(tokens.dtype), pruned.indices


def embedded(
    twin: Any, prompt: Prompt, hyperparameters: dict[str, Any] = tiny.HYPERPARAMETERS
) -> tuple[Tensor, Tensor]:
    """The row as the language model should see it: embeddings `[S, D]`, and original positions `[S]`."""
    pruned = [pruned_video(twin, video, hyperparameters) for video in prompt.videos]
    return independent.with_videos(twin, prompt, pruned, [len(placeholders(len(video))) for video in prompt.videos])


def logits(twin: Any, prompt: Prompt, hyperparameters: dict[str, Any] = tiny.HYPERPARAMETERS) -> Tensor:
    """Logits of every kept token `[S, V]`."""
    return independent.decoded(twin, *embedded(twin, prompt, hyperparameters))


def check_row(ours: Tensor, prompt: Prompt, twin: Any, hyperparameters: Any = tiny.HYPERPARAMETERS) -> None:
    """Check that logits `[T, V]` of a row without padding are the independent ones at kept tokens, zero elsewhere."""
    _, places = embedded(twin, prompt, hyperparameters)
    expected = logits(twin, prompt, hyperparameters)
    torch.testing.assert_close(ours[places], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    dropped = torch.ones(len(prompt.ids), dtype=torch.bool)
    dropped[places] = False
    assert not ours[dropped].any()
