"""Qwen-VL for `fastvid run`: from a checkpoint, or a small model with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvid_kernels.adapters import FastVidHandle, apply_fastvid
from fastvid_kernels.adapters.qwen_vl import DEFAULTS
from fastvid_kernels.cli.common.errors import CommandError, named
from fastvid_kernels.cli.models.chat import ASCII, RANDOM_WEIGHTS_NOTE, Film

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
START, END, VIDEO, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>"
# Qwen's own tools limit a video frame to this many tokens; a single image may have more.
_TOKENS_A_FRAME = 768

_TEXT_SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
_VISION_SMALL = {
    "depth": 4,
    "num_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "out_hidden_size": 256,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
# Model type, and what its text and vision configs have beside the small sizes.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2.5-vl": (
        "qwen2_5_vl",
        {"rope_parameters": _ROPE},
        {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1, 3]},
    ),
    "qwen3-vl": (
        "qwen3_vl",
        {"rope_parameters": _ROPE | {"mrope_interleaved": True}},
        {"patch_size": 16, "num_position_embeddings": 576, "deepstack_visual_indexes": [0, 1, 2]},
    ),
}


@dataclass(frozen=True)
class Qwen:
    """A `Chat` with a Qwen-VL.

    Attributes:
        name: what it is, for people.
        model: one of `MODEL_TYPES`.
        tokenizer: its tokenizer.
        chat_template: a Jinja template, or None for the bare question.
        image_processor: turns pictures into patches.
        generation: arguments of `generate` that make its output readable text.
        note: a remark to print about its answers, or "".
    """

    name: str
    model: Any
    tokenizer: Any
    chat_template: str | None
    image_processor: Any
    generation: dict[str, Any]
    note: str = ""
    placeholders = (VIDEO, IMAGE)
    default_retention = DEFAULTS.retention_ratio

    def patch(self, retention: float) -> FastVidHandle:
        """Make the model prune."""
        return apply_fastvid(self.model, retention_ratio=retention)

    def tokens_per_frame(self, inputs: dict[str, Tensor]) -> int:
        """N, which depends on the film's resolution."""
        _, rows, columns = inputs["video_grid_thw"][0].tolist()
        return int(rows * columns) // int(self.image_processor.merge_size) ** 2

    def frames(self, inputs: dict[str, Tensor]) -> int:
        """F: pairs of sampled frames."""
        return int(inputs["video_grid_thw"][0, 0])

    def inputs(self, question: str, film: Film) -> dict[str, Tensor]:
        """Arguments of `generate` for a question about a film."""
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        text = f"{START}{VIDEO}{END}{question}"
        if self.chat_template is not None:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.chat_template, add_generation_prompt=True, tokenize=False
            )
        before, found, after = text.partition(VIDEO)
        if not found:
            raise CommandError(f"the chat template of {self.name} has no place for a video ({VIDEO})")
        patches, grid = self._patches(film.frames)
        expanded = f"{before}{self._video_as_text(film, grid)}{after}"
        ids = torch.tensor([self.tokenizer(expanded, add_special_tokens=False).input_ids])
        is_video = ids == self.model.config.video_token_id
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": 2 * is_video.int(),
            "pixel_values_videos": patches.to(self.model.dtype),
            "video_grid_thw": grid[None],
        }
        if self.model.config.model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor([self._temporal / self._metadata(film).sampled_fps])
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def text(self, ids: Tensor) -> str:
        """The generated ids as text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @property
    def _temporal(self) -> int:
        return int(self.image_processor.temporal_patch_size)

    def _patches(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Patches `[F * H * W, C]`, and F, H and W.

        The model's own video processor needs torchvision. Its image processor does the same to a frame with Pillow,
        but repeats the frame where a patch of a video holds the next frames.
        """
        processor = self.image_processor
        side = processor.patch_size * processor.merge_size
        size = {
            "shortest_edge": processor.size["shortest_edge"],
            "longest_edge": min(processor.size["longest_edge"], _TOKENS_A_FRAME * side**2),
        }
        # Repeat the last frame to fill the last patch, as the video processor does.
        frames = np.concatenate([frames, *[frames[-1:]] * (-len(frames) % self._temporal)])
        processed = processor(list(frames), size=size, return_tensors="pt")
        _, rows, columns = processed.image_grid_thw[0].tolist()
        alone = processed.pixel_values.view(len(frames), rows * columns, 3, self._temporal, -1)[:, :, :, 0]
        together = alone.unflatten(0, (-1, self._temporal)).permute(0, 2, 3, 1, 4)
        return together.reshape(-1, processed.pixel_values.shape[1]), torch.tensor(
            [len(frames) // self._temporal, rows, columns]
        )

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
            video_token=VIDEO,
            vision_start_token=START,
            vision_end_token=END,
        )
        if hasattr(processor, "_calculate_timestamps"):
            parts._calculate_timestamps = partial(processor._calculate_timestamps, parts)
        video = {"video_grid_thw": grid[None], "video_metadata": [self._metadata(film)]}
        return str(processor.replace_video_token(parts, video, 0))

    def _metadata(self, film: Film) -> Any:
        from transformers.video_utils import VideoMetadata

        return VideoMetadata(
            total_num_frames=film.source_frames,
            fps=film.frames_per_second,
            frames_indices=list(film.source_indices),
        )


def load(source: str, device: torch.device, dtype: torch.dtype) -> Qwen:
    """Load a model from a checkpoint's directory or hub id.

    Raises:
        CommandError: it cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    with named(f"--model {source}", "loaded"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(source)
        processor, _ = ProcessorMixin.get_processor_dict(source)
        model: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    return Qwen(
        name=source,
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        chat_template=processor.get("chat_template") or tokenizer.chat_template,
        image_processor=image_processor,
        generation={},
    )


def randomly_weighted(architecture: str, device: torch.device, dtype: torch.dtype) -> Qwen:
    """A small model with random weights and a byte tokenizer; `architecture` is one of `ARCHITECTURES`."""
    from transformers import AutoConfig, AutoModelForImageTextToText, ByT5Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model_type, text, vision = ARCHITECTURES[architecture]
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens([START, END, VIDEO, IMAGE], special_tokens=True)
    marks: Any = tokenizer.convert_tokens_to_ids([START, END, VIDEO, IMAGE])
    start, end, video, image = marks
    config = AutoConfig.for_model(
        model_type,
        text_config=_TEXT_SMALL | text,
        vision_config=_VISION_SMALL | vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        video_token_id=video,
        image_token_id=image,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    from_config: Any = AutoModelForImageTextToText.from_config
    with torch.device(device):
        model = from_config(config, dtype=dtype)
    no_letters = [token for token in range(_TEXT_SMALL["vocab_size"]) if token not in ASCII]
    return Qwen(
        name=f"{architecture}, small, random weights",
        model=model.eval(),
        tokenizer=tokenizer,
        chat_template=None,
        image_processor=Qwen2VLImageProcessorPil(patch_size=vision["patch_size"]),
        generation={"suppress_tokens": no_letters, "eos_token_id": None, "pad_token_id": 0},
        note=RANDOM_WEIGHTS_NOTE,
    )
