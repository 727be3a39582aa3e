"""LLaVA-NeXT-Video for `fastvid run`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvid_kernels.adapters.llava_next_video import DEFAULTS, tokens_per_frame
from fastvid_kernels.cli.models.chat import Film
from fastvid_kernels.cli.models.loaded import Loaded, Marks

MODEL_TYPES = ("llava_next_video",)
# What its video processor reads of a checkpoint's settings.
_SETTINGS = (
    "size",
    "crop_size",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
)


class NextVideo(Loaded):
    """A `Chat` with a LLaVA-NeXT-Video."""

    marks = Marks(video="<video>", image="<image>", end="\n")
    default_retention = DEFAULTS.retention_ratio

    @staticmethod
    def load_image_processor(source: str) -> Any:
        """CLIP's image processor, with the settings that the checkpoint has for videos."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor

        video, _ = LlavaNextVideoVideoProcessor.get_video_processor_dict(source)
        settings: dict[str, Any] = {name: video[name] for name in _SETTINGS if name in video}
        return CLIPImageProcessorPil(**settings)

    @staticmethod
    def new_image_processor(vision: dict[str, Any]) -> Any:
        """CLIP's image processor, for a tower of this configuration."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        side = vision["image_size"]
        settings: dict[str, Any] = {
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
        }
        return CLIPImageProcessorPil(**settings)

    def tokens_per_frame(self, inputs: dict[str, Tensor]) -> int:
        """N, after pooling."""
        return tokens_per_frame(self.model.config)

    def frames(self, inputs: dict[str, Tensor]) -> int:
        """F."""
        return inputs["pixel_values_videos"].shape[1]

    def inputs(self, question: str, film: Film) -> dict[str, Tensor]:
        """Arguments of `generate` for a question about a film."""
        before, after = self.around_video(question)
        pixels = self.image_processor(list(film.frames), return_tensors="pt").pixel_values[None]
        text = before + self.marks.video * (len(film.frames) * self.tokens_per_frame({})) + after
        # Llama's tokenizers begin a prompt with a token of their own, unless the template has written it.
        bos = self.tokenizer.bos_token
        begins = bos is not None and not text.startswith(bos)
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=begins).input_ids])
        device = self.model.device
        return {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids, device=device),
            "pixel_values_videos": pixels.to(device, self.model.dtype),
        }
