"""The step between a model's videos and the operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastvid_kernels import PruneConfig, prune
from fastvid_kernels.adapters import pruner
from fastvid_kernels.adapters.decoder import mark_dropped
from fastvid_kernels.adapters.pruner import Video, VideoPruner
from fastvid_kernels.adapters.stopwatch import measured_seconds, part_of_pruning

CONFIG = PruneConfig(retention_ratio=0.3)


def video(frames: int, n: int, dtype: torch.dtype = torch.float32, features: bool = True) -> Video:
    generator = torch.Generator().manual_seed(frames * n)
    return Video(
        torch.randn(frames, n, 8, generator=generator).to(dtype),
        torch.rand(frames, n, generator=generator),
        torch.randn(frames, 5, generator=generator) if features else None,
    )


@pytest.mark.parametrize("features", [True, False])
def test_each_video_is_pruned_as_if_alone_and_in_its_place(features: bool) -> None:
    videos = [video(*size, features=features) for size in ((5, 20), (3, 12), (7, 20), (1, 30), (2, 12))]
    marked = VideoPruner(CONFIG, "eager")(videos)
    assert len(marked) == len(videos)
    for one, ours in zip(videos, marked, strict=True):
        expected = mark_dropped(one.tokens, *prune(one.tokens, one.attention, one.features, config=CONFIG))
        assert torch.equal(ours, expected)


def test_a_model_s_first_video_on_a_gpu_compiles_for_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pruner, "backend_for", lambda *_: "triton")
    monkeypatch.setattr(pruner, "warmup", lambda *kind, **options: compiled.append((*kind, options)))
    prunes = VideoPruner(CONFIG, "auto")
    for frames, n in ((5, 20), (9, 30), (5, 20)):
        prunes([video(frames, n)])
    assert len(compiled) == 1, "videos of other sizes need nothing more"
    device, channels, dtype, options = compiled[0]
    assert (device.type, channels, dtype) == ("cpu", 8, torch.float32)
    assert options == {
        "attn_dtype": torch.float32,
        "feature_channels": 5,
        "feature_dtype": torch.float32,
        "backward": False,
        "config": CONFIG,
    }
    prunes([video(5, 20, torch.bfloat16)])
    prunes([video(5, 20, features=False)])
    assert [one[2] for one in compiled] == [torch.float32, torch.bfloat16, torch.float32]
    assert compiled[2][3]["feature_channels"] is None


def test_a_model_s_first_training_step_on_a_gpu_compiles_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(pruner, "backend_for", lambda *_: "triton")
    monkeypatch.setattr(pruner, "warmup", lambda *_, backward, **__: compiled.append(backward))
    prunes = VideoPruner(CONFIG, "auto")
    trained = video(5, 20)
    trained.tokens.requires_grad_()
    prunes([trained])  # without gradients, as all tests here are
    with torch.enable_grad():
        prunes([trained])
        prunes([trained])
    assert compiled == [False, True]


def test_nothing_is_compiled_where_nothing_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "warmup", lambda *_, **__: pytest.fail("compiled"))
    for backend in ("auto", "eager"):
        VideoPruner(CONFIG, backend)([video(5, 20)])


def test_its_time_is_told_to_whoever_asks() -> None:
    prunes = VideoPruner(CONFIG, "eager")
    prunes([video(5, 20)])
    with measured_seconds() as seconds:
        prunes([video(5, 20), video(3, 12)])
    assert len(seconds) == 1
    assert seconds[0] > 0
    prunes([video(5, 20)])
    assert len(seconds) == 1


def test_on_a_gpu_its_own_time_is_told_and_it_is_not_waited_for_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Event:
        """Stands in for `torch.cuda.Event`: each is recorded 250 ms of the device's time after the one before."""

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "the current stream of cuda:1"
            self.at = 250.0 * len(events)
            events.append("recorded")

        def synchronize(self) -> None:
            events.append("waited")

        def elapsed_time(self, later: Event) -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the current stream of {device}")
    with measured_seconds() as seconds:
        for _ in range(2):
            with part_of_pruning(torch.device("cuda:1")):
                events.append("pruned")
        assert events == ["recorded", "pruned", "recorded"] * 2
    assert seconds == [0.5, 0.5]
    assert events[6:] == ["waited", "waited"]
