"""Qwen-VL and GLM-V as they are served in tests, against transformers pruned by the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from tests.adapters import qwen_independent, tiny_qwen
from tests.adapters.tiny_qwen import END, IMAGE, MERGE, START, VIDEO, Clip, Prompt, words
from tests.vllm import checkpoints, engine
from tests.vllm.engine import Request
from tests.vllm.family import BEHIND, Family

FPS = 2.0
# 3 by 5 and 2 by 7 tokens a frame.
SIZE, WIDE = (24, 40), (16, 56)
CLIP = [START, VIDEO, END]


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


class Qwen(Family):
    hyperparameters: ClassVar[dict[str, Any]] = {"retention_ratio": 0.4, "min_segments": 3, "tau": 0.5}
    chunk = 48

    def __init__(self, kind: str, directory: Path) -> None:
        self.model = checkpoints.qwen(kind)
        self.kind = kind
        self.has_state = kind.startswith("qwen3.5")
        self.name = checkpoints.served_kind(kind)
        self.checkpoint = checkpoints.save_qwen(self.model, kind, directory)
        self.processor = transformers.AutoProcessor.from_pretrained(self.checkpoint)

        self.is_glm = kind.startswith("glm")
        if self.is_glm:
            # More videos are not possible in vLLM.
            self.limits = self.limits | {"video": 1}

    def requests(self) -> dict[str, Request]:
        clip, image = CLIP, [START, IMAGE, END]
        if self.is_glm:
            image = [checkpoints.IMAGE_START, IMAGE, checkpoints.IMAGE_END]
        against = [*image, *CLIP] if self.is_glm else [START, IMAGE, VIDEO, END]
        found = {
            "text": Request(words(1, 9)),
            "video": Request([*words(2, 4), *clip, *words(3, 7)], (video(1),)),
            "video first": Request([*clip, *words(4, 5)], (video(2, 10, WIDE),)),
            "two videos": Request(
                [*words(5, 3), *clip, *words(6, 4), *clip, *words(7, 2)], (video(3), video(4, 18, WIDE))
            ),
            "adjacent videos": Request([*words(8, 3), *clip, *clip, *words(9, 4)], (video(5, 8), video(6))),
            "image": Request([*words(10, 3), *image, *words(11, 4)], images=(picture(1),)),
            "image, video, image": Request(
                [*words(12, 3), *image, *words(13, 2), *clip, *words(14, 3), *image, *words(15, 2)],
                (video(8),),
                (picture(2), picture(3)),
            ),
            "image against video": Request([*words(18, 3), *against, *words(19, 2)], (video(10),), (picture(4),)),
            "long": Request([*words(16, 30), *clip, *words(17, BEHIND)], (video(9, 40),)),
        }
        return {name: one for name, one in found.items() if not self.is_glm or len(one.videos) < 2}

    def short(self, seed: int) -> Request:
        frames = 4 + 2 * (seed % 5)
        return Request([*words(seed, 2 + seed % 5), *CLIP, *words(seed + 50, 4)], (video(seed, frames),))

    def expected(self, request: Request, new: int = engine.NEW) -> tuple[list[int], torch.Tensor]:
        """As in `Family`, with kept tokens at the positions that vLLM gives them in an unpruned prompt."""
        prompt = self._prompt(request)
        row = qwen_independent.embedded(self.name, self.model, prompt, self.hyperparameters)
        places = vllm_positions(tiny_qwen.KINDS[self.name], prompt)
        row = replace(row, positions=places[:, row.places])
        ids, chosen = [], []
        for _ in range(new):
            chosen.append(qwen_independent.decoded(self.model, row)[-1])
            token = chosen[-1].argmax()
            ids.append(int(token))
            row = qwen_independent.extended(self.model, row, token)
            # All three rows of positions continue from the largest one.
            before = row.positions[:, :-1]
            row = replace(row, positions=torch.cat([before, before.max().expand(3, 1) + 1], dim=1))
        return ids, torch.stack(chosen)

    def positions(self, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each id of the unpruned prompt, int64 `[3, S]`; and whether it is text (0), image (1) or video (2)."""
        prompt = self._prompt(request)
        return vllm_positions(tiny_qwen.KINDS[self.name], prompt), torch.tensor(prompt.types)

    def _prompt(self, request: Request) -> Prompt:
        """The prompt that transformers' own processor makes of a request."""
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
                    text=self.processor.video_token,
                    videos=[frames],
                    video_metadata=[own],
                    do_sample_frames=False,
                    return_tensors="pt",
                )
                clips[0].append(Clip(made.pixel_values_videos, tuple(made.video_grid_thw[0].tolist())))
            else:
                made = self.processor(text=self.processor.image_token, images=[next(images)], return_tensors="pt")
                clips[1].append(Clip(made.pixel_values, tuple(made.image_grid_thw[0].tolist())))
            more = made.input_ids[0].tolist()
            ids += more
            placeholder = IMAGE if kind == 1 else tiny_qwen.KINDS[self.name].placeholder
            types += [kind if token == placeholder else 0 for token in more]
        return Prompt(ids, types, tuple(clips[0]), tuple(clips[1]))


def vllm_positions(kind: tiny_qwen.Kind, prompt: Prompt) -> torch.Tensor:
    """As `qwen_independent.positions`, but text follows the largest position of a video, its time included."""
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
