"""A small LLaVA-OneVision with random weights, from real configs; prompts and videos for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

VIDEO, IMAGE, PAD = 120, 121, 0
GRID = 10
TOKENS_PER_FRAME = 25
FRAMES = 6
HYPERPARAMETERS: dict[str, Any] = {"retention_ratio": 0.25, "min_segments": 4}
KEPT = FRAMES * 6

VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 40,
    "patch_size": 4,
}
TEXT = {
    "model_type": "qwen2",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}


def llava_onevision(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    text: dict[str, Any] = TEXT,
    vision: dict[str, Any] = VISION,
) -> Any:
    """`LlavaOnevisionForConditionalGeneration`, its weights spread so wide that attention is far from uniform."""
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision | {"vision_use_head": False},
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[40, 40], [40, 80], [80, 40]],
    )
    torch.manual_seed(seed)
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    spread(model)
    model.set_attn_implementation(attention)
    return model.to(dtype).eval()


def siglip(seed: int = 1, **settings: Any) -> Any:
    """A SigLIP vision model, whose head fits the model's vision tower if no setting says otherwise."""
    torch.manual_seed(seed)
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION | settings))
    spread(model)
    return model.eval()


def spread(model: torch.nn.Module) -> None:
    """Give every parameter of a model a random value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 2 / parameter.shape[-1] ** 0.5)


def talkative(model: Any, *prompts: dict[str, Tensor]) -> Any:
    """A model that answers every prompt alike, changed so that its answers depend on the prompt.

    What the last hidden states of some prompts have in common is taken out of the head, where it drowns the rest.
    """
    with torch.no_grad():
        hidden = torch.cat([model.model(**prompt).last_hidden_state[0, -8:] for prompt in prompts])
        common = torch.linalg.svd(hidden, full_matrices=False).Vh[:3]
        model.lm_head.weight -= model.lm_head.weight @ common.T @ common
    return model


def film(seed: int, frames: int = FRAMES, videos: int = 1) -> Tensor:
    """Frames `[videos, F, 3, H, W]` in float32: shots that drift."""
    generator = torch.Generator().manual_seed(seed)
    shots = torch.randn(videos, 2, 3, 40, 40, generator=generator)
    shot = (torch.arange(frames) >= frames // 2).long()
    return shots[:, shot] + 0.3 * torch.randn(videos, frames, 3, 40, 40, generator=generator)


def words(seed: int, count: int) -> list[int]:
    """Token ids that are no placeholder."""
    return torch.randint(1, VIDEO, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def placeholders(frames: int = FRAMES) -> list[int]:
    """Placeholder ids for a video and its newline."""
    return [VIDEO] * (frames * TOKENS_PER_FRAME + 1)


def batch(rows: Sequence[Sequence[int]], side: str = "left") -> dict[str, Tensor]:
    """Rows padded to one length."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
