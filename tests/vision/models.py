"""Small SigLIP models with random weights: no parameter keeps an initial value such as 0 or 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

HIDDEN, INTERMEDIATE, HEADS, SIDE, PATCH = 32, 48, 4, 5, 7
VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 2,
    "image_size": SIDE * PATCH,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def vision_model(**changes: Any) -> SiglipVisionModel:
    return randomize(SiglipVisionModel(SiglipVisionConfig(**{**VISION, **changes})))


def full_model() -> SiglipModel:
    return randomize(SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)))


def randomize(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            scale = (
                1.5 * weight[0].numel() ** -0.5 if weight.dim() in (2, 4) else 1
            )  # enough for attention to be uneven
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model.eval()


def pixels(frames: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)


@torch.no_grad()
def truth(vision: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and features by transformers' own modules, from the patches before `post_layernorm`."""
    x = vision.post_layernorm(x)
    _, weights = vision.head.attention(vision.head.probe.expand(len(x), -1, -1), x, x)
    return weights[:, 0], vision.head(x)
