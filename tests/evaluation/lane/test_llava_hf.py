"""LLaVA-OneVision of transformers through lmms-eval, against lmms-eval's own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from fastvid_kernels.adapters import pruner
from fastvid_kernels.evaluation.failure import RunFailed
from tests.adapters import tiny
from tests.evaluation.lane import runs, tasks
from tests.evaluation.lane.runs import Run

FRAMES = 6
IN = 3 * FRAMES * tiny.TOKENS_PER_FRAME
MODEL: Any = transformers.LlavaOnevisionForConditionalGeneration


@pytest.fixture(scope="module")
def unpruned(folder: Path, llava: dict[str, Any]) -> Run:
    """A run of lmms-eval's own class, which needs a `device_map`."""
    with runs.upstream("simple.llava_hf.LlavaHf"):
        return runs.evaluate(folder, "llava_hf", llava | {"device_map": "cpu"}, simple=True, recorded=MODEL)


@pytest.fixture(params=["simple", "chat"])
def pruned(request: Any, folder: Path, llava: dict[str, Any], siglip: Path) -> Any:
    """A run with our arguments."""

    def run(**ours: Any) -> Run:
        simple = request.param == "simple"
        return runs.evaluate(folder, "llava_hf", {**llava, "siglip": siglip, **ours}, simple=simple, recorded=MODEL)

    return run


def test_keeping_all_answers_as_lmms_evals_own_class(pruned: Any, unpruned: Run) -> None:
    whole = pruned(retention_ratio=1.0)
    assert whole.answers == unpruned.answers
    assert len(set(unpruned.answers)) == 3
    assert whole.counts() == {"requests": 3, "answers": 3, "videos": 3, "tokens_in": IN, "tokens_kept": IN}
    assert unpruned.counts() == {}


def test_prompts_and_pixels_are_those_of_lmms_evals_own_class(pruned: Any, unpruned: Run) -> None:
    some = pruned(retention_ratio=0.25)
    assert runs.same_inputs(some, unpruned)
    assert some.contexts == unpruned.contexts
    assert all(context.startswith(tasks.PROMPTS["llava_hf"] + tasks.QUESTION) for context in some.contexts)


@pytest.mark.parametrize(("ratio", "kept"), [(0.25, 6), (0.1, 2)])
def test_pruning_changes_answers_and_counts(pruned: Any, unpruned: Run, ratio: float, kept: int) -> None:
    some = pruned(retention_ratio=ratio)
    assert some.answers != unpruned.answers
    assert some.counts() == {
        "requests": 3,
        "answers": 3,
        "videos": 3,
        "tokens_in": IN,
        "tokens_kept": 3 * FRAMES * kept,
    }


def test_answers_are_those_of_the_model_alone(pruned: Any, clips: list[Path], llava: dict[str, Any], siglip: Path):
    """The same checkpoint, patched and called directly, without lmms-eval."""
    from decord import VideoReader

    from fastvid_kernels import apply_fastvid

    processor = transformers.AutoProcessor.from_pretrained(llava["pretrained"])
    model = MODEL.from_pretrained(llava["pretrained"]).eval()
    apply_fastvid(model, siglip=siglip, retention_ratio=0.25, tau=0.5, min_segments=3)
    some = pruned(retention_ratio=0.25, tau=0.5, min_segments=3)
    expected = []
    for clip, context in zip(clips, some.contexts, strict=True):
        reader = VideoReader(str(clip))
        frames = reader.get_batch(np.linspace(0, len(reader) - 1, FRAMES, dtype=int)).asnumpy()
        inputs = processor(videos=[frames], text=f"<video>\n{context}", return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=119, eos_token_id=119)
        expected.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert some.answers == expected


@pytest.mark.parametrize("method", ["visionzip", "fastvid:segmentation=fixed", "evs"])
def test_other_methods_by_name(pruned: Any, unpruned: Run, method: str) -> None:
    some = pruned(retention_ratio=0.25, method=method)
    kept = 3 * (FRAMES * tiny.TOKENS_PER_FRAME // 4 if method == "evs" else tiny.KEPT)
    assert some.counts()["tokens_kept"] == kept
    assert some.answers != unpruned.answers


def test_a_method_whose_count_depends_on_the_video(pruned: Any) -> None:
    counts = pruned(method="prunevid").counts()
    assert counts["videos"] == 3
    assert 0 < counts["tokens_kept"] < IN


def test_an_error_in_the_model_ends_the_run(pruned: Any, monkeypatch: Any) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(pruner, "prune", broken)
    with pytest.raises(RunFailed, match="generate failed: RuntimeError: injected"):
        pruned(retention_ratio=0.25)


@pytest.fixture(params=[True, False], ids=["simple", "chat"])
def run_of(request: Any, llava: dict[str, Any], siglip: Path) -> Any:
    """A run of another task."""

    def run(folder: Path, **ours: Any) -> Run:
        ours = ours or {"retention_ratio": 0.25}
        return runs.evaluate(
            folder, "llava_hf", {**llava, "siglip": siglip, **ours}, simple=request.param, recorded=MODEL
        )

    return run


def test_a_clip_that_cannot_be_read_ends_the_run(run_of: Any, tmp_path: Path, clips: list[Path]) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clips[0].read_bytes()[:500])
    with pytest.raises(RunFailed, match=r"reading .*broken\.mp4.* failed"):
        run_of(tasks.write(tmp_path, [clips[1], broken]))


def test_a_task_of_pictures_is_refused(run_of: Any, tmp_path: Path) -> None:
    folder = tasks.write(tmp_path, [tasks.write_picture(tmp_path)], kind="image")
    with pytest.raises(RunFailed, match="no video was pruned in 1 requests"):
        run_of(folder)


def test_a_document_without_visuals_is_refused(
    folder: Path, llava: dict[str, Any], siglip: Path, tmp_path: Path, clips: list[Path]
) -> None:
    """lmms-eval's simple class would ask the question of the document before it again."""
    text = tasks.write(tmp_path, clips[:1], kind="text")
    arguments = {**llava, "siglip": siglip, "retention_ratio": 0.25}
    with pytest.raises(RunFailed, match="doc_to_visual must give pictures or a video"):
        runs.evaluate(text, "llava_hf", arguments, simple=True, recorded=MODEL)


@pytest.mark.parametrize(("name", "value"), [("method", "nothing"), ("retention_ratio", 0.001), ("nonsense", 1)])
def test_a_model_that_cannot_be_made_ends_the_run(run_of: Any, folder: Path, name: str, value: Any) -> None:
    with pytest.raises(RunFailed, match="loading the model failed"):
        run_of(folder, tau=0.9, **{name: value})
