"""The Triton backend, compiled and emulated, against the published code and the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import reference
from fastvid_kernels import prune
from tests.eager.test_letterbox import DIM, letterboxed_film
from tests.eager.test_parity import RAGGED, SHAPES, ragged_batch, small_integers, strided_views, video
from tests.golden import QWEN_CASES, case_names, load_case, load_qwen_case
from tests.kernels.explained import check_call, explanation_of, own_distances, run_kernels
from tests.stages import assert_same_bits
from tests.test_validation import HOSTILE_CU_FRAMES

pytestmark = pytest.mark.runs_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LARGEST_CASES = ("llava_video_r10", "onevision_r10")
MEAN_FEATURES = [pytest.param(False, torch.float32, id="mean features-torch.float32")] + [
    pytest.param(False, dtype, id=f"mean features-{dtype}", marks=pytest.mark.slow)
    for dtype in (torch.bfloat16, torch.float16)
]
# Sizes that take several tiles: more anchors than a block has slots, channels that leave a tile partly empty, more
# tokens than a tile.
LARGER_SHAPES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "two blocks of anchors": (5, 100, 150, {"retention_ratio": 0.5, "dtm_ratio": 0.9, "min_segments": 2, "tau": -1.5}),
    "four blocks of anchors": (2, 200, 70, {"retention_ratio": 0.5, "dtm_ratio": 1.0, "anchor_interval": 1}),
    "split channels": (3, 70, 1030, {"retention_ratio": 0.2, "min_segments": 1, "tau": -1.5}),
    "more anchor frames than lanes": (
        11,
        20,
        33,
        {"retention_ratio": 0.3, "anchor_interval": 1, "min_segments": 1, "tau": -1.5},
    ),
    "more than 256 tokens": (3, 300, 24, {"retention_ratio": 0.15, "min_segments": 1, "tau": -1.5}),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGEST_CASES else ()) for name in case_names()],
)
def test_kernels_reproduce_the_published_code(name: str) -> None:
    case = load_case(name)
    call = run_kernels(case.tokens, case.attn, case.frame_features, **case.hyperparameters)
    assert torch.equal(call.indices, case.expected_indices)
    torch.testing.assert_close(call.output, case.expected_tokens, rtol=0, atol=1e-5)
    segments = explanation_of(call).segments
    assert (segments[:, 1] - segments[:, 0]).tolist() == case.segment_lengths


@pytest.mark.parametrize("name", QWEN_CASES)
def test_kernels_reproduce_the_published_block_for_qwen(name: str) -> None:
    case = load_qwen_case(name)
    call = run_kernels(case.tokens, case.attn, None, **case.hyperparameters)
    assert torch.equal(call.indices, case.expected_indices)
    torch.testing.assert_close(call.output, case.expected_tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("given_features", "dtype"),
    [pytest.param(True, dtype, id=f"features-{dtype}") for dtype in DTYPES] + MEAN_FEATURES,
)
def test_every_stage_matches_the_oracle(name: str, dtype: torch.dtype, given_features: bool) -> None:
    frames, n, dim, hyperparameters = SHAPES[name]
    tokens, attn, features = video(frames, n, dim, dtype, seed=len(name))
    check_call(run_kernels(tokens, attn, features if given_features else None, **hyperparameters))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGER_SHAPES)
def test_every_stage_of_several_tiles_matches_the_oracle(name: str, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters = LARGER_SHAPES[name]
    tokens, attn, features = video(frames, n, dim, dtype, seed=len(name))
    check_call(run_kernels(tokens, attn, features, frames_per_chunk=frames, **hyperparameters))


@pytest.mark.parametrize("seed", range(60))
def test_small_integers_match_index_for_index(seed: int) -> None:
    tokens, attn, hyperparameters = small_integers(seed)
    call = run_kernels(tokens, attn, **hyperparameters)
    oracle = reference.prune(tokens, attn, **hyperparameters)
    assert torch.equal(call.indices, oracle.indices)
    for exact in oracle.anchor_frames:
        distances = own_distances(call, exact.frame)[exact.candidates][:, exact.candidates]
        assert torch.equal(distances.double(), exact.squared_distances)
    check_call(call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ragged_batch_matches_the_oracle(dtype: torch.dtype) -> None:
    check_call(run_kernels(*ragged_batch(dtype), **RAGGED))


# Lengths of the anchors in each direction, and number of directions. In "across blocks", the two anchors of
# most directions lie in different blocks of slots.
NEAR_TIES = {"one block": ((1.0, 2.7, 0.37), 4), "across blocks": ((1.0, 2.7), 24)}


def near_ties(lengths: tuple[float, ...], directions: int) -> tuple[Tensor, dict[str, Any]]:
    """Three frames, and hyperparameters that make several anchors of the last frame share almost one direction.

    The cosines of such anchors to a token differ by less than float32 sums can resolve, but by far more than the error
    of float64. Their lengths differ, so that each is a density peak; the frame's other tokens are duplicates.
    """
    generator = torch.Generator().manual_seed(directions)
    anchors = len(lengths) * directions
    tokens = torch.randn(3, anchors * 4 // 3, 133, generator=generator)
    direction = torch.randn(directions, 133, generator=generator)
    tokens[2, :anchors] = torch.cat([direction * length for length in lengths])
    tokens[2, anchors:] = direction[0]
    one_segment = {"min_segments": 1, "tau": -1.5}
    return tokens, {**one_segment, "retention_ratio": 0.25, "dtm_ratio": 1.0, "num_neighbors": 1}


@pytest.mark.parametrize("kind", NEAR_TIES)
def test_float64_settles_what_float32_cannot_tell(kind: str) -> None:
    tokens, hyperparameters = near_ties(*NEAR_TIES[kind])
    call = run_kernels(tokens, torch.zeros(tokens.shape[:2]), torch.ones(3, 2), **hyperparameters)
    (frame,) = check_call(call, cosine_margin=0.0).anchor_frames
    assert len(frame.anchors) == 3 * tokens.shape[1] // 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_equal_anchors_the_first_is_joined(dtype: torch.dtype) -> None:
    """All tokens of the last frame are equal, and so are its 40 anchors, which take two blocks of slots."""
    tokens, attn, features = video(4, 80, 9, dtype, seed=3)
    tokens[3] = tokens[3, :1]
    call = run_kernels(tokens, attn, features, retention_ratio=0.5, dtm_ratio=0.5, min_segments=1, tau=-1.5)
    (frame,) = check_call(call).anchor_frames
    assert len(frame.anchors) == 40
    assert frame.joined_anchor.unique().tolist() == frame.anchors[:1].tolist()


@pytest.mark.parametrize(("hostile", "videos"), HOSTILE_CU_FRAMES)
def test_hostile_cu_frames_are_clamped(hostile: list[int], videos: list[int]) -> None:
    """On a GPU they cannot be checked first; the kernels read them as non-decreasing bounds from 0 to F."""
    tokens, attn, features = video(12, 10, 8, torch.float32, seed=12)
    cu_frames = torch.tensor(hostile, dtype=torch.int32)
    call = run_kernels(tokens, attn, features, cu_frames, retention_ratio=0.4, min_segments=2)
    check_call(call, cu_frames=torch.tensor(videos, dtype=torch.int32))
    assert call.indices[0] >= 0
    assert call.indices[-1] < 120
    assert (call.indices.diff() > 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bar", ["zero", "an embedding"])
def test_black_tokens_do_not_fill_the_anchors(bar: str, dtype: torch.dtype) -> None:
    embedding = torch.zeros(DIM) if bar == "zero" else torch.linspace(-1.7, 2.3, DIM)
    tokens, attn, black = letterboxed_film(6, embedding, dtype, seed=1)
    call = run_kernels(tokens, attn, retention_ratio=0.15, min_segments=2)
    for frame in check_call(call).anchor_frames:
        anchors = frame.anchors - frame.frame * len(black)
        assert anchors[black[anchors]].tolist() == [0], "the first of equal tokens stands for all"


@pytest.mark.parametrize("layout", strided_views(torch.zeros(1, 1, 1)))
def test_strides_do_not_matter(layout: str) -> None:
    tokens, attn, features = video(7, 19, 15, torch.float32, seed=8)
    view = strided_views(tokens)[layout]
    attn_view = torch.stack([attn, attn], dim=-1)[..., 0]
    for given in (features, None):
        feature_view = None if given is None else given.T.contiguous().T
        contiguous = run_kernels(view.contiguous(), attn, given, retention_ratio=0.3)
        strided = run_kernels(view, attn_view, feature_view, retention_ratio=0.3)
        check_call(strided)
        assert torch.equal(strided.indices, contiguous.indices)
        assert_same_bits(strided.output, contiguous.output)


def test_keeping_everything_returns_the_input() -> None:
    tokens, attn, features = video(9, 20, 16, torch.float16, seed=10)
    call = run_kernels(tokens, attn, features, retention_ratio=1.0)
    assert torch.equal(call.indices, torch.arange(180))
    assert_same_bits(call.output, tokens.flatten(0, 1))


def test_public_function_runs_the_kernels() -> None:
    tokens, attn, features = video(8, 20, 16, torch.float32, seed=13)
    call = run_kernels(tokens, attn, features, retention_ratio=0.3)
    pruned = prune(tokens, attn, features, retention_ratio=0.3, backend="triton")
    assert torch.equal(pruned.indices, call.indices)
    assert_same_bits(pruned.tokens, call.output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_full_width(dtype: torch.dtype) -> None:
    """As many channels as a model has, so that the error of tensor cores in sums over them shows."""
    tokens, attn, features = video(2, 196, 3584, dtype, seed=14)
    check_call(run_kernels(tokens, attn, features, retention_ratio=0.1, min_segments=1, tau=-1.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "dtype", "given_features"),
    [
        (6, torch.bfloat16, True),
        (6, torch.bfloat16, False),
        (3, torch.float32, True),
        (3, torch.float16, True),
    ],
    ids=str,
)
def test_full_size(frames: int, dtype: torch.dtype, given_features: bool) -> None:
    tokens, attn, features = video(frames, 196, 3584, dtype, seed=14)
    chosen = features if given_features else None
    check_call(run_kernels(tokens, attn, chosen, retention_ratio=0.1, min_segments=2, tau=-1.5))
