"""The kernels on a GPU: the parity checks of the emulated lane, and what only a device can show.

`--rehearse` runs those that are not marked `device_only` without a GPU, emulated: `conftest.py` beside this file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import fastvid_kernels
from benchmarks.compared.agreement import agreement
from benchmarks.inputs.videos import PRESETS
from fastvid_kernels.kernels.limits import LEAST_SHARED_BYTES
from fastvid_kernels.kernels.pipeline import Call, shared_bytes_of
from tests.cuda.on_device import (
    DEVICE,
    DTYPES,
    FILM_FRAMES,
    REPEATS,
    STAGES,
    device_work,
    film,
    no_synchronisation,
    on_host,
)
from tests.eager.test_parity import RAGGED, SHAPES, ragged_batch, strided_views, video
from tests.golden import case_names, load_case
from tests.kernels.explained import check_call, explanation_of, overlapping, run_kernels
from tests.kernels.test_parity import LARGER_SHAPES, NEAR_TIES, near_ties
from tests.stages import assert_same_bits
from tests.test_validation import HOSTILE_CU_FRAMES

pytestmark = pytest.mark.cuda
device_only = pytest.mark.device_only

FULL_WIDTH_FRAMES = 8
FEW_SEGMENTS = {"retention_ratio": 0.4, "min_segments": 2}


def run_on_device(
    tokens: Tensor, attn: Tensor, frame_features: Tensor | None = None, cu_frames: Tensor | None = None, **options: Any
) -> Call:
    """Run a call on the device; returns it with all its scratch on the host."""
    given = [None if one is None else one.to(DEVICE) for one in (attn, frame_features, cu_frames)]
    # `.to` would not keep all strides.
    on_device = torch.empty_strided(tokens.shape, tokens.stride(), dtype=tokens.dtype, device=DEVICE)
    if 0 in tokens.stride():
        on_device = tokens[:1].to(DEVICE).expand(tokens.shape)
    else:
        on_device.copy_(tokens)
    return on_host(run_kernels(on_device, *given, **options))


def check_on_device(*inputs: Tensor | None, **options: Any) -> Call:
    """Check all stages of a call on the device against the oracle."""
    call = run_on_device(*inputs, **options)
    check_call(call)
    return call


def prune(*inputs: Tensor | None, **hyperparameters: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.fastvid.prune(*inputs, **hyperparameters)


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    assert_same_bits(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("name", case_names())
def test_kernels_reproduce_the_published_code(name: str) -> None:
    case = load_case(name)
    call = run_on_device(case.tokens, case.attn, case.frame_features, **case.hyperparameters)
    assert torch.equal(call.indices, case.expected_indices)
    torch.testing.assert_close(call.output, case.expected_tokens, rtol=0, atol=1e-5)
    segments = explanation_of(call).segments
    assert (segments[:, 1] - segments[:, 0]).tolist() == case.segment_lengths


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given_features", [True, False], ids=["features", "mean features"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_stage_matches_the_oracle(name: str, given_features: bool, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters = SHAPES[name]
    tokens, attn, features = video(frames, n, dim, dtype, seed=len(name))
    check_on_device(tokens, attn, features if given_features else None, **hyperparameters)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGER_SHAPES)
def test_every_stage_of_several_tiles_matches_the_oracle(name: str, dtype: torch.dtype) -> None:
    frames, n, dim, hyperparameters = LARGER_SHAPES[name]
    tokens, attn, features = video(frames, n, dim, dtype, seed=len(name))
    check_on_device(tokens, attn, features, frames_per_chunk=frames, **hyperparameters)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("frames", "n"), [(5, 300), (3, 1024)])
def test_chunks_change_nothing(frames: int, n: int, dtype: torch.dtype) -> None:
    """Later chunks reuse the scratch of earlier ones."""
    tokens, attn, features = video(frames, n, 64, dtype, seed=n)
    hyperparameters = {"retention_ratio": 0.2, "min_segments": 1, "tau": -1.5, "anchor_interval": 2}
    chunked = run_on_device(tokens, attn, features, ordinals_per_chunk=1, **hyperparameters)
    assert chunked.shapes.frames_per_chunk < frames
    whole = check_on_device(tokens, attn, features, frames_per_chunk=frames, **hyperparameters)
    assert_same((chunked.output, chunked.indices), (whole.output, whole.indices))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_tokens_in_different_tiles_stay_in_order(dtype: torch.dtype) -> None:
    """If a product is not symmetric, equal tokens get different densities; their order must not depend on that."""
    tokens, attn, features = video(4, 196, 256, dtype, seed=21)
    for first in (3, 20, 60):
        tokens[:, first + 64] = tokens[:, first + 128] = tokens[:, first]
        attn[:, first] = attn[:, first + 64] = attn[:, first + 128] = 0
    call = check_on_device(tokens, attn, features, retention_ratio=0.3, min_segments=2)
    anchors = explanation_of(call).anchors % 196
    for first in (3, 20, 60):
        for later in (first + 64, first + 128):
            assert later not in anchors.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [169, 196])
def test_every_stage_at_full_width_matches_the_oracle(n: int, dtype: torch.dtype) -> None:
    tokens, attn, features = video(FULL_WIDTH_FRAMES, n, 3584, dtype, seed=n)
    check_on_device(tokens, attn, features, min_segments=2, tau=-1.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ragged_batch_matches_the_oracle(dtype: torch.dtype) -> None:
    check_on_device(*ragged_batch(dtype), **RAGGED)


@pytest.mark.parametrize(("hostile", "videos"), HOSTILE_CU_FRAMES)
def test_hostile_cu_frames_are_clamped(hostile: list[int], videos: list[int]) -> None:
    inputs = video(12, 10, 8, torch.float32, seed=12)
    cu_frames = torch.tensor(hostile, dtype=torch.int32)
    call = run_on_device(*inputs, cu_frames, **FEW_SEGMENTS)
    check_call(call, cu_frames=torch.tensor(videos, dtype=torch.int32))


@device_only
@pytest.mark.parametrize(("hostile", "videos"), HOSTILE_CU_FRAMES)
def test_both_backends_read_hostile_cu_frames_alike(hostile: list[int], videos: list[int]) -> None:
    """Only on a device: on the CPU such `cu_frames` are refused."""
    cu_frames = torch.tensor(hostile, dtype=torch.int32)
    on_device = [one.to(DEVICE) for one in (*video(12, 10, 8, torch.float32, seed=12), cu_frames)]
    _, ours = torch.ops.fastvid.prune_triton(*on_device, **FEW_SEGMENTS)
    _, theirs = torch.ops.fastvid.prune_eager(*on_device, **FEW_SEGMENTS)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", NEAR_TIES)
def test_float64_settles_what_float32_cannot_tell(kind: str) -> None:
    tokens, hyperparameters = near_ties(*NEAR_TIES[kind])
    call = run_on_device(tokens, torch.zeros(tokens.shape[:2]), torch.ones(3, 2), **hyperparameters)
    check_call(call, cosine_margin=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf"), 3e38, 1e-45])
def test_hostile_values(value: float, dtype: torch.dtype) -> None:
    """Hardware computes the maximum of NaN and a number in its own way, which the interpreter cannot show."""
    pytest.importorskip("hypothesis", reason="the checks live beside tests that need it")
    from tests.kernels.test_any_input import check_hostile_call

    tokens, attn, _ = video(8, 60, 70, dtype, seed=16)
    if math.isfinite(value):
        # float16 cannot hold larger values.
        value = min(value, torch.finfo(dtype).max)
    tokens[5, 7, 2] = tokens[2, 3, 0] = value
    tokens[4] = value
    attn[1, 9] = attn[6] = value
    check_hostile_call(tokens, attn, None, {"retention_ratio": 0.35}, run=run_on_device)


@pytest.mark.parametrize("layout", strided_views(torch.zeros(1, 1, 1)))
def test_strides_do_not_matter(layout: str) -> None:
    tokens, attn, features = video(7, 19, 15, torch.float32, seed=8)
    view = strided_views(tokens)[layout]
    contiguous = run_on_device(view.contiguous(), attn, features, retention_ratio=0.3)
    strided = check_on_device(view, attn, features, retention_ratio=0.3)
    assert_same((strided.output, strided.indices), (contiguous.output, contiguous.indices))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_full_size_agrees_with_the_eager_backend(dtype: torch.dtype, preset: str) -> None:
    """The two may differ only in near-ties, which they round differently."""
    inputs = film(0, preset, dtype)
    ours = [one.cpu() for one in prune(*inputs)]
    theirs = torch.ops.fastvid.prune_eager(*(one.cpu() for one in inputs))
    found = agreement((ours[0], ours[1]), theirs, relative_tolerance=1e-2)
    assert found.overlap >= 0.995
    assert found.close_rows >= 0.99


def test_the_operator_takes_the_kernels() -> None:
    inputs = film(1)
    assert_same(prune(*inputs), torch.ops.fastvid.prune_triton(*inputs))


@pytest.mark.parametrize("given_features", [True, False], ids=["features", "mean features"])
def test_repeats_give_the_same_bits(given_features: bool) -> None:
    tokens, attn, features = film(2, "one static shot")
    first = prune(tokens, attn, features if given_features else None)
    for _ in range(REPEATS):
        assert_same(prune(tokens, attn, features if given_features else None), first)


def test_a_video_alone_or_in_company_gives_the_same_bits() -> None:
    videos = [film(seed, preset) for seed, preset in enumerate(PRESETS)]
    cu_frames = torch.arange(len(videos) + 1, dtype=torch.int32, device=DEVICE) * FILM_FRAMES
    tokens, indices = prune(*(torch.cat(parts) for parts in zip(*videos, strict=True)), cu_frames)
    for number, one in enumerate(videos):
        alone = prune(*one)
        rows = slice(number * len(alone[1]), (number + 1) * len(alone[1]))
        assert_same((tokens[rows], indices[rows] - number * FILM_FRAMES * 196), alone)


@device_only
@pytest.mark.parametrize("given_features", [True, False], ids=["features", "mean features"])
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "one video"])
def test_the_host_never_waits(given_features: bool, ragged: bool) -> None:
    tokens, attn, features = film(3)
    inputs = (tokens, attn, features if given_features else None)
    cu_frames = torch.tensor([0, 8, 32], dtype=torch.int32, device=DEVICE) if ragged else None
    expected = prune(*inputs, cu_frames)
    with no_synchronisation():
        pruned = prune(*inputs, cu_frames)
    assert_same(pruned, expected)


@device_only
def test_the_host_does_not_wait_for_a_dense_batch_either() -> None:
    batch = [part.unflatten(0, (2, 16)) for part in film(3)]
    expected = fastvid_kernels.prune(*batch)
    with no_synchronisation():
        pruned = fastvid_kernels.prune(*batch)
    assert_same(pruned, expected)


@device_only
def test_a_wait_is_noticed() -> None:
    with no_synchronisation(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device=DEVICE).item()


@device_only
def test_a_call_is_eight_kernels_on_the_device(tmp_path: Path) -> None:
    inputs = film(4)
    prune(*inputs)
    # A process's first profile may miss the first kernels.
    seen = [device_work(lambda: inputs[0].clone(), tmp_path / "clone.json") for _ in range(2)]
    if not any(seen):
        pytest.skip("the profiler sees nothing on this machine")
    found = device_work(lambda: prune(*inputs), tmp_path / "call.json")
    assert sorted(found) == sorted(f"{stage}_kernel" for stage in STAGES)


@device_only
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "one video"])
def test_a_graph_replays_on_new_inputs(ragged: bool) -> None:
    kinds = ["many cuts", "few cuts", "one static shot"]
    videos = [film(seed, preset) for seed, preset in enumerate(kinds)]
    bounds = [[0, 8, 32], [0, 31, 32], [0, 16, 32]]
    inputs = [
        (*one, torch.tensor(bound, dtype=torch.int32, device=DEVICE) if ragged else None)
        for one, bound in zip(videos, bounds, strict=True)
    ]
    expected = [prune(*one) for one in inputs]
    held = [None if one is None else one.clone() for one in inputs[0]]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = prune(*held)
    for chosen in (1, 2, 0, 2, 1):
        for buffer, value in zip(held, inputs[chosen], strict=True):
            if buffer is not None:
                buffer.copy_(value)
        for result in replayed:
            result.view(torch.uint8).fill_(0xFF)
        graph.replay()
        assert_same(replayed, expected[chosen])


can_overlap = torch.cuda.is_available() and not torch.version.hip and torch.cuda.get_device_capability() >= (9, 0)
needs_overlap = pytest.mark.skipif(not can_overlap, reason="needs sm_90")


@device_only
@needs_overlap
def test_launches_that_overlap_give_the_same_bits() -> None:
    videos = [film(seed, preset) for seed, preset in enumerate(PRESETS)]
    apart = [prune(*one) for one in videos]
    with overlapping():
        for _ in range(REPEATS):
            for found, expected in zip([prune(*one) for one in videos], apart, strict=True):
                assert_same(found, expected)


@device_only
@needs_overlap
def test_a_graph_of_launches_that_overlap_gives_the_same_bits() -> None:
    """The next call follows at once, so that a launch that did not wait would meet the scratch of another video."""
    videos = [film(seed, preset) for seed, preset in enumerate(PRESETS)]
    apart = [prune(*one) for one in videos]
    with overlapping():
        prune(*videos[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = [prune(*one) for one in videos]
    for _ in range(REPEATS):
        for result in sum(replayed, ()):
            result.view(torch.uint8).fill_(0xFF)
        graph.replay()
        for found, expected in zip(replayed, apart, strict=True):
            assert_same(found, expected)


@device_only
def test_stages_follow_the_shared_memory_of_this_device() -> None:
    """Its multiprocessors hold what a block may ask for, and no less than the smallest supported."""
    block_bytes = torch.cuda.get_device_properties(DEVICE).shared_memory_per_block_optin
    assert max(block_bytes, LEAST_SHARED_BYTES) <= shared_bytes_of(DEVICE) <= 2 * block_bytes


@device_only
def test_any_stream() -> None:
    """The work is queued on the caller's stream: it sees inputs that this stream is still about to write."""
    inputs = film(5)
    expected = prune(*inputs)
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(one) for one in inputs]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for buffer, value in zip(late, inputs, strict=True):
            buffer.copy_(value)
        pruned = prune(*late)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(pruned, expected)


@device_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_current() -> None:
    inputs = film(6)
    expected = prune(*inputs)
    pruned = prune(*(one.to("cuda:1") for one in inputs))
    assert_same((pruned[0].to(DEVICE), pruned[1].to(DEVICE)), expected)


def test_fullgraph_compilation_gives_the_same_bits() -> None:
    def around(tokens: Tensor, attn: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        kept, indices = prune(tokens * 2, attn, features)
        return kept * 0.5, indices + 1

    inputs = film(7)
    compiled = torch.compile(around, fullgraph=True)
    assert_same(compiled(*inputs), around(*inputs))


def test_a_dense_batch_equals_its_videos() -> None:
    videos = [film(seed) for seed in (8, 9)]
    together = fastvid_kernels.prune(*(torch.stack(parts) for parts in zip(*videos, strict=True)), backend="triton")
    for number, one in enumerate(videos):
        assert_same((together.tokens[number], together.indices[number]), prune(*one))
