"""Checkpoints that lmms-eval can load: small models with random weights, and a tokenizer of single characters."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tests.adapters import tiny, tiny_qwen
from tests.vllm import checkpoints

# lmms-eval's simple class for LLaVA passes texts to the template; its chat classes and those for Qwen pass parts.
_CHAT = (
    "{%% for message in messages %%}{%% if message.content is string %%}{{ message.content }}{%% else %%}"
    "{%% for part in message.content %%}{%% if part.type == 'video' %%}%s{%% elif part.type == 'image' %%}%s"
    "{%% else %%}{{ part.text }}{%% endif %%}{%% endfor %%}{%% endif %%}{%% endfor %%}"
)


def write_llava(directory: Path) -> Path:
    # With this seed the clips get different answers; with others, all get the same.
    model = tiny.llava_onevision(seed=1)
    with torch.no_grad():
        # No placeholder is ever generated.
        model.lm_head.weight[tiny.VIDEO - 20 :] = 0
    checkpoints.save_llava(model, directory)
    # The simple class adds a line break there.
    return _finished(directory, "<video>\n", "<image>\n")


def write_siglip(directory: Path) -> Path:
    return checkpoints.save_siglip(directory)


def write_qwen(kind: str, directory: Path) -> Path:
    checkpoints.save_qwen(tiny_qwen.talkative(kind), kind, directory)
    return _finished(directory, *(f"<|vision_start|><|{which}_pad|><|vision_end|>" for which in ("video", "image")))


def _finished(directory: Path, video: str, image: str) -> Path:
    """Add what lmms-eval requires: a chat template, and an end token, which is never generated."""
    processor = transformers.AutoProcessor.from_pretrained(directory)
    processor.chat_template = _CHAT % (video, image)
    processor.tokenizer.eos_token = "<free119>"
    processor.save_pretrained(directory)
    return directory
