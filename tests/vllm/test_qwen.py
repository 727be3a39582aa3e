"""Qwen2.5-VL and Qwen3-VL served, against transformers pruned by the oracle on the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.adapters import qwen_independent, tiny_qwen
from tests.adapters.tiny_qwen import END, IMAGE, MERGE, START, VIDEO, Clip, Prompt, words
from tests.vllm import checkpoints, engine
from tests.vllm.engine import Answer, Engine, Request

HYPERPARAMETERS: dict[str, Any] = {"retention_ratio": 0.4, "min_segments": 3, "tau": 0.5}
FPS = 2.0
# 3 by 5 and 2 by 7 tokens a frame.
SIZE, WIDE = (24, 40), (16, 56)


def video(seed: int, frames: int = 12, size: tuple[int, int] = SIZE) -> Any:
    metadata = {
        "fps": FPS,
        "duration": frames / FPS,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return engine.film(seed, frames, *size), metadata


def picture(seed: int) -> Any:
    return engine.film(seed, 1, *SIZE)[0]


class Truth:
    """Answers of the independent computation, at the positions that vLLM gives to an unpruned prompt."""

    def __init__(self, kind: str, model: Any, processor: Any) -> None:
        self.name = checkpoints.served_kind(kind)
        self.model = model
        self.processor = processor

    def of(self, request: Request, new: int = engine.NEW) -> tuple[list[int], torch.Tensor]:
        prompt = self._prompt(request)
        row = qwen_independent.embedded(self.name, self.model, prompt, HYPERPARAMETERS)
        places = vllm_positions(tiny_qwen.KINDS[self.name], prompt)
        row = replace(row, positions=places[:, row.places])
        ids, chosen = [], []
        for _ in range(new):
            chosen.append(qwen_independent.decoded(self.model, row)[-1])
            token = chosen[-1].argmax()
            ids.append(int(token))
            row = qwen_independent.extended(self.model, row, token)
            # All three rows go on from the largest.
            before = row.positions[:, :-1]
            row = replace(row, positions=torch.cat([before, before.max().expand(3, 1) + 1], dim=1))
        return ids, torch.stack(chosen)

    def _prompt(self, request: Request) -> Prompt:
        """What transformers' own processor makes of it."""
        videos, images = iter(request.videos), iter(request.images)
        ids: list[int] = []
        types: list[int] = []
        clips: tuple[list[Clip], list[Clip]] = ([], [])
        for one in request.ids:
            if one not in (VIDEO, IMAGE):
                ids.append(one)
                types.append(0)
                continue
            kind = 2 if one == VIDEO else 1
            if one == VIDEO:
                frames, metadata = next(videos)
                own = {key: value for key, value in metadata.items() if key != "do_sample_frames"}
                made = self.processor(
                    text="<|video_pad|>",
                    videos=[frames],
                    video_metadata=[own],
                    do_sample_frames=False,
                    return_tensors="pt",
                )
                clips[0].append(Clip(made.pixel_values_videos, tuple(made.video_grid_thw[0].tolist())))
            else:
                made = self.processor(text="<|image_pad|>", images=[next(images)], return_tensors="pt")
                clips[1].append(Clip(made.pixel_values, tuple(made.image_grid_thw[0].tolist())))
            more = made.input_ids[0].tolist()
            ids += more
            types += [kind if token == one else 0 for token in more]
        return Prompt(ids, types, tuple(clips[0]), tuple(clips[1]))


