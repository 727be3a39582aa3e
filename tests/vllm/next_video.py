"""LLaVA-NeXT-Video as it is served in tests, against transformers pruned by the oracle on the same checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from tests.adapters import independent, tiny, tiny_next_video
from tests.adapters.tiny import VIDEO
from tests.vllm import checkpoints, engine
from tests.vllm.engine import Request
from tests.vllm.family import BEHIND, Family
from tests.vllm.llava import video, words


class NextVideo(Family):
    hyperparameters = tiny.HYPERPARAMETERS
    chunk = 64
    # More are not possible in vLLM.
    limits: ClassVar[dict[str, int]] = {"video": 1}

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.model = checkpoints.next_video(**settings)
        self.checkpoint = checkpoints.save_next_video(self.model, directory)
        self.processor = transformers.AutoProcessor.from_pretrained(self.checkpoint)

    def requests(self) -> dict[str, Request]:
        return {
            "text": Request(words(1, 9)),
            "video": Request([*words(2, 4), VIDEO, *words(3, 7)], (video(1),)),
            "video first": Request([VIDEO, *words(4, 5)], (video(2),)),
            "one word behind": Request([*words(8, 3), VIDEO, *words(9, 1)], (video(5, frames=9),)),
            "long": Request([*words(16, 30), VIDEO, *words(17, BEHIND)], (video(9, frames=32),)),
        }

    def short(self, seed: int) -> Request:
        return Request([*words(seed, 2 + seed % 5), VIDEO, *words(seed + 50, 4)], (video(seed, 4 + seed % 7),))

    def expected(self, request: Request, new: int = engine.NEW) -> tuple[list[int], torch.Tensor]:
        videos = [
            self.processor.video_processor([one], return_tensors="pt").pixel_values_videos[0] for one in request.videos
        ]
        ids: list[int] = []
        lengths = iter([len(one) for one in videos])
        for one in request.ids:
            ids += tiny_next_video.placeholders(next(lengths)) if one == VIDEO else [one]
        prompt = independent.Prompt(ids, tuple(videos))
        row = tiny_next_video.embedded(self.model, prompt, self.hyperparameters)
        return independent.continued(self.model, *row, new)
