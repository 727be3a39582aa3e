"""Small models of other families than LLaVA-OneVision with random weights, for `fastvid run --random-weights`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastvid_kernels.cli.models.chat import ASCII, RANDOM_WEIGHTS_NOTE
from fastvid_kernels.cli.models.glm import Glm
from fastvid_kernels.cli.models.next_video import NextVideo
from fastvid_kernels.cli.models.qwen import Qwen

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
    "bos_token_id": None,
    "eos_token_id": None,
}
_VISION_SMALL = {
    "depth": 4,
    "num_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "out_hidden_size": 256,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}


@dataclass(frozen=True)
class _Small:
    """An architecture.

    Attributes:
        chat: its family.
        model_type: its name in transformers.
        text: what the language model's config has beside `_TEXT_SMALL`.
        vision: what the tower's config has beside `_VISION_SMALL`.
        around: what the ids around a video are called in its config.
    """

    chat: type[Qwen | NextVideo]
    model_type: str
    text: dict[str, Any]
    vision: dict[str, Any]
    around: tuple[str, ...] = ("vision_start_token_id", "vision_end_token_id")


ARCHITECTURES = {
    "qwen2.5-vl": _Small(
        Qwen,
        "qwen2_5_vl",
        text={"rope_parameters": _ROPE},
        vision={"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1, 3]},
    ),
    "qwen3-vl": _Small(
        Qwen,
        "qwen3_vl",
        text={"rope_parameters": _ROPE | {"mrope_interleaved": True}},
        vision={"patch_size": 16, "num_position_embeddings": 576, "deepstack_visual_indexes": [0, 1, 2]},
    ),
    "glm-4.1v": _Small(
        Glm,
        "glm4v",
        text={"rope_parameters": _ROPE | {"mrope_section": [4, 6, 6], "partial_rotary_factor": 0.5}},
        vision={"patch_size": 14, "image_size": 336},
        around=("video_start_token_id", "video_end_token_id"),
    ),
    "llava-next-video": _Small(
        NextVideo,
        "llava_next_video",
        text={"model_type": "llama"},
        # The widths of `_VISION_SMALL`, by the names that CLIP gives them.
        vision={
            "model_type": "clip_vision_model",
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": 14,
            "image_size": 336,
        },
        around=(),
    ),
}


def randomly_weighted(architecture: str, device: torch.device, dtype: torch.dtype) -> Qwen | NextVideo:
    """A small model with random weights and a byte tokenizer; `architecture` is one of `ARCHITECTURES`."""
    from transformers import AutoConfig, AutoModelForImageTextToText, ByT5Tokenizer

    small = ARCHITECTURES[architecture]
    names = ("video_token_id", "image_token_id", *small.around)
    marks = list(small.chat.marks[: len(names)])
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens(marks, special_tokens=True)
    ids: Any = tokenizer.convert_tokens_to_ids(marks)
    config = AutoConfig.for_model(
        small.model_type,
        text_config=_TEXT_SMALL | small.text,
        vision_config=_VISION_SMALL | small.vision,
        tie_word_embeddings=False,
        **dict(zip(names, ids, strict=True)),
    )
    torch.manual_seed(0)
    from_config: Any = AutoModelForImageTextToText.from_config
    with torch.device(device):
        model = from_config(config, dtype=dtype)
    no_letters = [token for token in range(_TEXT_SMALL["vocab_size"]) if token not in ASCII]
    return small.chat(
        name=f"{architecture}, small, random weights",
        model=model.eval(),
        tokenizer=tokenizer,
        chat_template=None,
        image_processor=small.chat.new_image_processor(small.vision),
        generation={"suppress_tokens": no_letters, "eos_token_id": None, "pad_token_id": 0},
        note=RANDOM_WEIGHTS_NOTE,
    )