def vllm_positions(kind: tiny_qwen.Kind, prompt: Prompt) -> torch.Tensor:
    """As `qwen_independent.positions`, but that text follows a video's largest position, which may be in time."""
    if kind.timestamps:
        return qwen_independent.positions(kind, prompt)
    found: list[tuple[int, int, int]] = []
    videos, images = iter(prompt.videos), iter(prompt.images)
    at = place = 0
    while place < len(prompt.types):
        if prompt.types[place] == 0:
            found.append((at, at, at))
            at, place = at + 1, place + 1
            continue
        frames, rows, columns = next(images if prompt.types[place] == 1 else videos).grid
        rows, columns = rows // MERGE, columns // MERGE
        for frame in range(frames):
            time = at + frame * kind.seconds
            found += [(time, at + row, at + column) for row in range(rows) for column in range(columns)]
        place += frames * rows * columns
        at += max((frames - 1) * kind.seconds + 1, rows, columns)
    return torch.tensor(found).T


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_qwen(checkpoints.qwen(kind), kind, tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def truth(kind: str, directory: Path) -> Truth:
    return Truth(kind, checkpoints.qwen(kind), transformers.AutoProcessor.from_pretrained(directory))


def settings(**own: Any) -> dict[str, Any]:
    fastvid = {name: value for name, value in HYPERPARAMETERS.items() if name != "retention_ratio"}
    return {
        "video_pruning_rate": 1 - HYPERPARAMETERS["retention_ratio"],
        "video_pruning_method": "fastvid",
        "additional_config": {"fastvid": fastvid | own},
    }


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Engine]:
    with engine.running(directory, **settings()) as running:
        yield running


def requests() -> dict[str, Request]:
    clip, image = [START, VIDEO, END], [START, IMAGE, END]
    return {
        "text": Request(words(1, 9)),
        "video": Request([*words(2, 4), *clip, *words(3, 7)], (video(1),)),
        "video first": Request([*clip, *words(4, 5)], (video(2, 10, WIDE),)),
        "two videos": Request([*words(5, 3), *clip, *words(6, 4), *clip, *words(7, 2)], (video(3), video(4, 18, WIDE))),
        "adjacent videos": Request([*words(8, 3), *clip, *clip, *words(9, 4)], (video(5, 8), video(6))),
        "image": Request([*words(10, 3), *image, *words(11, 4)], images=(picture(1),)),
        "image, video, image": Request(
            [*words(12, 3), *image, *words(13, 2), *clip, *words(14, 3), *image, *words(15, 2)],
            (video(8),),
            (picture(2), picture(3)),
        ),
        "image against video": Request(
            [*words(18, 3), START, IMAGE, VIDEO, END, *words(19, 2)], (video(10),), (picture(4),)
        ),
        "long": Request([*words(16, 30), *clip, *words(17, 40)], (video(9, 40),)),
    }


def check(truth: Truth, request: Request, answer: Answer) -> float:
    worst = answer.worst(*truth.of(request))
    assert worst <= engine.TOLERANCE
    return worst


@pytest.fixture(scope="module")
def worst(kind: str) -> Iterator[dict[str, float]]:
    seen: dict[str, float] = {}
    yield seen
    shown = {name: f"{value:.1e}" for name, value in seen.items()}
    print(f"\n{kind}: worst differences of log-probabilities:", shown)


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


def test_prefix_cache(served: Engine, truth: Truth) -> None:
    """Cold, warm, with the whole video covered and other words after it, and emptied."""
    served.forget()
    first = requests()["long"]
    other = Request([*first.ids[:43], *words(41, 50)], first.videos)
    for step, request in enumerate([first, first, other]):
        (answer,) = served.answer(request)
        check(truth, request, answer)
        assert (answer.cached > 0) == (step > 0)
    assert answer.cached >= 30 + 20 * 6


def test_a_video_needs_text_behind_it(served: Engine, kind: str) -> None:
    """What follows is placed by its last token; Qwen3-VL's videos end with a word of their own."""
    bare = Request([*words(1, 2), START, VIDEO], (video(1),))
    if kind == "qwen3":
        assert served.answer(bare)
        return
    with pytest.raises(ValueError, match="must be followed by text"):
        served.answer(bare)
    with pytest.raises(ValueError, match="must be followed by text"):
        served.answer(Request([START, VIDEO, VIDEO, END], (video(1), video(2))))


def test_a_video_of_too_small_frames(served: Engine) -> None:
    with pytest.raises(ValueError, match="K = 0"):
        served.answer(Request([START, VIDEO, END], (video(1, 8, (8, 16)),)))


def test_chunked_prefill(directory: Path, truth: Truth) -> None:
    """A video over three chunks and more; and others beside it."""
    with engine.running(
        directory, **settings(), max_num_batched_tokens=48, max_num_seqs=4, enable_prefix_caching=False
    ) as chunked:
        several = [one for name, one in requests().items() if "image" not in name]
        for request, answer in zip(several, chunked.answer(*several), strict=True):
            check(truth, request, answer)
