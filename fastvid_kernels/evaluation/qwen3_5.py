"""Qwen3.5: `--model qwen3_5`."""

from __future__ import annotations

from lmms_eval.models.chat import qwen3_5 as chat
from lmms_eval.models.simple import qwen3_5 as simple

from fastvid_kernels.evaluation.pruned import Pruned
from fastvid_kernels.evaluation.qwen3_vl import LoudQwen3Files


class Qwen35(Pruned, LoudQwen3Files, simple.Qwen3_5):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_text`, pruned."""


class Qwen35Chat(Pruned, chat.Qwen3_5):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_messages`, pruned."""
