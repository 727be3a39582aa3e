"""LLaVA-Video of the llava package: `--model llava_vid`."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.simple import llava_vid as simple

from fastvid_kernels.evaluation.decord_only import checked
from fastvid_kernels.evaluation.pruned import LoudVideos, Pruned


class LlavaVid(Pruned, LoudVideos, simple.LlavaVid):  # type: ignore[misc]
    """lmms-eval's class, pruned."""

    def _adjusted(self, theirs: dict[str, Any]) -> dict[str, Any]:
        return checked(theirs)
