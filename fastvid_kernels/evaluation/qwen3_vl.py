"""Qwen3-VL and Qwen3.5: `--model qwen3_vl`."""

from __future__ import annotations

from lmms_eval.models.chat import qwen3_vl as chat
from lmms_eval.models.simple import qwen3_vl as simple

from fastvid_kernels.evaluation.files import LoudFiles
from fastvid_kernels.evaluation.pruned import Pruned


class LoudQwen3Files(LoudFiles):
    """`LoudFiles` for classes that know more names."""

    def check_file(self, path: str) -> None:
        """See `LoudFiles`.

        Raises:
            ValueError: the name of the file ends otherwise.
        """
        if not simple._is_video_path(path):
            known = ", ".join(simple._VIDEO_EXTENSIONS)
            raise ValueError(f"its name must end in one of {known}: lmms-eval would leave it out of the prompt")


class Qwen3VL(Pruned, LoudQwen3Files, simple.Qwen3_VL):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_text`, pruned."""


class Qwen3VLChat(Pruned, chat.Qwen3_VL):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_messages`, pruned."""
