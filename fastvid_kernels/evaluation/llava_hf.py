"""LLaVA-OneVision of transformers: `--model llava_hf`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from lmms_eval.models.chat import llava_hf as chat
from lmms_eval.models.simple import llava_hf as simple

from fastvid_kernels.evaluation.failure import RunFailed
from fastvid_kernels.evaluation.files import LoudFiles
from fastvid_kernels.evaluation.pruned import LoudVideos, Pruned


class _OneDevice(Pruned):
    def _adjusted(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Set `device_map`, whose default "" transformers 5 refuses, to a device of this process."""
        if theirs.get("device_map"):
            return theirs
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        device = f"cuda:{os.environ['LOCAL_RANK']}" if processes > 1 else theirs.get("device", "cuda")
        return {**theirs, "device": device, "device_map": device}


class LlavaHf(_OneDevice, LoudVideos, LoudFiles, simple.LlavaHf):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_text`, pruned."""

    def as_list(self, visuals: Any) -> Sequence[Any]:
        """See `LoudFiles`.

        Raises:
            RunFailed: there is neither a picture nor a video: lmms-eval would ask the last document's question again.
        """
        found = super().as_list(visuals)
        if not found:
            raise RunFailed("doc_to_visual must give pictures or a video for --model llava_hf, got none")
        return found


class LlavaHfChat(_OneDevice, LoudVideos, chat.LlavaHf):  # type: ignore[misc]
    """lmms-eval's class for tasks with `doc_to_messages`, pruned; it samples videos as `LlavaHf` does."""

    _image_processor: Any

    def _finish(self) -> None:
        self._image_processor = SampledVideos(self._image_processor, self)


class SampledVideos:
    """A processor that accepts paths of videos and an empty list of images, as lmms-eval's chat class passes them.

    Args:
        processor: the processor of transformers.
        reader: an object whose `load_video` and `max_frames_num` determine how a video is sampled.
    """

    def __init__(self, processor: Any, reader: Any) -> None:
        self._processor = processor
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *, images: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """Process images, and the sampled frames of videos."""
        frames = None if videos is None else [self._frames(video) for video in videos]
        return self._processor(images=images or None, videos=frames, **kwargs)

    def _frames(self, video: Any) -> np.ndarray:
        if not isinstance(video, str):
            return np.asarray(video)
        frames: np.ndarray = self._reader.load_video(video, self._reader.max_frames_num)
        return frames
