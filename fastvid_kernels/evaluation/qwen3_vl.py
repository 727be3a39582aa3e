"""Qwen3-VL and Qwen3.5: `--model qwen3_vl`."""

from __future__ import annotations

from lmms_eval.models.chat import qwen3_vl as chat
from lmms_eval.models.simple import qwen3_vl as simple

from fastvid_kernels.evaluation.pruned import Pruned


class Qwen3VL(Pruned, simple.Qwen3_VL):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_text`, pruned."""


class Qwen3VLChat(Pruned, chat.Qwen3_VL):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_messages`, pruned."""
