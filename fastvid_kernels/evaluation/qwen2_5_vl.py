"""Qwen2.5-VL: `--model qwen2_5_vl`."""

from __future__ import annotations

from lmms_eval.models.chat import qwen2_5_vl as chat
from lmms_eval.models.simple import qwen2_5_vl as simple

from fastvid_kernels.evaluation.files import LoudNames
from fastvid_kernels.evaluation.pruned import Pruned


class Qwen25VL(Pruned, LoudNames, simple.Qwen2_5_VL):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_text`, pruned."""


class Qwen25VLChat(Pruned, chat.Qwen2_5_VL):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_messages`, pruned."""
