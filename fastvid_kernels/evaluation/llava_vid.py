"""LLaVA-Video of the llava package: `--model llava_vid`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lmms_eval.models.simple import llava_vid as simple

from fastvid_kernels.evaluation.decord_only import checked
from fastvid_kernels.evaluation.failure import RunFailed
from fastvid_kernels.evaluation.files import LoudFiles
from fastvid_kernels.evaluation.pruned import LoudVideos, Pruned


class LlavaVid(Pruned, LoudVideos, LoudFiles, simple.LlavaVid):  # type: ignore[misc]
    """lmms-eval's class, pruned."""

    def as_list(self, visuals: Any) -> Sequence[Any]:
        """See `LoudFiles`.

        Raises:
            RunFailed: it is not one video. Of several, lmms-eval would answer about the document before.
        """
        if not isinstance(visuals, list | tuple) or len(visuals) != 1 or not isinstance(visuals[0], str):
            raise RunFailed(f"doc_to_visual must give one video, got {visuals!r}: lmms-eval would take another")
        return visuals

    def check_file(self, path: str) -> None:
        """See `LoudFiles`.

        Raises:
            ValueError: it is a folder.
        """
        if os.path.isdir(path):
            raise ValueError("it is a folder of frames, which lmms-eval would read in no order, or not at all")

    def _adjusted(self, theirs: dict[str, Any]) -> dict[str, Any]:
        return checked(theirs)
