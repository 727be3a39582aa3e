"""Checkpoints that lmms-eval can load: small models with random weights, and a tokenizer of single characters."""

from __future__ import annotations

from pathlib import Path

import transformers

from tests.adapters import tiny_qwen
from tests.vllm import checkpoints

# lmms-eval's simple class for LLaVA gives the template texts, its chat classes and those of Qwen give it parts.
_CHAT = (
    "{%% for message in messages %%}{%% if message.content is string %%}{{ message.content }}{%% else %%}"
    "{%% for part in message.content %%}{%% if part.type == 'video' %%}%s{%% elif part.type == 'image' %%}%s"
    "{%% else %%}{{ part.text }}{%% endif %%}{%% endfor %%}{%% endif %%}{%% endfor %%}"
)


def write_llava(directory: Path) -> Path:
    checkpoints.save_llava(checkpoints.llava(), directory)
    return _finished(directory, "<video>", "<image>")


def write_siglip(directory: Path) -> Path:
    return checkpoints.save_siglip(directory)


def write_qwen(kind: str, directory: Path) -> Path:
    checkpoints.save_qwen(tiny_qwen.model(kind), kind, directory)
    return _finished(directory, *(f"<|vision_start|><|{which}_pad|><|vision_end|>" for which in ("video", "image")))


def _finished(directory: Path, video: str, image: str) -> Path:
    """With what lmms-eval asks for: a template, and a last token, which is never generated."""
    processor = transformers.AutoProcessor.from_pretrained(directory)
    processor.chat_template = _CHAT % (video, image)
    processor.tokenizer.eos_token = "<free119>"
    processor.save_pretrained(directory)
    return directory
