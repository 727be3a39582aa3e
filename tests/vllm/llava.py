"""LLaVA-OneVision as it is served in tests, against transformers pruned by the oracle on the same checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.adapters import independent, tiny
from tests.adapters.tiny import IMAGE, VIDEO
from tests.vllm import checkpoints, engine
from tests.vllm.engine import Request
from tests.vllm.family import BEHIND, Family

KEPT_A_FRAME = 6
IMAGE_TOKENS = 100 + 10 * 10 + 10


def video(seed: int, frames: int = tiny.FRAMES) -> Any:
    return engine.film(seed, frames, 40, 40)


def picture(seed: int) -> Any:
    return engine.film(seed, 1, 40, 40)[0]


def words(seed: int, count: int) -> list[int]:
    return [1 + one % 99 for one in tiny.words(seed, count)]


def requests_with(v: int, i: int, longest: int = 32) -> dict[str, Request]:
    """Every kind of prompt, given the placeholders of a video and an image, and the frames of the longest video."""
    return {
        "text": Request(words(1, 9)),
        "video": Request([*words(2, 4), v, *words(3, 7)], (video(1),)),
        "video first": Request([v, *words(4, 5)], (video(2),)),
        "two videos": Request([*words(5, 3), v, *words(6, 4), v, *words(7, 2)], (video(3), video(4, frames=9))),
        "adjacent videos": Request([*words(8, 3), v, v, *words(9, 4)], (video(5, frames=8), video(6))),
        "video last": Request([*words(8, 3), v], (video(7),)),
        "image": Request([*words(10, 3), i, *words(11, 4)], images=(picture(1),)),
        "image, video, image": Request(
            [*words(12, 3), i, *words(13, 2), v, *words(14, 3), i, *words(15, 2)],
            (video(8),),
            (picture(2), picture(3)),
        ),
        "image against video": Request([*words(18, 3), i, v, *words(19, 2)], (video(10),), (picture(4),)),
        "long": Request([*words(16, 30), v, *words(17, BEHIND)], (video(9, frames=longest),)),
    }


class Llava(Family):
    hyperparameters = tiny.HYPERPARAMETERS
    chunk = 64

    def __init__(self, directory: Path) -> None:
        self.model = checkpoints.llava()
        self.checkpoint = checkpoints.save_llava(self.model, directory / "model")
        self.siglip = checkpoints.save_siglip(directory / "siglip")
        self.processor = transformers.AutoProcessor.from_pretrained(self.checkpoint)

    def settings(self, **own: Any) -> dict[str, Any]:
        return super().settings(**{"siglip": str(self.siglip)} | own)

    def requests(self) -> dict[str, Request]:
        return requests_with(VIDEO, IMAGE)

    def short(self, seed: int) -> Request:
        return Request([*words(seed, 2 + seed % 5), VIDEO, *words(seed + 50, 4)], (video(seed, 4 + seed % 7),))

    def expected(self, request: Request, new: int = engine.NEW) -> tuple[list[int], torch.Tensor]:
        videos = [
            self.processor.video_processor([one], return_tensors="pt").pixel_values_videos[0] for one in request.videos
        ]
        images = [self.processor.image_processor([one], return_tensors="pt").pixel_values[0] for one in request.images]
        ids: list[int] = []
        lengths = iter([len(one) for one in videos])
        for one in request.ids:
            if one == VIDEO:
                ids += tiny.placeholders(next(lengths))
            else:
                ids += [one] * (IMAGE_TOKENS if one == IMAGE else 1)
        pictures = torch.stack([one[0] for one in images]) if images else None
        prompt = independent.Prompt(ids, tuple(videos), pictures)
        return independent.generated(self.model, tiny.siglip(), prompt, self.hyperparameters, new)
