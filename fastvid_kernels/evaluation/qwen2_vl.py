"""Qwen2-VL: `--model qwen2_vl`."""

from __future__ import annotations

from lmms_eval.models.simple import qwen2_vl as simple

from fastvid_kernels.evaluation.files import LoudFiles
from fastvid_kernels.evaluation.pruned import Pruned


class Qwen2VL(Pruned, LoudFiles, simple.Qwen2_VL):  # type: ignore[misc]
    """lmms-eval's class, pruned."""

    def check_file(self, path: str) -> None:
        """See `LoudFiles`. This class of lmms-eval also leaves out what it cannot read.

        Raises:
            Exception: as decord has it, the file cannot be read.
        """
        super().check_file(path)
        if not len(simple.decord.VideoReader(path)):
            raise ValueError("it must have frames, got none")
