"""Segments of many anchor frames: a pass over their tokens serves four or two of them, whatever the batch holds."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import launch, pipeline
from fastvid_kernels.kernels.groups import BLOCK_SLOTS, GROUP
from tests.eager.test_parity import strided_views, video
from tests.emulator.guarded import GuardedWorkspace
from tests.kernels.explained import check_call, explanation_of, run_kernels
from tests.stages import assert_same_bits, check_merged_rows

pytestmark = pytest.mark.runs_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ONE_SEGMENT = {"min_segments": 1, "tau": -1.5}
EVERY_FRAME = {**ONE_SEGMENT, "anchor_interval": 1}
# Frames, tokens a frame, channels, hyperparameters, and the number of anchors in each anchor frame, the last one first.
LONG: dict[str, tuple[int, int, int, dict[str, Any], list[int]]] = {
    "one group": (15, 20, 40, {"retention_ratio": 0.2, **ONE_SEGMENT}, [6] * 4),
    "a group and one": (17, 20, 40, {"retention_ratio": 0.2, **ONE_SEGMENT}, [6, 6] + [5] * 3),
    "two groups, a pair and one": (11, 70, 24, {"retention_ratio": 0.2, **EVERY_FRAME}, [6] * 6 + [5] * 5),
    "a group and a pair of two blocks": (
        6,
        100,
        70,
        {"retention_ratio": 0.5, "dtm_ratio": 0.9, **EVERY_FRAME},
        [45] * 6,
    ),
    "one block more for some": (
        6,
        100,
        24,
        {"retention_ratio": 0.65, "dtm_ratio": 0.5, **EVERY_FRAME},
        [33] * 3 + [32] * 3,
    ),
    "one block more in a pair": (2, 100, 24, {"retention_ratio": 0.65, "dtm_ratio": 0.5, **EVERY_FRAME}, [33, 32]),
    "a pair": (7, 70, 40, {"retention_ratio": 0.2, **ONE_SEGMENT}, [20, 19]),
    "anchors for some": (9, 12, 24, {"retention_ratio": 0.1, **EVERY_FRAME}, [1] * 3 + [0] * 6),
    "one token a frame more than a tile": (5, 65, 16, {"retention_ratio": 0.1, **EVERY_FRAME}, [3, 3] + [2] * 3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LONG)
def test_every_stage_of_a_long_segment_matches_the_oracle(name: str, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters, anchors = LONG[name]
    call = run_kernels(*video(frames, n, dim, dtype, seed=len(name)), **hyperparameters)
    explanation = check_call(call)
    found = {record.frame: len(record.anchors) for record in explanation.anchor_frames}
    interval = hyperparameters.get("anchor_interval", 4)
    assert [found.get(frame, 0) for frame in range(frames - 1, -1, -interval)] == anchors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_in_one_group_spoils_one_row_in_each_anchor_frame(dtype: torch.dtype) -> None:
    """One matrix product makes the sums of all four anchor frames, and in it 0 * NaN would be NaN."""
    tokens, attn, _ = video(6, 40, 70, dtype, seed=16)
    tokens[4, 7, 2] = float("nan")
    attn[4, 7] = 0.0
    call = run_kernels(tokens, attn, torch.ones(6, 3), retention_ratio=0.3, **EVERY_FRAME)
    assert [len(rows) for rows in rows_not_finite(call)] == [1] * 6
    explanation = explanation_of(call)
    for record in explanation.anchor_frames:
        rows = call.output[torch.searchsorted(call.indices, record.anchors)]
        check_merged_rows(record, tokens, rows, call.config.beta)


def rows_not_finite(call: pipeline.Call) -> list[list[int]]:
    """Rows that are not finite, by the frame that keeps them."""
    rows = call.indices[~call.output.isfinite().all(1)]
    n = call.shapes.tokens_per_frame
    return [[row for row in rows.tolist() if row // n == frame] for frame in range(call.shapes.frames)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_long_video_alone_or_in_company_gives_the_same_bits(dtype: torch.dtype) -> None:
    """In the batch its groups lie elsewhere, beside videos of other lengths, and begin at other tiles."""
    hyperparameters = {"retention_ratio": 0.3, **EVERY_FRAME}
    lengths = (3, 9, 1, 6)
    tokens, attn, features = video(sum(lengths), 30, 40, dtype, seed=6)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    together = run_kernels(tokens, attn, features, starts.int(), **hyperparameters)
    check_call(together)
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        alone = run_kernels(tokens[start:end], attn[start:end], features[start:end], **hyperparameters)
        rows = slice(start * 9, end * 9)
        assert torch.equal(together.indices[rows], alone.indices + 30 * start)
        assert_same_bits(together.output[rows], alone.output)


@pytest.mark.parametrize("ordinals_per_chunk", [GROUP, 2 * GROUP])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_of_whole_groups_change_nothing(dtype: torch.dtype, ordinals_per_chunk: int) -> None:
    tokens, attn, features = video(10, 40, 24, dtype, seed=18)
    hyperparameters = {"retention_ratio": 0.3, **EVERY_FRAME}
    whole = run_kernels(tokens, attn, features, **hyperparameters)
    chunked = run_kernels(tokens, attn, features, ordinals_per_chunk=ordinals_per_chunk, **hyperparameters)
    assert torch.equal(chunked.indices, whole.indices)
    assert_same_bits(chunked.output, whole.output)


@pytest.mark.parametrize("layout", strided_views(torch.zeros(1, 1, 1)))
@pytest.mark.parametrize(("frames", "n"), [(9, 70), (14, 7)])
def test_tiles_reach_into_the_next_frame_whatever_lies_between(frames: int, n: int, layout: str) -> None:
    """Tiles of 64 tokens: parts of two frames, or ten frames; for groups, a pair and one."""
    tokens, attn, features = video(frames, n, 24, torch.float32, seed=20)
    view = strided_views(tokens.bfloat16())[layout]
    hyperparameters = {"retention_ratio": 0.3, **EVERY_FRAME}
    contiguous = run_kernels(view.contiguous(), attn, features, **hyperparameters)
    strided = run_kernels(view, attn, features, **hyperparameters)
    check_call(strided)
    assert torch.equal(strided.indices, contiguous.indices)
    assert_same_bits(strided.output, contiguous.output)


class AsLaidOut(GuardedWorkspace):
    """Scratch laid out as for a GPU, without the gaps that guard every array."""

    def __init__(self, arrays: dict[str, launch.Array], size: int, device: torch.device) -> None:
        launch.Workspace.__init__(self, arrays, size, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_joins_may_lie_where_the_gram_matrices_were(dtype: torch.dtype) -> None:
    """Long videos do so to save memory: nothing reads the Gram matrices by then."""
    arguments, hyperparameters = video(9, 30, 24, dtype, seed=18), {"retention_ratio": 0.3, **EVERY_FRAME}
    apart = run_kernels(*arguments, **hyperparameters)
    pipeline.recipe_for.cache_clear()
    try:
        with mock.patch.object(launch, "_OVERLAID_BYTES", 0), mock.patch.object(pipeline, "Workspace", AsLaidOut):
            overlaid = run_kernels(*arguments, **hyperparameters)
    finally:
        pipeline.recipe_for.cache_clear()
    gram, nearest = (overlaid.workspace._arrays[name] for name in ("gram", "nearest"))
    assert gram.offset == nearest.offset
    assert torch.equal(overlaid.indices, apart.indices)
    assert_same_bits(overlaid.output, apart.output)


@pytest.mark.parametrize("frames", [2**13, 2**15, 2**17, 2**20])
@pytest.mark.parametrize("n", [64, 196, 1024])
def test_chunks_are_of_whole_groups(frames: int, n: int) -> None:
    """The size of a chunk depends on the number of frames; which anchor frames share a pass must not."""
    tokens = torch.empty(frames, n, 1024, dtype=torch.bfloat16, device="meta")
    call = pipeline.prepare(tokens, tokens[..., 0], tokens[:, 0], None, PruneConfig())
    assert call.shapes.ordinals_per_chunk < call.shapes.ordinals
    assert call.shapes.ordinals_per_chunk % GROUP == 0


def test_the_cases_are_what_they_are_called() -> None:
    """If groups or blocks had other sizes, other cases would be needed."""
    assert (GROUP, BLOCK_SLOTS) == (4, 32)
