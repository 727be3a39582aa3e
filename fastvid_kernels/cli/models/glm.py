"""GLM-V for `fastvid run`. It differs from Qwen-VL in its words for a video, and in how large frames may be."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from fastvid_kernels.cli.models.loaded import Marks
from fastvid_kernels.cli.models.qwen import Qwen

MODEL_TYPES = ("glm4v", "glm4v_moe", "glm46v")


class Glm(Qwen):
    """A `Chat` with a GLM-V; `image_processor.size` bounds the pixels of all frames of a video together."""

    marks = Marks("<|video|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>")

    @staticmethod
    def load_image_processor(source: str) -> Any:
        """The image processor of a checkpoint, with the size that it has for videos."""
        from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
        from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

        video, _ = Glm4vVideoProcessor.get_video_processor_dict(source)
        return Glm4vImageProcessorPil.from_pretrained(source, size=video.get("size", Glm4vVideoProcessor.size))

    @staticmethod
    def new_image_processor(vision: dict[str, Any]) -> Any:
        """An image processor with its family's settings for videos, for a tower of this configuration."""
        from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
        from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

        settings: dict[str, Any] = {"patch_size": vision["patch_size"], "size": Glm4vVideoProcessor.size}
        return Glm4vImageProcessorPil(**settings)

    @property
    def placeholder_id(self) -> int:
        """The id that stands for a token of a video in its inputs: that of images, too."""
        return int(self.model.config.image_token_id)

    def _processed(self, frames: np.ndarray) -> Any:
        from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

        processor = self.image_processor
        height, width = smart_resize(
            num_frames=len(frames),
            height=frames.shape[1],
            width=frames.shape[2],
            temporal_factor=self._temporal,
            factor=self._token_side,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        resample = Image.Resampling(processor.resample)
        resized = [Image.fromarray(frame).resize((width, height), resample) for frame in frames]
        return processor(resized, do_resize=False, return_tensors="pt")
