"""A small llava model with random weights, prompts for it, and what it should answer, computed another way."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import reference
from tests.adapters import independent, tiny

IMAGE_TOKEN = -200
PAD = 0
SIDE = 9
"""Patches in a row: odd, like SigLIP's 27, so that pooling rounds up or down."""
FRAMES = 6
PIXELS = 4 * SIDE
VISION = tiny.VISION | {"image_size": PIXELS}
LAYOUTS = {"one_token": "bilinear", "grid": "average", "frame": "average", "no_token": "max"}
"""Newline positions, and for each the pooling of the model in these tests."""
TOKENS_PER_FRAME = {"bilinear": ceil(SIDE / 2) ** 2, "average": (SIDE // 2) ** 2, "max": (SIDE // 2) ** 2}
HYPERPARAMETERS: dict[str, Any] = {"retention_ratio": 0.3, "min_segments": 2, "dtm_ratio": 0.95}
"""With so large a share of merged tokens, some frames keep none."""


class Tower(nn.Module):
    """A vision tower as llava has it: the patches of the last layer, before any norm."""

    num_patches_per_side = SIDE
    image_size = PIXELS
    hidden_size = VISION["hidden_size"]

    def __init__(self) -> None:
        super().__init__()
        config = tiny.transformers.SiglipVisionConfig(**VISION, vision_use_head=False)
        self.vision_tower = tiny.transformers.SiglipVisionModel(config)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.vision_tower(images, output_hidden_states=True).hidden_states[-1]
        return hidden


def llava_qwen(module: ModuleType, newline: str, attention: str = "sdpa", **settings: Any) -> Any:
    """`LlavaQwenForCausalLM` of a module from `llava_lanes`, with newlines of videos placed as `newline` says."""
    text = {key: value for key, value in tiny.TEXT.items() if key != "model_type"}
    settings = {"mm_patch_merge_type": "spatial_unpad", "tokenizer_padding_side": "left"} | settings
    config = module.LlavaQwenConfig(
        **text, mm_newline_position=newline, mm_spatial_pool_mode=LAYOUTS.get(newline, "average"), **settings
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = module.LlavaQwenForCausalLM(config)
    model.model.vision_tower = Tower()
    hidden = config.hidden_size
    model.model.mm_projector = nn.Sequential(nn.Linear(Tower.hidden_size, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    model.model.image_newline = nn.Parameter(torch.empty(hidden))
    tiny.spread(model)
    return model.eval()


@dataclass(frozen=True)
class Prompt:
    """Token ids of a row, each `IMAGE_TOKEN` standing for the next of `visual`: a video, or the crops of an image."""

    ids: list[int]
    visual: tuple[Tensor, ...] = ()
    kinds: tuple[str, ...] = ()


def film(seed: int, frames: int = FRAMES) -> Tensor:
    """Frames `[F, 3, H, W]`: shots that drift."""
    return tiny.film(seed, frames)[0, ..., :PIXELS, :PIXELS].contiguous()


def video_prompt(seed: int, before: int = 4, after: int = 7) -> Prompt:
    ids = [*tiny.words(seed, before), IMAGE_TOKEN, *tiny.words(seed + 1, after)]
    return Prompt(ids, (film(seed),), ("video",))


def text_prompt(seed: int, count: int) -> Prompt:
    return Prompt(tiny.words(seed, count))


def inputs_of(*prompts: Prompt) -> dict[str, Any]:
    """Arguments of `forward`; a row of text has an entry among the images, as llava wants it."""
    inputs: dict[str, Any] = tiny.batch([prompt.ids for prompt in prompts])
    inputs["images"], inputs["modalities"] = [], []
    for prompt in prompts:
        inputs["images"] += prompt.visual or (film(0, 1),)
        inputs["modalities"] += prompt.kinds or ("image",)
    return inputs


def generation_inputs_of(*prompts: Prompt) -> dict[str, Any]:
    inputs = inputs_of(*prompts)
    return {"inputs": inputs.pop("input_ids")} | inputs


def _pooled(grid: Tensor, mode: str) -> Tensor:
    """`[F, C, SIDE, SIDE]` to `[F, N, C]`."""
    if mode == "bilinear":
        grid = functional.interpolate(grid, size=(ceil(SIDE / 2), ceil(SIDE / 2)), mode="bilinear")
    else:
        grid = {"average": functional.avg_pool2d, "max": functional.max_pool2d}[mode](grid, 2)
    return grid.flatten(2).transpose(1, 2)


def pruned_video(model: Any, head: Any, video: Tensor, hyperparameters: dict[str, Any]) -> list[Tensor | None]:
    """The video's embeddings with its newlines, None where one is left out."""
    mode, position = model.config.mm_spatial_pool_mode, model.config.mm_newline_position
    patches = model.model.vision_tower(video)
    tokens = _pooled(model.model.mm_projector(patches).transpose(1, 2).unflatten(2, (SIDE, SIDE)), mode)
    attention, features = independent.attention_and_features(head, patches)
    attention = _pooled(attention.view(len(video), 1, SIDE, SIDE), mode)[..., 0]
    pruned = reference.prune(tokens, attention, features, None, **hyperparameters)
    frames, number = tokens.shape[:2]
    stream: list[Tensor | None] = [None] * (frames * number)
    for index, token in zip(pruned.indices.tolist(), pruned.tokens.float(), strict=True):
        stream[index] = token
    newline = model.model.image_newline
    if position in ("grid", "frame"):
        row = isqrt(number) if position == "grid" else number
        rows = [stream[first : first + row] for first in range(0, len(stream), row)]
        return [
            token
            for tokens_of_row in rows
            for token in [*tokens_of_row, newline if any(one is not None for one in tokens_of_row) else None]
        ]
    return [*stream, newline] if position == "one_token" else stream


def image_embeddings(model: Any, crops: Tensor) -> Tensor:
    """Embeddings that an unpatched model computes for an image alone."""
    ids = torch.tensor([[1, IMAGE_TOKEN]])
    sizes = [(PIXELS, PIXELS)]
    prepared = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, [crops], ["image"], sizes)
    embeds: Tensor = prepared[4][0, 1:]
    return embeds


def embedded(model: Any, head: Any, prompt: Prompt, hyperparameters: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The row as the language model should see it: kept embeddings `[S, D]`, and their original positions `[S]`."""
    stream: list[Tensor | None] = []
    visual = iter(zip(prompt.visual, prompt.kinds, strict=True))
    for token in prompt.ids:
        if token != IMAGE_TOKEN:
            stream.append(model.model.embed_tokens(torch.tensor(token)))
            continue
        pixels, kind = next(visual)
        if kind == "video":
            stream += pruned_video(model, head, pixels, hyperparameters)
        else:
            stream += image_embeddings(model, pixels).unbind()
    places = [place for place, token in enumerate(stream) if token is not None]
    return torch.stack([token for token in stream if token is not None]), torch.tensor(places)


def logits(model: Any, head: Any, prompt: Prompt, hyperparameters: dict[str, Any] = HYPERPARAMETERS) -> Tensor:
    """Logits of every kept token `[S, V]`: the row alone, an explicit mask, no cache."""
    embeds, positions = embedded(model, head, prompt, hyperparameters)
    length = len(positions)
    mask = torch.full((length, length), torch.finfo(embeds.dtype).min).triu(1)
    hidden = model.model(
        inputs_embeds=embeds[None], attention_mask=mask[None, None], position_ids=positions[None], use_cache=False
    )[0]
    found: Tensor = model.lm_head(hidden)[0]
    return found


def generated(model: Any, head: Any, prompt: Prompt, count: int) -> tuple[list[int], Tensor]:
    """Greedy continuation, and the logits `[count, V]` it was chosen from."""
    ids, chosen = list(prompt.ids), []
    for _ in range(count):
        chosen.append(logits(model, head, Prompt(ids, prompt.visual, prompt.kinds))[-1])
        ids.append(int(chosen[-1].argmax()))
    return ids[len(prompt.ids) :], torch.stack(chosen)
