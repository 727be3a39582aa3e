"""Qwen2-VL: `--model qwen2_vl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.models.simple import qwen2_vl as simple

from fastvid_kernels.evaluation.files import LoudNames
from fastvid_kernels.evaluation.pruned import Pruned


class Qwen2VL(Pruned, LoudNames, simple.Qwen2_VL):  # type: ignore[misc]
    """lmms-eval's class, pruned."""

    def as_list(self, visuals: Any) -> Sequence[Any]:
        """See `LoudFiles`. This class of lmms-eval takes a single one too, and a list in a list."""
        if isinstance(visuals, list) and len(visuals) == 1 and isinstance(visuals[0], list):
            return visuals[0]
        return super().as_list(visuals if isinstance(visuals, list | None) else [visuals])

    def check_file(self, path: str) -> None:
        """See `LoudFiles`. This class of lmms-eval also leaves out what it cannot read.

        Raises:
            Exception: as decord has it, the file cannot be read.
        """
        super().check_file(path)
        # As lmms-eval does: the first frame may be damaged where the file opens and says that it has frames.
        simple.decord.VideoReader(path)[0].asnumpy()
