"""LLaVA-OneVision of the llava package: `--model llava_onevision`."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.simple import llava_onevision as simple

from fastvid_kernels.evaluation.decord_only import checked
from fastvid_kernels.evaluation.files import LoudFiles
from fastvid_kernels.evaluation.pruned import LoudVideos, Pruned


class LlavaOneVision(Pruned, LoudVideos, LoudFiles, simple.Llava_OneVision):  # type: ignore[misc]
    """lmms-eval's class, pruned."""

    def _adjusted(self, theirs: dict[str, Any]) -> dict[str, Any]:
        return checked(theirs)
