"""Measure what pruning costs and saves in a model, with both arms in one process."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvid_kernels.adapters import FastVidHandle
from fastvid_kernels.adapters.stopwatch import measured_seconds, wait


@dataclass(frozen=True)
class Arm:
    """Measurements of a model with or without pruning; times are medians.

    Attributes:
        video_tokens: number of video embeddings that the language model's layers see, a newline included.
        prefill_seconds: time of the language model for the prompt, from embeddings to hidden states, and of all that
            pruning adds before it.
        first_token_seconds: time of the whole model, from pixels to the next token's logits.
        peak_bytes: peak memory during `first_token_seconds`, weights included; None if the device does not record it.
    """

    video_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """Both arms, and the time of pruning alone: attention, the operator, and marking the dropped tokens.

    On a GPU that is the GPU's time.
    """

    plain: Arm
    pruned: Arm
    pruning_seconds: float
    repeats: int


@torch.inference_mode()
def compare(
    model: Any, inputs: dict[str, Tensor], placeholder_id: int, patch: Callable[[], FastVidHandle], repeats: int
) -> Comparison:
    """Measure a model on a prompt, alternately without and with pruning.

    Args:
        model: a model that `apply_fastvid` accepts.
        inputs: arguments of its `forward` for one prompt with a video.
        placeholder_id: the id that stands for a token of the video there.
        patch: applies pruning.
        repeats: number of measurements, after a warm-up that does not count.
    """
    plain, pruned = _Runs(model, inputs, placeholder_id), _Runs(model, inputs, placeholder_id)
    for turn in range(repeats + 1):
        plain.measure(keep=turn > 0)
        with patch():
            pruned.measure(keep=turn > 0)
    return Comparison(plain.arm(), pruned.arm(), statistics.median(pruned.pruning), repeats)


class _Runs:
    """The measurements of one arm."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], placeholder_id: int) -> None:
        self._model = model
        self._inputs = inputs
        self._placeholders = int((inputs["input_ids"] == placeholder_id).sum())
        self._prefill: list[float] = []
        self._first_token: list[float] = []
        self._peaks: list[int] = []
        self._dropped = 0
        self.pruning: list[float] = []

    def measure(self, keep: bool) -> None:
        model, device = self._model, self._model.device
        options = {"use_cache": True, "logits_to_keep": 1}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        whole, out = _timed(device, lambda: model(**self._inputs, **options))
        if device.type == "cuda":
            self._peaks.append(torch.cuda.max_memory_allocated(device))
        del out
        # A separate run, because the watched decoder waits for the device during the run.
        with _watched_decoder(model) as decoder, measured_seconds() as pruning:
            model(**self._inputs, **options)
        self._dropped = self._inputs["input_ids"].shape[1] - decoder.length
        if keep:
            self._first_token.append(whole)
            # Hidden states come after the pruning, although most of that runs before the language model is called.
            self._prefill.append(decoder.seconds + sum(pruning))
            self.pruning.append(sum(pruning))

    def arm(self) -> Arm:
        return Arm(
            video_tokens=self._placeholders - self._dropped,
            prefill_seconds=statistics.median(self._prefill),
            first_token_seconds=statistics.median(self._first_token),
            peak_bytes=max(self._peaks) if self._peaks else None,
        )


@dataclass
class _Decoder:
    """Seconds that a language model took for a prompt, and the number of embeddings that its layers saw."""

    seconds: float = 0.0
    length: int = 0


@contextmanager
def _watched_decoder(model: Any) -> Iterator[_Decoder]:
    seen = _Decoder()
    language_model, device = model.model.language_model, model.device

    def start(*_: Any) -> None:
        wait(device)
        seen.seconds = -time.perf_counter()

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.length = kwargs["inputs_embeds"].shape[1]

    def end(*_: Any) -> None:
        wait(device)
        seen.seconds += time.perf_counter()

    # `start` runs before the hooks of a patch, the other two run after them.
    hooks = [
        language_model.register_forward_pre_hook(start, prepend=True),
        language_model.register_forward_pre_hook(enter, with_kwargs=True),
        language_model.register_forward_hook(end),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _timed(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    """Call `run`; return the seconds until the device has finished, and the result."""
    wait(device)
    start = time.perf_counter()
    result = run()
    wait(device)
    return time.perf_counter() - start, result


def process_peak_bytes() -> int:
    """Peak memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
