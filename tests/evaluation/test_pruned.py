"""What all classes share, on top of a class that answers as lmms-eval's do."""

from __future__ import annotations

from typing import Any

import pytest

from fastvid_kernels.adapters import pruner
from fastvid_kernels.evaluation.counts import Counts
from fastvid_kernels.evaluation.failure import RunFailed
from fastvid_kernels.evaluation.pruned import LoudVideos, Pruned
from tests.adapters import tiny
from tests.evaluation import stand_in
from tests.evaluation.stand_in import answer, request


class Ours(Pruned, LoudVideos, stand_in.Upstream):
    pass


@pytest.fixture(autouse=True)
def logged(monkeypatch: Any) -> list[dict[str, Any]]:
    return stand_in.install(monkeypatch)


def test_answers_and_counts_are_the_pruned_models(logged: list[dict[str, Any]]) -> None:
    requests = [request(seed) for seed in (0, 2, 4)]
    pruned = tiny.llava_onevision()
    with tiny_pruned(pruned):
        expected = [answer(pruned, one) for one in requests]
    assert Ours(method="uniform", retention_ratio=0.25).generate_until(requests) == expected
    assert expected != [answer(tiny.llava_onevision(), one) for one in requests]
    tokens = 3 * tiny.FRAMES * tiny.TOKENS_PER_FRAME
    assert [one["additional_metrics"] for one in logged] == [
        {
            "fastvid_requests": 3,
            "fastvid_answers": 3,
            "fastvid_videos": 3,
            "fastvid_tokens_in": tokens,
            "fastvid_tokens_kept": 3 * tiny.KEPT,
        }
    ]


def tiny_pruned(model: Any) -> Any:
    from fastvid_kernels import apply_fastvid

    return apply_fastvid(model, method="uniform", retention_ratio=0.25)


def test_counts_are_of_one_call(logged: list[dict[str, Any]]) -> None:
    model = Ours(method="uniform")
    model.generate_until([request(0), request(2)])
    model.generate_until([request(4)])
    assert [one["additional_metrics"]["fastvid_videos"] for one in logged] == [2, 1]
    assert [one["additional_metrics"]["fastvid_answers"] for one in logged] == [2, 1]


def test_without_our_arguments_it_is_lmms_evals(logged: list[dict[str, Any]], monkeypatch: Any) -> None:
    model = Ours(pretrained="x", device="cpu")
    assert model.arguments == {"pretrained": "x", "device": "cpu"}
    assert not hasattr(model.model, "fastvid_handle")
    assert model.generate_until([request(0)]) == [answer(tiny.llava_onevision(), request(0))]
    assert model.generate_until(["missing.mp4"]) == ["the video cannot be loaded"]
    assert model.loglikelihood([1]) == [0.0]
    assert logged == []


def test_an_error_of_generate_ends_the_run(monkeypatch: Any) -> None:
    model = Ours(attention="norm", retention_ratio=0.25)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("injected")

    monkeypatch.setattr(pruner, "prune", broken)
    with pytest.raises(RunFailed, match="generate failed: ValueError: injected") as caught:
        model.generate_until([request(0)])
    assert isinstance(caught.value.__cause__, ValueError)
    assert not isinstance(caught.value, Exception)


def test_a_video_that_cannot_be_read_ends_the_run() -> None:
    with pytest.raises(RunFailed, match=r"reading missing\.mp4 failed: FileNotFoundError"):
        Ours(method="uniform").generate_until([request(0), "missing.mp4"])


def test_an_answer_that_is_not_the_models_ends_the_run() -> None:
    with pytest.raises(RunFailed, match="the model answered 1 of 2 requests"):
        Ours(method="uniform").generate_until([request(0), {"skipped": True}])


def test_a_run_without_videos_is_refused() -> None:
    with pytest.raises(RunFailed, match="no video was pruned in 2 requests"):
        Ours(method="uniform").generate_until([request(0, video=False), request(2, video=False)])


def test_a_process_without_requests_is_no_run_without_videos(logged: list[dict[str, Any]]) -> None:
    assert Ours(method="uniform").generate_until([]) == []
    assert logged == []


def test_some_requests_without_videos_are_told(caplog: pytest.LogCaptureFixture) -> None:
    Ours(method="uniform").generate_until([request(0), request(2, video=False)])
    assert "2 requests had 1 pruned videos" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "nothing"}, "method must be one of"),
        ({"retention_ratio": 2.0}, "retention_ratio must be in"),
        ({"tau": 0.5, "unknown": 1}, "unexpected keyword argument 'unknown'"),
        ({"retention_ratio": 1e-6}, "retention_ratio"),
    ],
)
def test_a_model_that_cannot_be_made_ends_the_run(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(RunFailed, match=f"loading the model failed: .*{said}"):
        Ours(attention="norm", **arguments)


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round"])
def test_other_kinds_of_tasks_are_refused(kind: str) -> None:
    with pytest.raises(RunFailed, match=f"must be generate_until where videos are pruned, got {kind}"):
        getattr(Ours(method="uniform"), kind)([1])


def test_nothing_but_the_model_keeps_the_model() -> None:
    import gc
    import weakref

    ours = Ours(method="uniform")
    model = weakref.ref(ours.model)
    ours.generate_until([request(0)])
    del ours._model
    gc.collect()
    assert model() is None


def test_counts_are_refused_by_what_they_lack() -> None:
    Counts(2, 2, 1, 100, 10).check()
    Counts(2, 3, 1, 100, 10).check()
    for counts in (Counts(2, 1, 1, 100, 10), Counts(2, 2, 0, 0, 0)):
        with pytest.raises(RunFailed):
            counts.check()
    Counts(2, 2, 2, 100, 10).check(files=2)
    with pytest.raises(RunFailed, match="1 of 2 videos were pruned"):
        Counts(2, 2, 1, 100, 10).check(files=2)
