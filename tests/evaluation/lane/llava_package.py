"""Stands in for what lmms-eval imports of the llava package: a loader, a conversation, a tokenizer of prompts.

The model is that of `tests/adapters/llava_stand_in.py`.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.adapters import llava_lanes, tiny_llava
from tests.adapters.tiny_llava import IMAGE_TOKEN, PIXELS
from tests.vllm import checkpoints


class SeparatorStyle(enum.Enum):
    SINGLE, TWO = 1, 2


@dataclass
class Conversation:
    roles: tuple[str, str] = ("user", "assistant")
    sep: str = "|"
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    messages: list[tuple[str, str | None]] = field(default_factory=list)

    def copy(self) -> Conversation:
        return Conversation()

    def append_message(self, role: str, message: str | None) -> None:
        self.messages.append((role, message))

    def get_prompt(self) -> str:
        return self.sep.join(f"{role}: {message or ''}" for role, message in self.messages)


class KeywordsStoppingCriteria(transformers.StoppingCriteria):
    """Never stops."""

    def __init__(self, keywords: list[str], tokenizer: Any, input_ids: Tensor) -> None:
        pass

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


class LlavaConfig(transformers.LlamaConfig):
    model_type = "llava_llama"


def tokenizer_image_token(prompt: str, tokenizer: Any, image_token: int, return_tensors: str) -> Tensor:
    first, *others = (tokenizer.encode(part, add_special_tokens=False) for part in prompt.split("<image>"))
    return torch.tensor([*first, *(one for part in others for one in (image_token, *part))])


class Loader:
    """`load_pretrained_model`, which returns a model with random weights."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __call__(self, path: str, base: None, name: str, *, overwrite_config: dict[str, Any], **kwargs: Any) -> Any:
        model = tiny_llava.llava_qwen(self._module, "one_token", mm_use_im_start_end=False)
        for key, value in overwrite_config.items():
            setattr(model.config, key, value)
        with torch.no_grad():
            model.lm_head.weight[100:] = 0
        # lmms-eval passes frames in float16; the package's tower converts them to its own dtype.
        model.get_vision_tower().register_forward_pre_hook(lambda tower, args: (args[0].float(),))
        tokenizer = checkpoints.tokenizer({"<|end|>": 119})
        tokenizer.eos_token = "<|end|>"
        images = transformers.SiglipImageProcessor(size={"height": PIXELS, "width": PIXELS})
        return tokenizer, model, images, 2048


def write(directory: Path) -> Path:
    """Write a checkpoint with a configuration alone, which is all that lmms-eval reads."""
    with llava_lanes.imported("stand-in") as module:
        tiny_llava.llava_qwen(module, "one_token").config.save_pretrained(directory)
    return directory


@contextmanager
def imported() -> Iterator[Any]:
    """Put the package into `sys.modules`; yields the class of its model."""
    with llava_lanes.imported("stand-in") as module, pytest.MonkeyPatch.context() as monkeypatch:
        transformers.AutoConfig.register("llava_qwen", module.LlavaQwenConfig, exist_ok=True)
        contents: dict[str, dict[str, Any]] = {
            "llava.constants": {
                "DEFAULT_IM_END_TOKEN": "<im_end>",
                "DEFAULT_IM_START_TOKEN": "<im_start>",
                "DEFAULT_IMAGE_TOKEN": "<image>",
                "IGNORE_INDEX": -100,
                "IMAGE_TOKEN_INDEX": IMAGE_TOKEN,
            },
            "llava.conversation": {"SeparatorStyle": SeparatorStyle, "conv_templates": {"qwen_1_5": Conversation()}},
            "llava.mm_utils": {
                "KeywordsStoppingCriteria": KeywordsStoppingCriteria,
                "get_model_name_from_path": lambda path: "llava_qwen",
                "process_images": None,
                "tokenizer_image_token": tokenizer_image_token,
            },
            "llava.model.builder": {"load_pretrained_model": Loader(module)},
            "llava.model.language_model.llava_llama": {"LlavaConfig": LlavaConfig},
        }
        for name, attributes in contents.items():
            one = ModuleType(name)
            one.__dict__.update(attributes)
            monkeypatch.setitem(sys.modules, name, one)
        for name in ("llava_onevision", "llava_vid"):
            for prefix in ("lmms_eval.models.simple", "fastvid_kernels.evaluation"):
                monkeypatch.delitem(sys.modules, f"{prefix}.{name}", raising=False)
        yield module.LlavaQwenForCausalLM
