"""Checkpoints that vLLM can serve: small models with random weights, and a tokenizer of single characters."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models

from tests.adapters import tiny, tiny_next_video, tiny_qwen

# vLLM's attention on a CPU requires heads of 32 channels.
LLAVA_TEXT = tiny.TEXT | {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
QWEN_TEXT = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
IMAGE_START, IMAGE_END = 115, 116
QWEN_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
QWEN_NAMES = {
    "<|vision_start|>": tiny_qwen.START,
    "<|vision_end|>": tiny_qwen.END,
    "<|video_pad|>": tiny_qwen.VIDEO,
    "<|image_pad|>": tiny_qwen.IMAGE,
}
GLM_NAMES = {
    "<|begin_of_video|>": tiny_qwen.START,
    "<|end_of_video|>": tiny_qwen.END,
    "<|begin_of_image|>": IMAGE_START,
    "<|end_of_image|>": IMAGE_END,
    "<|video|>": tiny_qwen.VIDEO,
    "<|image|>": tiny_qwen.IMAGE,
}
CHAT = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'video' %}{{ video }}{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def llava(
    dtype: torch.dtype = torch.float32, text: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None
) -> Any:
    """The model of `tiny`, with heads as vLLM requires them, and with the given changes to its settings."""
    model = tiny.llava_onevision(
        dtype=dtype, text=LLAVA_TEXT | dict(text or {}), vision=tiny.VISION | dict(vision or {})
    )
    with torch.no_grad():
        # No placeholder is ever generated.
        model.lm_head.weight[tiny.VIDEO - 20 :] = 0
    return model


def next_video(text: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """The model of `tiny_next_video`, with heads as vLLM requires them, and with the given changes to its settings."""
    model = tiny_next_video.model(text=LLAVA_TEXT | {"model_type": "llama"} | dict(text or {}), **settings)
    with torch.no_grad():
        # No placeholder is ever generated.
        model.lm_head.weight[tiny.VIDEO - 20 :] = 0
    return model


def qwen(kind: str) -> Any:
    """The model of `tiny_qwen` with such heads, which is added to `tiny_qwen.KINDS` as `served_kind(kind)`."""
    own = tiny_qwen.KINDS[kind]
    is_glm = kind.startswith("glm")
    # vLLM reads from a checkpoint what transformers takes for granted.
    granted = {"attention_bias": True, "use_qk_norm": False} if is_glm else {}
    if "num_experts" in own.text:
        granted = {"norm_topk_prob": True}
    rope = QWEN_ROPE | ({"mrope_interleaved": True} if kind.startswith("qwen3") else {})
    if is_glm or kind.startswith("qwen3.5"):
        rope |= {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
    width = "hidden_size" if kind == "qwen2" else "out_hidden_size"
    images = {"image_start_token_id": IMAGE_START, "image_end_token_id": IMAGE_END} if is_glm else {}
    tiny_qwen.KINDS[served_kind(kind)] = replace(
        own,
        # Published checkpoints of GLM-4.6V have the models of GLM-4.1V and GLM-4.5V, and a processor of their own.
        prefix=own.prefix.replace("Glm46V", "Glm4v"),
        text=own.text | QWEN_TEXT | granted | {"rope_parameters": rope},
        vision=own.vision | {width: QWEN_TEXT["hidden_size"]},
        marks=own.marks | images,
    )
    return tiny_qwen.model(served_kind(kind))


def placeholders(kind: str) -> dict[str, str]:
    """A video and an image in a prompt in words."""
    if kind.startswith("glm"):
        return {
            "video": "<|begin_of_video|><|video|><|end_of_video|>",
            "image": "<|begin_of_image|><|image|><|end_of_image|>",
        }
    return {
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
    }


def served_kind(kind: str) -> str:
    """The name in `tiny_qwen.KINDS` of the family as it is served."""
    return f"{kind}, served"


def tokenizer(named: dict[str, int]) -> Any:
    """A character is a token; special tokens have the ids that the models know."""
    characters = [one for one in string.printable if one not in "\t\n\r\x0b\x0c"]
    vocabulary = {"<pad>": 0} | {one: number for number, one in enumerate(characters, 1)}
    taken = {**vocabulary, **named}
    free = (number for number in range(128) if number not in taken.values())
    taken |= {f"<free{number}>": number for number in free}
    raw = Tokenizer(models.BPE(vocab=taken, merges=[], unk_token="<pad>"))
    raw.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": list(named)})
    return fast


def save_llava(model: Any, directory: Path) -> Path:
    """Save a model with its processor."""
    model.save_pretrained(directory)
    _rename(directory, "vision_tower.", "vision_tower.vision_model.")
    named = {"<video>": tiny.VIDEO, "<image>": tiny.IMAGE}
    size = {"height": 40, "width": 40}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=[[40, 40], [40, 80], [80, 40]]
        ),
        tokenizer=tokenizer(named),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=tiny.GRID**2,
        vision_feature_select_strategy="full",
        chat_template=CHAT.replace("{{ video }}", "<video>"),
        image_token="<image>",
        video_token="<video>",
    )
    processor.save_pretrained(directory)
    return directory


def save_next_video(model: Any, directory: Path) -> Path:
    """Save a model with its processor."""
    model.save_pretrained(directory)
    _rename(directory, "vision_tower.", "vision_tower.vision_model.")
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
    processor = transformers.LlavaNextVideoProcessor(
        video_processor=transformers.LlavaNextVideoVideoProcessor(**sizes),
        image_processor=transformers.LlavaNextImageProcessor(**sizes),
        tokenizer=tokenizer({"<video>": tiny.VIDEO, "<image>": tiny.IMAGE}),
        chat_template=CHAT.replace("{{ video }}", "<video>"),
        patch_size=tiny_next_video.CLIP["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(directory)
    return directory


def save_siglip(directory: Path, **vision: Any) -> Path:
    """Save the SigLIP model whose vision tower the LLaVA model has."""
    tiny.siglip(**vision).save_pretrained(directory)
    return directory


def save_qwen(model: Any, kind: str, directory: Path) -> Path:
    """Save a model with its processor."""
    model.save_pretrained(directory)
    if kind == "qwen3-moe":
        _transpose_experts(directory)
    named = GLM_NAMES if kind.startswith("glm") else QWEN_NAMES
    sizes = {
        "patch_size": tiny_qwen.PATCH,
        "merge_size": tiny_qwen.MERGE,
        "temporal_patch_size": tiny_qwen.FRAMES_A_PATCH,
        # In pixels: nothing is resized.
        "size": {"shortest_edge": 64, "longest_edge": 10**6},
        # vLLM takes these values for Qwen3-VL's videos from the image processor.
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    prefix = tiny_qwen.KINDS[kind].prefix
    # A mixture of experts has its own config and model, but the processor of the model without experts (GLM-4.5V has
    # GLM-4.1V's); Qwen3.5 has Qwen3-VL's, and some share parts of their processors.
    named_for = prefix.removesuffix("Moe").replace("Qwen3_5", "Qwen3VL")
    of_images = named_for if kind.startswith("glm") else "Qwen2VL"
    of_videos = "Qwen2VL" if named_for == "Qwen2_5_VL" else named_for
    processor = getattr(transformers, f"{named_for}Processor")(
        image_processor=getattr(transformers, f"{of_images}ImageProcessor")(**sizes),
        tokenizer=tokenizer(named),
        video_processor=getattr(transformers, f"{of_videos}VideoProcessor")(**sizes),
        chat_template=CHAT.replace("{{ video }}", placeholders(kind)["video"]),
    )
    processor.save_pretrained(directory)
    return directory


def _rename(directory: Path, old: str, new: str) -> None:
    """Restore a part of the names of a LLaVA's tower that transformers 5 leaves out and vLLM expects."""
    _rewrite(directory, lambda name, tensor: (name if new in name else name.replace(old, new), tensor))


def _transpose_experts(directory: Path) -> None:
    """Store experts `[experts, in, out]`, as Qwen3-VL's checkpoints do; transformers 5 saves `[experts, out, in]`."""
    _rewrite(directory, lambda name, tensor: (name, tensor.mT.contiguous() if ".experts." in name else tensor))


def _rewrite(directory: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    path = directory / "model.safetensors"
    tensors = dict(change(name, tensor) for name, tensor in load_file(path).items())
    save_file(tensors, path, metadata={"format": "pt"})
