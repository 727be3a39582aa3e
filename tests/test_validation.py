"""Bad input is refused before anything is computed, by name, value and expectation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastvid_kernels import PruneConfig, explain, prune
from fastvid_kernels.validation import read_cu_frames

F, N, D = 6, 10, 4


def arguments(**changes: Any) -> dict[str, Any]:
    good = {"tokens": torch.rand(F, N, D), "attn": torch.rand(F, N), "frame_features": torch.rand(F, 3)}
    return {**good, **changes}


def cu(*starts: int) -> Tensor:
    return torch.tensor(starts, dtype=torch.int32)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a list of tokens": ({"tokens": [[[1.0]]]}, TypeError, "tokens must be a torch.Tensor, got list"),
    "an array of attention": ({"attn": np.ones((F, N))}, TypeError, "attn must be a torch.Tensor, got ndarray"),
    "no attention": ({"attn": None}, TypeError, "attn must be a torch.Tensor, got NoneType"),
    "a number of features": ({"frame_features": 0.1}, TypeError, "frame_features must be a torch.Tensor, got float"),
    "a list of cu_frames": ({"cu_frames": [0, F]}, TypeError, "cu_frames must be a torch.Tensor, got list"),
    "tokens of rank 2": ({"tokens": torch.rand(F, D)}, ValueError, "tokens must be of shape [F, N, D], got 2 dim"),
    "tokens of rank 5": ({"tokens": torch.rand(1, 1, F, N, D)}, ValueError, "tokens must be of shape [F, N, D]"),
    "integer tokens": ({"tokens": torch.ones(F, N, D, dtype=torch.int32)}, TypeError, "tokens must be float32 or"),
    "complex tokens": (
        {"tokens": torch.ones(F, N, D, dtype=torch.complex64)},
        TypeError,
        "tokens must be float32 or bfloat16 or float16 or float64, got complex64",
    ),
    "boolean tokens": ({"tokens": torch.ones(F, N, D, dtype=torch.bool)}, TypeError, "got bool"),
    "sparse tokens": ({"tokens": torch.rand(F, N, D).to_sparse()}, TypeError, "tokens must be a dense tensor"),
    "empty video": (
        {"tokens": torch.rand(0, N, D), "attn": torch.rand(0, N), "frame_features": None},
        ValueError,
        "tokens must hold at least one frame, got shape [0, 10, 4]",
    ),
    "no tokens in a frame": (
        {"tokens": torch.rand(F, 0, D), "attn": torch.rand(F, 0)},
        ValueError,
        "N >= 1 tokens of D >= 1 channels a frame, got shape [6, 0, 4]",
    ),
    "no channels": ({"tokens": torch.rand(F, N, 0)}, ValueError, "D >= 1 channels a frame, got shape [6, 10, 0]"),
    "nothing kept": (
        {"retention_ratio": 0.09},
        ValueError,
        "retention_ratio must keep at least one of a frame's 10 tokens, got 0.09, which keeps none: use 0.1 or more",
    ),
    "fewer frames of attention": (
        {"attn": torch.rand(F - 1, N)},
        ValueError,
        "attn must have the shape [F, N] = [6, 10] that tokens have, got [5, 10]",
    ),
    "more tokens of attention": ({"attn": torch.rand(F, N + 1)}, ValueError, "attn must have the shape"),
    "attention of rank 3": ({"attn": torch.rand(F, N, 1)}, ValueError, "attn must be of shape [F, N], got 3 dim"),
    "integer attention": ({"attn": torch.ones(F, N, dtype=torch.int64)}, TypeError, "attn must be float32 or"),
    "attention elsewhere": (
        {"attn": torch.rand(F, N, device="meta")},
        ValueError,
        "attn must be on the device of tokens, cpu, got meta",
    ),
    "features of rank 1": ({"frame_features": torch.rand(F)}, ValueError, "frame_features must be of shape [F, G]"),
    "features of other frames": (
        {"frame_features": torch.rand(F + 1, 3)},
        ValueError,
        "frame_features must have the shape [F, G] with F = 6 as in tokens and G >= 1, got [7, 3]",
    ),
    "features of no channel": ({"frame_features": torch.rand(F, 0)}, ValueError, "G >= 1, got [6, 0]"),
    "integer features": ({"frame_features": torch.ones(F, 3, dtype=torch.int8)}, TypeError, "frame_features must be"),
    "cu_frames of int64": ({"cu_frames": torch.tensor([0, F])}, TypeError, "cu_frames must be int32, got int64"),
    "cu_frames of rank 0": (
        {"cu_frames": torch.tensor(F, dtype=torch.int32)},
        ValueError,
        "cu_frames must be of shape",
    ),
    "cu_frames of one entry": ({"cu_frames": cu(0)}, ValueError, "cu_frames must have B + 1 >= 2 entries, got 1"),
    "cu_frames from 1": ({"cu_frames": cu(1, F)}, ValueError, "cu_frames must start with 0, got 1"),
    "cu_frames too short": (
        {"cu_frames": cu(0, F - 1)},
        ValueError,
        "cu_frames must end with the number of frames, 6, got 5",
    ),
    "cu_frames too long": ({"cu_frames": cu(0, F + 1)}, ValueError, "number of frames, 6, got 7"),
    "cu_frames descending": ({"cu_frames": cu(0, 4, 2, F)}, ValueError, "video 1 reaches from 4 to 2"),
    "empty video in a batch": ({"cu_frames": cu(0, 3, 3, F)}, ValueError, "video 1 reaches from 3 to 3"),
    "ratio out of range": ({"retention_ratio": 1.5}, ValueError, "retention_ratio must be in (0, 1], got 1.5"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [prune, explain, torch.ops.fastvid.prune])
def test_bad_input_is_named(function: Any, name: str) -> None:
    changes, error, message = BAD[name]
    if "must be a torch.Tensor" in message and function is torch.ops.fastvid.prune:
        pytest.skip("the dispatcher takes tensors only")
    with pytest.raises(error, match=re.escape(message)):
        function(**arguments(**changes))


@pytest.mark.parametrize("name", [name for name, (changes, *_) in BAD.items() if "cu_frames" not in changes])
def test_bad_input_is_named_without_data_too(name: str) -> None:
    """On meta tensors, as tracing uses them: what shapes alone show to be wrong is refused before anything runs."""
    changes, error, message = BAD[name]
    if name in ("attention elsewhere", "sparse tokens") or "must be a torch.Tensor" in message:
        pytest.skip("not to be had on the meta device")
    on_meta = {key: x.to("meta") if isinstance(x, Tensor) else x for key, x in arguments(**changes).items()}
    with pytest.raises(error, match=re.escape(message)):
        torch.ops.fastvid.prune(**on_meta)


def test_the_advised_retention_ratio_is_the_least_that_keeps_a_token() -> None:
    for n in range(1, 1200):
        with pytest.raises(ValueError, match="use ") as caught:
            prune(torch.rand(1, n, 1), torch.rand(1, n), retention_ratio=4e-7)
        advised = float(str(caught.value).split("use ")[1].split(" ")[0])
        assert PruneConfig(retention_ratio=advised).kept_per_frame(n) >= 1
        assert PruneConfig(retention_ratio=advised - 1e-6 or 1e-7).kept_per_frame(n) == 0 or n == 1


def test_unknown_hyperparameters_and_backends_are_refused() -> None:
    for function in (prune, explain):
        with pytest.raises(TypeError, match=r"hyperparameters must be among retention_ratio, .*, got retention$"):
            function(**arguments(), retention=0.1)
        with pytest.raises(TypeError, match=r"config must be a PruneConfig, got \{'tau': 0.5\}"):
            function(**arguments(), config={"tau": 0.5})
    with pytest.raises(ValueError, match=r"backend must be 'auto', 'eager' or 'triton', got 'cuda'"):
        prune(**arguments(), backend="cuda")


def test_dense_batch_must_agree() -> None:
    tokens = torch.rand(2, F, N, D)
    with pytest.raises(ValueError, match=r"attn must have 3 dimensions and start with \[B, F\] = \[2, 6\]"):
        prune(tokens, torch.rand(2 * F, N))
    with pytest.raises(ValueError, match="attn must have the shape"):
        prune(tokens, torch.rand(2, F, N + 1))
    with pytest.raises(ValueError, match=r"frame_features must have 3 dimensions"):
        prune(tokens, torch.rand(2, F, N), torch.rand(F, 3))
    with pytest.raises(ValueError, match="cu_frames must be None for a dense batch"):
        prune(tokens, torch.rand(2, F, N), cu_frames=cu(0, F))
    with pytest.raises(ValueError, match=r"at least one video, got shape \[0, 6, 10, 4\]"):
        prune(torch.rand(0, F, N, D), torch.rand(0, F, N))


HOSTILE_CU_FRAMES = [
    ([3, 5], [0, 12]),
    ([0, 3, 12], [0, 3, 12]),
    ([7, 5, 12], [0, 7, 12]),
    ([0, 7, 4, 12], [0, 7, 12]),
    ([0, -5, 3, 3, 2, 9, 100, 7], [0, 3, 9, 12]),
    ([2**31 - 1, -(2**31), 2**31 - 1, 0], [0, 12]),
    ([-7, -(2**31), 2**31 - 1], [0, 12]),
    ([-1, 12, 12, 12], [0, 12]),
    ([5, 0, 6, 0], [0, 5, 6, 12]),
]
"""Entries of `cu_frames`, and how every backend that cannot check them first reads them, for 12 frames."""


@pytest.mark.parametrize(("starts", "clamped"), HOSTILE_CU_FRAMES)
def test_cu_frames_that_cannot_be_checked_are_clamped(starts: list[int], clamped: list[int]) -> None:
    """Off the CPU a check would cost a sync; instead each entry is clamped between its predecessor and F."""

    class OnADevice(Tensor):
        device = torch.device("cuda")

    assert read_cu_frames(cu(*starts).as_subclass(OnADevice), 12) == clamped


@pytest.mark.parametrize("value", [[[0.5]], None, "attn"])
def test_a_dense_batch_of_something_else(value: Any) -> None:
    tokens = torch.zeros(2, 3, 20, 4)
    with pytest.raises(TypeError, match=r"attn must be a torch\.Tensor, got"):
        prune(tokens, value)
    if value is not None:
        with pytest.raises(TypeError, match=r"frame_features must be a torch\.Tensor, got"):
            prune(tokens, torch.zeros(2, 3, 20), value)
