"""Qwen-VL for `fastvid run`, and what GLM-V shares with it: videos are rows of patches of any resolution."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvid_kernels.adapters.qwen_vl import DEFAULTS
from fastvid_kernels.cli.models.chat import Film
from fastvid_kernels.cli.models.loaded import Loaded, Marks

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
# Qwen's own tools limit a video frame to this many tokens; a single image may have more.
MOST_TOKENS_A_FRAME = 768


class Qwen(Loaded):
    """A `Chat` with a Qwen-VL."""

    marks = Marks("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    default_retention = DEFAULTS.retention_ratio

    @staticmethod
    def load_image_processor(source: str) -> Any:
        """The image processor of a checkpoint."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return Qwen2VLImageProcessorPil.from_pretrained(source)

    @staticmethod
    def new_image_processor(vision: dict[str, Any]) -> Any:
        """An image processor with its family's settings, for a tower of this configuration."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return Qwen2VLImageProcessorPil(patch_size=vision["patch_size"])

    def tokens_per_frame(self, inputs: dict[str, Tensor]) -> int:
        """N, which depends on the film's resolution."""
        _, rows, columns = inputs["video_grid_thw"][0].tolist()
        return int(rows * columns) // int(self.image_processor.merge_size) ** 2

    def frames(self, inputs: dict[str, Tensor]) -> int:
        """F: pairs of sampled frames."""
        return int(inputs["video_grid_thw"][0, 0])

    def inputs(self, question: str, film: Film) -> dict[str, Tensor]:
        """Arguments of `generate` for a question about a film."""
        before, after = self.around_video(question)
        patches, grid = self._patches(film.frames)
        expanded = f"{before}{self._video_as_text(film, grid)}{after}"
        ids = torch.tensor([self.tokenizer(expanded, add_special_tokens=False).input_ids])
        is_video = ids == self.placeholder_id
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": patches.to(self.model.dtype),
            "video_grid_thw": grid[None],
            **self._position_inputs(film, is_video),
        }
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    @property
    def _temporal(self) -> int:
        return int(self.image_processor.temporal_patch_size)

    @property
    def _token_side(self) -> int:
        """Side of a token, in pixels."""
        return int(self.image_processor.patch_size * self.image_processor.merge_size)

    def _seconds_per_patch(self, film: Film) -> float:
        return float(self._temporal / self._metadata(film).sampled_fps)

    def _position_inputs(self, film: Film, is_video: Tensor) -> dict[str, Tensor]:
        """The arguments of `generate` from which the model makes positions, beside the ids and the grid."""
        inputs = {"mm_token_type_ids": 2 * is_video.int()}
        if self.model.config.model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor([self._seconds_per_patch(film)])
        return inputs

    def _patches(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Patches `[F * H * W, C]`, and F, H and W.

        The model's own video processor needs torchvision. Its image processor does the same to a frame with Pillow,
        but repeats the frame where a patch of a video holds the next frames.
        """
        # Repeat the last frame to fill the last patch, as the video processor does.
        frames = np.concatenate([frames, *[frames[-1:]] * (-len(frames) % self._temporal)])
        processed = self._processed(frames)
        _, rows, columns = processed.image_grid_thw[0].tolist()
        alone = processed.pixel_values.view(len(frames), rows * columns, 3, self._temporal, -1)[:, :, :, 0]
        together = alone.unflatten(0, (-1, self._temporal)).permute(0, 2, 3, 1, 4)
        return together.reshape(-1, processed.pixel_values.shape[1]), torch.tensor(
            [len(frames) // self._temporal, rows, columns]
        )

    def _processed(self, frames: np.ndarray) -> Any:
        """What the image processor makes of frames, in the size that they have in a video."""
        return self.image_processor(list(frames), size=self._size(), return_tensors="pt")

    def _size(self) -> dict[str, int]:
        """The fewest and the most pixels of a frame."""
        size = self.image_processor.size
        return {
            "shortest_edge": size["shortest_edge"],
            "longest_edge": min(size["longest_edge"], MOST_TOKENS_A_FRAME * self._token_side**2),
        }

    def _video_as_text(self, film: Film, grid: Tensor) -> str:
        """The placeholders of a video and the text between its frames, as the model's own processor writes them."""
        import transformers
        from transformers.models.auto import processing_auto

        names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
        processor = getattr(transformers, names[self.model.config.model_type])
        # Only the attributes that the method reads: a whole processor cannot be created without torchvision.
        parts = SimpleNamespace(
            video_processor=SimpleNamespace(
                merge_size=self.image_processor.merge_size, temporal_patch_size=self._temporal
            ),
            video_token=self.marks.video,
            image_token=self.marks.image,
            vision_start_token=self.marks.start,
            vision_end_token=self.marks.end,
        )
        for helper in ("_calculate_timestamps", "replace_frame_token_id"):
            if hasattr(processor, helper):
                setattr(parts, helper, partial(getattr(processor, helper), parts))
        video = {"video_grid_thw": grid[None], "video_metadata": [self._metadata(film)]}
        return str(processor.replace_video_token(parts, video, 0))

    def _metadata(self, film: Film) -> Any:
        from transformers.video_utils import VideoMetadata

        return VideoMetadata(
            total_num_frames=film.source_frames,
            fps=film.frames_per_second,
            frames_indices=list(film.source_indices),
        )
