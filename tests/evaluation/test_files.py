"""Files that a class of lmms-eval would leave out of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from fastvid_kernels.evaluation.failure import RunFailed
from fastvid_kernels.evaluation.files import LoudNames


@dataclass
class Request:
    """As lmms-eval's: its question, options, the function that gives its pictures and videos, and its document."""

    arguments: tuple[Any, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


def request(*visuals: Any) -> Request:
    return Request(("What is shown?", {}, lambda doc: [doc, *visuals], "first.mp4", "task", "test"))


class Upstream:
    """Answers with what it would put into the prompt, as lmms-eval's class for Qwen2-VL does."""

    prunes = True

    def generate_until(self, requests: list[Any]) -> list[Any]:
        return [[one for one in self._visuals_of(*each.args) if self._takes(one)] for each in requests]

    def _visuals_of(self, context: str, options: Any, doc_to_visual: Any, doc: Any, task: str, split: str) -> Any:
        return doc_to_visual(doc)

    def _takes(self, one: Any) -> bool:
        return not isinstance(one, str) or one.endswith((".mp4", ".avi", ".mov"))


class Ours(LoudNames, Upstream):
    pass


PICTURE = Image.new("RGB", (2, 2))


def test_what_it_takes_is_passed_on() -> None:
    assert Ours().generate_until([request("b.avi", PICTURE), request()]) == [
        ["first.mp4", "b.avi", PICTURE],
        ["first.mp4"],
    ]


@pytest.mark.parametrize("name", ["film.webm", "film.MP4", "film"])
def test_a_file_that_would_be_left_out_ends_the_run(name: str) -> None:
    with pytest.raises(RunFailed, match=rf"reading {name} failed: ValueError: its name must end in \.mp4"):
        Ours().generate_until([request(), request(PICTURE, name)])


@pytest.mark.parametrize("visual", [["film.mp4"], {"video": "film.mp4"}, None], ids=str)
def test_what_is_no_picture_and_no_path_ends_the_run(visual: Any) -> None:
    with pytest.raises(RunFailed, match="doc_to_visual must give pictures and paths of videos, got"):
        Ours().generate_until([request(visual)])


@pytest.mark.parametrize("visuals", ["film.mp4", {"video": "film.mp4"}], ids=str)
def test_what_is_no_list_ends_the_run(visuals: Any) -> None:
    """lmms-eval would go through the letters of a path."""
    one = Request(("What is shown?", {}, lambda doc: visuals, "doc", "task", "test"))
    with pytest.raises(RunFailed, match="doc_to_visual must give a list, got"):
        Ours().generate_until([one])


def test_files_are_counted_anew_in_each_run() -> None:
    ours = Ours()
    ours.generate_until([request("b.avi", PICTURE), request()])
    assert ours.files == 3
    ours.generate_until([request()])
    assert ours.files == 1


def test_without_pruning_it_is_lmms_evals() -> None:
    ours = Ours()
    ours.prunes = False
    assert ours.generate_until([request("film.webm")]) == [["first.mp4"]]


def test_requests_are_not_changed() -> None:
    """lmms-eval keys its caches and writes its logs by them."""
    one = request()
    arguments = one.arguments
    Ours().generate_until([one])
    assert one.arguments is arguments
