"""LLaVA-OneVision for `fastvid run`: from a checkpoint, or with random weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvid_kernels.adapters import FastVidHandle, apply_fastvid
from fastvid_kernels.adapters.llava_onevision import DEFAULTS
from fastvid_kernels.cli.models.chat import ASCII, RANDOM_WEIGHTS_NOTE, Film
from fastvid_kernels.cli.models.loaded import Loaded, Marks
from fastvid_kernels.vision import SiglipHead, SiglipHeadConfig, pooled_grid

MODEL_TYPES = ("llava_onevision",)

# Layers and widths of google/siglip-so400m-patch14-384, as in llava-onevision-qwen2-7b, and of Qwen2-7B.
_VISION_7B = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
}
_TEXT_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152128,
}
_VISION_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
_TEXT_SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
ARCHITECTURES = {"small": (_VISION_SMALL, _TEXT_SMALL), "7b": (_VISION_7B, _TEXT_7B)}
_IMAGE_SIZE, _PATCH_SIZE = 384, 14


@dataclass(frozen=True, kw_only=True)
class Llava(Loaded):
    """A `Chat` with a LLaVA-OneVision.

    Attributes:
        siglip: the head that gives its [CLS] attention.
    """

    siglip: SiglipHead

    marks = Marks("<video>", "<image>", end="\n")
    default_retention = DEFAULTS.retention_ratio

    @staticmethod
    def load_image_processor(source: str) -> Any:
        """SigLIP's image processor, with the settings of a checkpoint."""
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        return SiglipImageProcessorPil.from_pretrained(source)

    def patch(self, retention: float) -> FastVidHandle:
        """Make the model prune."""
        return apply_fastvid(self.model, siglip=self.siglip, retention_ratio=retention)

    def tokens_per_frame(self, inputs: dict[str, Tensor]) -> int:
        """N, after pooling."""
        side = self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size
        return math.prod(pooled_grid((side, side), "bilinear"))

    def frames(self, inputs: dict[str, Tensor]) -> int:
        """F."""
        return inputs["pixel_values_videos"].shape[1]

    def inputs(self, question: str, film: Film) -> dict[str, Tensor]:
        """Arguments of `generate` for a question about a film."""
        before, after = self.around_video(question)
        # One more embedding than there are video tokens: the newline that ends a video.
        pixels = self.image_processor(list(film.frames), return_tensors="pt").pixel_values[None]
        tokens = len(film.frames) * self.tokens_per_frame({})
        placeholders = [self.placeholder_id] * (tokens + 1)
        ids = [*self._ids(before), *placeholders, *self._ids(after)]
        device = self.model.device
        return {
            "input_ids": torch.tensor([ids], device=device),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.int64, device=device),
            "pixel_values_videos": pixels.to(device, self.model.dtype),
        }

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def load(source: str, siglip: SiglipHead, device: torch.device, dtype: torch.dtype) -> Llava:
    """Load a model from a checkpoint's directory or hub id.

    Raises:
        CommandError: it cannot be loaded.
    """
    # Convert the head once here: otherwise each `apply_fastvid` would convert a copy of it, within the timed part.
    return Llava.load(source, device, dtype, siglip=siglip.to(device, dtype))


def randomly_weighted(size: str, device: torch.device, dtype: torch.dtype) -> Llava:
    """A model with random weights and a byte tokenizer; `size` is one of `ARCHITECTURES`."""
    from transformers import ByT5Tokenizer, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    vision, text = ARCHITECTURES[size]
    vision = {"image_size": _IMAGE_SIZE, "patch_size": _PATCH_SIZE} | vision
    # The last two ids stand for images and videos; the tokenizer has no bytes there.
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        text_config={"model_type": "qwen2", "max_position_embeddings": 32768, "rope_theta": 1e6, **text},
        image_token_index=text["vocab_size"] - 2,
        video_token_index=text["vocab_size"] - 1,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    from_config: Any = LlavaOnevisionForConditionalGeneration._from_config
    with torch.device(device):
        model = from_config(config, dtype=dtype)
        head = SiglipHead(
            SiglipHeadConfig(
                hidden_size=vision["hidden_size"],
                intermediate_size=vision["intermediate_size"],
                num_attention_heads=vision["num_attention_heads"],
            )
        )
    no_letters = [token for token in range(text["vocab_size"]) if token not in ASCII]
    return Llava(
        name=f"LLaVA-OneVision, {size}, random weights",
        model=model.eval(),
        tokenizer=ByT5Tokenizer(),
        chat_template=None,
        image_processor=SiglipImageProcessorPil(
            size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        siglip=head.to(dtype).eval().requires_grad_(False),
        generation={"suppress_tokens": no_letters, "eos_token_id": None, "pad_token_id": 0},
        note=RANDOM_WEIGHTS_NOTE,
    )
