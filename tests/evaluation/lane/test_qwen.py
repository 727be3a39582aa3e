"""Qwen-VL through lmms-eval, against lmms-eval's own classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from fastvid_kernels.evaluation.failure import RunFailed
from tests.adapters import tiny_qwen
from tests.evaluation.lane import checkpoints, runs, tasks
from tests.evaluation.lane.runs import Run

CASES = {
    "qwen2_vl simple": ("qwen2", transformers.Qwen2VLForConditionalGeneration, "simple.qwen2_vl.Qwen2_VL"),
    "qwen2_5_vl simple": ("qwen2.5", transformers.Qwen2_5_VLForConditionalGeneration, "simple.qwen2_5_vl.Qwen2_5_VL"),
    "qwen2_5_vl chat": ("qwen2.5", transformers.Qwen2_5_VLForConditionalGeneration, "chat.qwen2_5_vl.Qwen2_5_VL"),
    "qwen3_vl simple": ("qwen3", transformers.Qwen3VLForConditionalGeneration, "simple.qwen3_vl.Qwen3_VL"),
    "qwen3_vl chat": ("qwen3", transformers.Qwen3VLForConditionalGeneration, "chat.qwen3_vl.Qwen3_VL"),
    "qwen3_5 simple": ("qwen3.5", transformers.Qwen3_5ForConditionalGeneration, "simple.qwen3_5.Qwen3_5"),
    "qwen3_5 chat": ("qwen3.5", transformers.Qwen3_5ForConditionalGeneration, "chat.qwen3_5.Qwen3_5"),
}


class Case:
    """A model's name and class, ours and lmms-eval's own."""

    def __init__(self, name: str, directory: Path, folder: Path) -> None:
        self.model, how = name.split()
        kind, self.recorded, self.own = CASES[name]
        self.folder, self.simple = folder, how == "simple"
        self.arguments = {
            "pretrained": checkpoints.write_qwen(kind, directory),
            "device_map": "cpu",
            "min_pixels": 3136,
            "max_pixels": 6272,
            "max_num_frames": 8,
            # Otherwise lmms-eval answers "" where a model did not come to the end of its thoughts.
            **({"enable_thinking": False} if self.model == "qwen3_5" else {}),
        }
        with runs.upstream(self.own):
            self.unpruned = self.run()

    def run(self, folder: Path | None = None, **ours: Any) -> Run:
        return runs.evaluate(
            folder or self.folder, self.model, self.arguments | ours, simple=self.simple, recorded=self.recorded
        )


@pytest.fixture(scope="module", params=CASES)
def case(request: Any, tmp_path_factory: Any, folder: Path) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("qwen"), folder)


def test_keeping_all_answers_as_lmms_evals_own_class(case: Case) -> None:
    whole = case.run(retention_ratio=1.0)
    assert whole.answers == case.unpruned.answers
    assert len(set(whole.answers)) == 3
    tokens = sum(whole.placeholders(tiny_qwen.VIDEO))
    assert tokens > 100
    assert whole.counts() == {"requests": 3, "answers": 3, "videos": 3, "tokens_in": tokens, "tokens_kept": tokens}


@pytest.mark.parametrize("ratio", [0.25, 0.1])
def test_pruning_changes_answers_and_counts(case: Case, ratio: float) -> None:
    some = case.run(retention_ratio=ratio, tau=0.5, min_segments=3)
    assert some.answers != case.unpruned.answers
    kept = 0
    for one in some.given:
        (grid,) = one["video_grid_thw"].tolist()
        kept += grid[0] * int(ratio * (grid[1] * grid[2] // tiny_qwen.MERGE**2) + 1e-9)
    counts = some.counts()
    assert counts["tokens_in"] == sum(case.unpruned.placeholders(tiny_qwen.VIDEO))
    assert (counts["videos"], counts["tokens_kept"]) == (3, kept)


def test_prompts_and_pixels_are_those_of_lmms_evals_own_class(case: Case) -> None:
    some = case.run(retention_ratio=0.25)
    assert runs.same_inputs(some, case.unpruned)
    assert some.contexts == case.unpruned.contexts
    expected = tasks.PROMPTS.get(case.model, tasks.PROMPTS["default"])
    assert all(context.startswith(expected + tasks.QUESTION) for context in some.contexts)


def test_another_method_by_name(case: Case) -> None:
    some = case.run(retention_ratio=0.25, method="visionzip")
    assert some.answers != case.unpruned.answers
    assert some.counts()["tokens_kept"] == case.run(retention_ratio=0.25).counts()["tokens_kept"]


def test_a_method_whose_count_depends_on_the_video(case: Case) -> None:
    counts = case.run(method="prunevid").counts()
    assert counts["videos"] == 3
    assert 0 < counts["tokens_kept"] < counts["tokens_in"]


SIMPLE = pytest.mark.parametrize("case", [name for name in CASES if name.endswith("simple")], indirect=True)


@SIMPLE
def test_a_file_of_another_name_ends_the_run(case: Case, tmp_path: Path, clips: list[Path]) -> None:
    """lmms-eval's simple classes leave it out, and answer without."""
    path = shutil.copy(clips[0], tmp_path / "film.m4v")
    with pytest.raises(RunFailed, match=r"reading .*film\.m4v failed: ValueError: its name must end in"):
        case.run(tasks.write(tmp_path, [clips[1], path]), retention_ratio=0.25)


@SIMPLE
@pytest.mark.parametrize("damage", ["cut", "no first frame"])
def test_a_clip_that_cannot_be_read_ends_the_run(case: Case, damage: str, tmp_path: Path, clips: list[Path]) -> None:
    """lmms-eval's class for Qwen2-VL leaves it out, and answers without; the others raise errors of their own."""
    path = tmp_path / "broken.mp4"
    content = clips[0].read_bytes()
    frames = content.index(b"mdat") + 4
    path.write_bytes(content[:500] if damage == "cut" else content[:frames] + bytes(3000) + content[frames + 3000 :])
    with pytest.raises(RunFailed, match=r"reading .*broken\.mp4 failed" if case.model == "qwen2_vl" else "answering"):
        case.run(tasks.write(tmp_path, [clips[1], path]), retention_ratio=0.25)


@pytest.mark.parametrize("case", ["qwen2_5_vl simple"], indirect=True)
def test_a_video_without_a_place_in_the_prompt_ends_the_run(case: Case) -> None:
    with pytest.raises(RunFailed, match="no video was pruned in 3 requests"):
        case.run(retention_ratio=0.25, interleave_visuals=True)
