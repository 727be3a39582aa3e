"""LLaVA-OneVision served, against transformers pruned by the oracle on the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.adapters import independent, tiny
from tests.vllm import checkpoints, engine
from tests.vllm.engine import Answer, Engine, Request

HYPERPARAMETERS = tiny.HYPERPARAMETERS
KEPT_A_FRAME = 6
IMAGE_TOKENS = 100 + 10 * 10 + 10


class Truth:
    """Answers of the independent computation."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.head = tiny.siglip()
        self.processor = processor

    def of(self, request: Request, new: int = engine.NEW) -> tuple[list[int], torch.Tensor]:
        videos = [
            self.processor.video_processor([one], return_tensors="pt").pixel_values_videos[0] for one in request.videos
        ]
        images = [self.processor.image_processor([one], return_tensors="pt").pixel_values[0] for one in request.images]
        ids: list[int] = []
        lengths = iter([len(one) for one in videos])
        for one in request.ids:
            if one == tiny.VIDEO:
                ids += tiny.placeholders(next(lengths))
            else:
                ids += [one] * (IMAGE_TOKENS if one == tiny.IMAGE else 1)
        pictures = torch.stack([one[0] for one in images]) if images else None
        prompt = independent.Prompt(ids, tuple(videos), pictures)
        return independent.generated(self.model, self.head, prompt, HYPERPARAMETERS, new)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("llava")
    checkpoints.save_llava(checkpoints.llava(), root / "model")
    checkpoints.save_siglip(root / "siglip")
    return root


@pytest.fixture(scope="module")
def truth(directory: Path) -> Truth:
    return Truth(checkpoints.llava(), transformers.AutoProcessor.from_pretrained(directory / "model"))


def settings(directory: Path, **own: Any) -> dict[str, Any]:
    fastvid = {"siglip": str(directory / "siglip"), "min_segments": HYPERPARAMETERS["min_segments"]} | own
    return {
        "video_pruning_rate": 1 - HYPERPARAMETERS["retention_ratio"],
        "video_pruning_method": "fastvid",
        "additional_config": {"fastvid": fastvid},
    }


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Engine]:
    with engine.running(directory / "model", **settings(directory)) as running:
        yield running


def video(seed: int, frames: int = tiny.FRAMES) -> Any:
    return engine.film(seed, frames, 40, 40)


def picture(seed: int) -> Any:
    return engine.film(seed, 1, 40, 40)[0]


def requests() -> dict[str, Request]:
    v, i, words = tiny.VIDEO, tiny.IMAGE, tiny_words
    return {
        "text": Request(words(1, 9)),
        "video": Request([*words(2, 4), v, *words(3, 7)], (video(1),)),
        "video first": Request([v, *words(4, 5)], (video(2),)),
        "two videos": Request([*words(5, 3), v, *words(6, 4), v, *words(7, 2)], (video(3), video(4, frames=9))),
        "adjacent videos": Request([*words(8, 3), v, v, *words(9, 4)], (video(5, frames=8), video(6))),
        "video last": Request([*words(8, 3), v], (video(7),)),
        "image": Request([*words(10, 3), i, *words(11, 4)], images=(picture(1),)),
        "image, video, image": Request(
            [*words(12, 3), i, *words(13, 2), v, *words(14, 3), i, *words(15, 2)], (video(8),), (picture(2), picture(3))
        ),
        "long": Request([*words(16, 30), v, *words(17, 40)], (video(9, frames=32),)),
    }


def tiny_words(seed: int, count: int) -> list[int]:
    return [1 + one % 99 for one in tiny.words(seed, count)]


def check(truth: Truth, request: Request, answer: Answer) -> float:
    worst = answer.worst(*truth.of(request))
    assert worst <= engine.TOLERANCE
    return worst


@pytest.fixture(scope="module")
def worst() -> Iterator[dict[str, float]]:
    seen: dict[str, float] = {}
    yield seen
    print("\nworst differences of log-probabilities:", {name: f"{value:.1e}" for name, value in seen.items()})


def test_all_at_once(served: Engine, truth: Truth, worst: dict[str, float]) -> None:
    served.forget()
    several = requests()
    for name, answer in zip(several, served.answer(*several.values()), strict=True):
        worst[name] = check(truth, several[name], answer)


def test_each_alone(served: Engine, truth: Truth) -> None:
    served.forget()
    for request in requests().values():
        (answer,) = served.answer(request)
        check(truth, request, answer)


def test_the_prompt_holds_the_kept_tokens(served: Engine) -> None:
    request = requests()["long"]
    (answer,) = served.answer(request)
    assert answer.prompt == 70 + 32 * KEPT_A_FRAME + 1


def test_prefix_cache(served: Engine, truth: Truth) -> None:
    """Cold, warm, with the whole video covered and other words after it, and emptied."""
    served.forget()
    first = requests()["long"]
    other = Request([*first.ids[:31], *tiny_words(40, 50)], first.videos)
    expected = [0, 224, 224, 0]
    for step, request in enumerate([first, first, other]):
        (answer,) = served.answer(request)
        check(truth, request, answer)
        assert (answer.cached > 0) == (expected[step] > 0)
        if step == 2:
            assert answer.cached >= 30 + 32 * KEPT_A_FRAME + 1 - 32
    served.forget()
    (answer,) = served.answer(first)
    check(truth, first, answer)
    assert answer.cached == 0


def test_many_at_once(served: Engine, truth: Truth) -> None:
    served.forget()
    several = [
        Request([*tiny_words(seed, 2 + seed % 5), tiny.VIDEO, *tiny_words(seed + 50, 4)], (video(seed, 4 + seed % 7),))
        for seed in range(30)
    ]
    for request, answer in zip(several, served.answer(*several), strict=True):
        check(truth, request, answer)


def test_chunked_prefill(directory: Path, truth: Truth) -> None:
    """A video over three chunks and more; and others beside it."""
    with engine.running(
        directory / "model",
        **settings(directory),
        max_num_batched_tokens=64,
        max_num_seqs=4,
        enable_prefix_caching=False,
    ) as chunked:
        several = [one for name, one in requests().items() if "image" not in name]
        for request, answer in zip(several, chunked.answer(*several), strict=True):
            check(truth, request, answer)
