"""Qwen-Omni for `fastvid run`: its thinker, which answers in text; the sound of a video is left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvid_kernels.adapters.qwen_vl import OLDEST_OMNI
from fastvid_kernels.adapters.versions import check_transformers
from fastvid_kernels.cli.models.chat import Film
from fastvid_kernels.cli.models.loaded import Marks
from fastvid_kernels.cli.models.qwen import MOST_TOKENS_A_FRAME, Qwen

# transformers' processors make a video frame at least as large.
_FEWEST_TOKENS_A_FRAME = 128


class Qwen3Omni(Qwen):
    """A `Chat` with the thinker of a Qwen3-Omni."""

    marks = Marks("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    sound = "<|audio_pad|>"

    @staticmethod
    def load_model(source: str, dtype: torch.dtype) -> Any:
        """The thinker of a checkpoint, which may hold the talker too."""
        from transformers import AutoConfig, AutoModelForImageTextToText

        check_transformers(OLDEST_OMNI)
        config = AutoConfig.from_pretrained(source)
        thinker: Any = getattr(config, "thinker_config", config)
        return AutoModelForImageTextToText.from_pretrained(source, config=thinker, dtype=dtype)

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Words that stand for images, videos and sound in its prompts."""
        return *super().placeholders, self.sound

    def _size(self) -> dict[str, int]:
        return {
            "shortest_edge": _FEWEST_TOKENS_A_FRAME * self._token_side**2,
            "longest_edge": MOST_TOKENS_A_FRAME * self._token_side**2,
        }

    def _video_as_text(self, film: Film, grid: Tensor) -> str:
        return self.marks.video * (int(grid.prod()) // int(self.image_processor.merge_size) ** 2)

    def _position_inputs(self, film: Film, is_video: Tensor) -> dict[str, Tensor]:
        return {"video_second_per_grid": torch.tensor([self._seconds_per_patch(film)])}


class Qwen2_5Omni(Qwen3Omni):
    """A `Chat` with the thinker of a Qwen2.5-Omni."""

    marks = Marks("<|VIDEO|>", "<|IMAGE|>", "<|vision_bos|>", "<|vision_eos|>")
    sound = "<|AUDIO|>"


CHATS = {
    "qwen2_5_omni": Qwen2_5Omni,
    "qwen2_5_omni_thinker": Qwen2_5Omni,
    "qwen3_omni_moe": Qwen3Omni,
    "qwen3_omni_moe_thinker": Qwen3Omni,
}
