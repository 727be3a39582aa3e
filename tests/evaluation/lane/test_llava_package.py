"""The llava package's models through lmms-eval's classes for them, the package itself a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from fastvid_kernels.evaluation.failure import RunFailed
from tests.adapters import tiny, tiny_llava
from tests.evaluation.lane import llava_package, runs, tasks
from tests.evaluation.lane.runs import Run

FRAMES = 6
COMMON = {"device_map": "auto", "conv_template": "qwen_1_5", "max_frames_num": FRAMES}
CASES = {
    "llava_onevision": ("simple.llava_onevision.Llava_OneVision", "bilinear", {}),
    "llava_vid": ("simple.llava_vid.LlavaVid", "average", {"force_sample": True, "mm_spatial_pool_mode": "average"}),
}


class Case:
    def __init__(self, name: str, pretrained: Path, siglip: Path, folder: Path, recorded: Any) -> None:
        self.name, self.folder, self.recorded = name, folder, recorded
        own, mode, arguments = CASES[name]
        self.tokens = 3 * FRAMES * tiny_llava.TOKENS_PER_FRAME[mode]
        self.tokens_per_frame = tiny_llava.TOKENS_PER_FRAME[mode]
        self.arguments = {"pretrained": pretrained, **COMMON, **arguments}
        self.siglip = siglip
        with runs.upstream(own):
            self.unpruned = runs.evaluate(folder, name, self.arguments, simple=True, recorded=recorded)

    def run(self, folder: Path | None = None, **ours: Any) -> Run:
        arguments = self.arguments | {"siglip": self.siglip} | ours
        return runs.evaluate(folder or self.folder, self.name, arguments, simple=True, recorded=self.recorded)


@pytest.fixture(scope="module", params=CASES)
def case(request: Any, tmp_path_factory: Any, folder: Path) -> Iterator[Case]:
    pretrained = llava_package.write(tmp_path_factory.mktemp("llava_qwen"))
    siglip = tmp_path_factory.mktemp("small_siglip")
    tiny.siglip(image_size=tiny_llava.PIXELS).save_pretrained(siglip)
    with llava_package.imported() as recorded:
        yield Case(request.param, pretrained, siglip, folder, recorded)


def test_keeping_all_answers_as_lmms_evals_own_class(case: Case) -> None:
    whole = case.run(retention_ratio=1.0)
    assert whole.answers == case.unpruned.answers
    assert runs.same_inputs(whole, case.unpruned)
    assert whole.counts() == {
        "requests": 3,
        "answers": 3,
        "videos": 3,
        "tokens_in": case.tokens,
        "tokens_kept": case.tokens,
    }


@pytest.mark.parametrize("ours", [{"retention_ratio": 0.25}, {"retention_ratio": 0.25, "method": "visionzip"}])
def test_pruning_changes_answers_and_counts(case: Case, ours: dict[str, Any]) -> None:
    some = case.run(**ours)
    assert some.answers != case.unpruned.answers
    counts = some.counts()
    assert (counts["videos"], counts["tokens_in"]) == (3, case.tokens)
    assert counts["tokens_kept"] == 3 * FRAMES * (case.tokens_per_frame // 4)


def test_prompts_are_those_of_the_name(case: Case) -> None:
    expected = tasks.PROMPTS.get(case.name, tasks.PROMPTS["default"])
    assert all(context.startswith(expected) for context in case.run(retention_ratio=0.25).contexts)


def test_a_clip_that_cannot_be_read_ends_the_run(case: Case, tmp_path: Path, clips: list[Path]) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clips[0].read_bytes()[:500])
    with pytest.raises(RunFailed, match=r"reading .*broken\.mp4.* failed"):
        case.run(tasks.write(tmp_path, [clips[1], broken]), retention_ratio=0.25)


@pytest.mark.parametrize("case", ["llava_vid"], indirect=True)
def test_several_videos_of_a_document_end_the_run(case: Case, tmp_path: Path, clips: list[Path]) -> None:
    """lmms-eval would answer about the document before, and the counts would fit."""
    with pytest.raises(RunFailed, match="doc_to_visual must give one video"):
        case.run(tasks.write(tmp_path, clips, kind="two videos"), retention_ratio=0.25)


def test_a_folder_of_frames_ends_the_run(case: Case, tmp_path: Path, clips: list[Path]) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    tasks.write_picture(folder)
    with pytest.raises(RunFailed, match=r"reading .*frames"):
        case.run(tasks.write(tmp_path, [clips[0], folder]), retention_ratio=0.25)


@pytest.mark.parametrize("case", ["llava_onevision"], indirect=True)
def test_frames_that_cannot_be_processed_end_the_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval answers without the video, as it does where memory is short."""
    original, calls = transformers.SiglipImageProcessor.preprocess, []

    def preprocess(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("injected")
        return original(*args, **kwargs)

    monkeypatch.setattr(transformers.SiglipImageProcessor, "preprocess", preprocess)
    with pytest.raises(RunFailed, match="2 of 3 videos were pruned"):
        case.run(retention_ratio=0.25)


def test_a_reader_whose_errors_are_answers_is_refused(case: Case) -> None:
    with pytest.raises(RunFailed, match="video_decode_backend must be 'decord'"):
        case.run(retention_ratio=0.25, video_decode_backend="pyav")
