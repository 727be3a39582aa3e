"""What pruning costs a model and what it saves, side by side in one process."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvid_kernels.adapters import FastVidHandle
from fastvid_kernels.adapters.stopwatch import measured_seconds, wait


@dataclass(frozen=True)
class Arm:
    """A model with or without pruning; times are medians.

    Attributes:
        video_tokens: embeddings of the video that the language model sees, newline included.
        prefill_seconds: the language model on the prompt, from embeddings to the next token's logits; with pruning,
            from all embeddings, so that leaving out what was dropped is part of it.
        first_token_seconds: all of it, from pixels to the next token's logits.
        peak_bytes: most memory allocated during the latter, weights included; None where the device does not count.
    """

    video_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """Both arms, and the pruning by itself: [CLS] attention, pooling, the operator, marking what was dropped."""

    plain: Arm
    pruned: Arm
    pruning_seconds: float
    repeats: int


@torch.inference_mode()
def compare(model: Any, inputs: dict[str, Tensor], patch: Callable[[], FastVidHandle], repeats: int) -> Comparison:
    """Measure a model on a prompt, without pruning and with it, in turns.

    Args:
        model: a `LlavaOnevisionForConditionalGeneration`.
        inputs: arguments of its `forward` for one prompt with a video.
        patch: applies pruning.
        repeats: of each measurement, after one that does not count.
    """
    plain, pruned = _Runs(model, inputs), _Runs(model, inputs)
    pruning = []
    for turn in range(repeats + 1):
        plain.measure(keep=turn > 0)
        with patch():
            pruned.measure(keep=turn > 0)
            with measured_seconds() as seconds:
                _video_features(model, inputs)
            pruning += [sum(seconds)] if turn > 0 else []
    return Comparison(plain.arm(), pruned.arm(), statistics.median(pruning), repeats)


class _Runs:
    """The measurements of one arm."""

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        self._model = model
        self._inputs = inputs
        self._prefill: list[float] = []
        self._first_token: list[float] = []
        self._peaks: list[int] = []
        self._entries = 0

    def measure(self, keep: bool) -> None:
        model, device = self._model, self._model.device
        options = {"use_cache": True, "logits_to_keep": 1}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        whole, out = _timed(device, lambda: model(**self._inputs, **options))
        if device.type == "cuda":
            self._peaks.append(torch.cuda.max_memory_allocated(device))
        self._entries = int(out.past_key_values.layers[0].keys.shape[2])
        del out
        prompt = {
            "inputs_embeds": _prompt_embeddings(model, self._inputs),
            "attention_mask": self._inputs["attention_mask"],
        }
        prefill, _ = _timed(device, lambda: model(**prompt, **options))
        if keep:
            self._first_token.append(whole)
            self._prefill.append(prefill)

    def arm(self) -> Arm:
        is_video = self._inputs["input_ids"] == self._model.config.video_token_id
        dropped = is_video.numel() - self._entries
        return Arm(
            video_tokens=int(is_video.sum()) - dropped,
            prefill_seconds=statistics.median(self._prefill),
            first_token_seconds=statistics.median(self._first_token),
            peak_bytes=max(self._peaks) if self._peaks else None,
        )


def _prompt_embeddings(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What enters the language model for a prompt, dropped tokens marked where the model prunes."""
    ids = inputs["input_ids"]
    # The feature of a video may come with its newline or without it.
    features = _video_features(model, inputs).flatten(0, 1)
    if len(features) < int((ids == model.config.video_token_id).sum()):
        features = torch.cat([features, model.model.image_newline[None].to(features)])
    embeds: Tensor = model.get_input_embeddings()(ids)
    is_video = (ids == model.config.video_token_id)[..., None].expand_as(embeds)
    return embeds.masked_scatter(is_video, features.to(embeds.dtype))


def _video_features(model: Any, inputs: dict[str, Tensor]) -> Any:
    return model.model.get_video_features(inputs["pixel_values_videos"], return_dict=True).pooler_output


def _timed(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the device has done what `run` asked of it, and what it returned."""
    wait(device)
    start = time.perf_counter()
    result = run()
    wait(device)
    return time.perf_counter() - start, result


def process_peak_bytes() -> int:
    """Most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
