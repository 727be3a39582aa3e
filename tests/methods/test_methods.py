"""What all methods have in common."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvid_kernels import PruneConfig, methods, prune
from fastvid_kernels.cli.common.descriptors import describe
from fastvid_kernels.cli.videos.video import default_clip, sample_video
from fastvid_kernels.methods import Method
from tests.methods.test_parity import film

NAMES = methods.names()
ABLATIONS = [
    methods.get("fastvid", segmentation=segmentation, merging=merging)
    for segmentation, merging in product(("dynamic", "fixed", "cluster"), ("density", "uniform", "cluster"))
]
ALL = [methods.get(name) for name in NAMES] + ABLATIONS[1:]
DATA_DEPENDENT = {"prunevid", "simple_cluster"}


def name_of(method: Method) -> str:
    return "-".join((method.name, *method.chosen.values()))


every_method = pytest.mark.parametrize("method", ALL, ids=name_of)


def check_valid(indices: Tensor, tokens: Tensor) -> None:
    assert indices.dtype == torch.int64
    assert bool((indices.diff() > 0).all())
    assert int(indices[0]) >= 0
    assert int(indices[-1]) < tokens.shape[0] * tokens.shape[1]


def test_the_list_is_complete_and_says_what_there_is_to_say() -> None:
    published = "uniform random pool attention visionzip dycoke evs vidcom2 vcast prunevid simple_cluster fastvid"
    assert set(NAMES) >= set(published.split())
    assert list(NAMES) == sorted(NAMES)
    for method in ALL:
        assert method.source
        assert method.static == (method.name not in DATA_DEPENDENT)
        if method.name not in ("uniform", "random", "pool", "attention", "evs"):
            assert method.deviations.endswith("."), "in sentences"


@every_method
def test_as_many_rows_as_it_says(method: Method) -> None:
    for frames, n, ratio in product((1, 2, 5, 12), (10, 33), (0.1, 0.27, 0.5, 0.9)):
        tokens, attn, _ = film(frames, n, 8)
        kept, indices = method(tokens, attn, retention_ratio=ratio)
        check_valid(indices, tokens)
        assert kept.shape == (len(indices), 8)
        if method.rows is not None:
            assert len(indices) == method.rows(frames, n, PruneConfig(retention_ratio=ratio))


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_ragged_batch_is_its_videos_one_by_one(method: Method, dtype: torch.dtype) -> None:
    tokens, attn, features = film(14, 20, 12)
    tokens = tokens.to(dtype)
    cu_frames = torch.tensor([0, 5, 6, 14], dtype=torch.int32)
    kept, indices = method(tokens, attn, features, cu_frames, retention_ratio=0.3)
    assert kept.dtype == dtype
    alone = [
        method(tokens[start:end], attn[start:end], features[start:end], retention_ratio=0.3)
        for start, end in ((0, 5), (5, 6), (6, 14))
    ]
    assert torch.equal(kept, torch.cat([one.tokens for one in alone]))
    starts = (0, 5 * 20, 6 * 20)
    assert torch.equal(indices, torch.cat([one.indices + start for one, start in zip(alone, starts, strict=True)]))
    again = method(tokens, attn, features, cu_frames, retention_ratio=0.3)
    assert torch.equal(again.tokens, kept)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_all_changes_nothing(method: Method, dtype: torch.dtype) -> None:
    """Except for prunevid, whose ratio does not decide how much is kept."""
    tokens, attn, _ = film(9, 20, 12)
    tokens = tokens.to(dtype)
    kept, indices = method(tokens, attn, retention_ratio=1.0)
    same = len(kept) == 9 * 20 and torch.equal(kept, tokens.flatten(0, 1))
    assert same == (method.name != "prunevid")
    check_valid(indices, tokens)


@every_method
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0, 3e38, 1e-40])
def test_any_input_is_survived(method: Method, value: float) -> None:
    tokens, attn, features = (one.float() for one in film(9, 20, 12))
    parts = (slice(None), slice(2, 3), slice(4, 9))
    for part, ratio, given in product(parts, (0.1, 0.4, 1.0), (None, features)):
        hostile = [None if one is None else one.clone() for one in (tokens, attn, given)]
        for one in hostile:
            if one is not None:
                one[part] = value
        some = tokens.clone()
        some[3, 4:7] = value
        for changed in (hostile, [some, attn, given]):
            kept, indices = method(*changed, retention_ratio=ratio)
            check_valid(indices, tokens)
            assert len(kept) == len(indices)
            if method.rows is not None:
                assert len(indices) == method.rows(9, 20, PruneConfig(retention_ratio=ratio))


@pytest.fixture(scope="module")
def bikes() -> list[Tensor]:
    described = describe(sample_video(default_clip(), 16).frames)
    return [described.tokens, described.attn, described.frame_features]


@every_method
def test_on_a_real_clip_it_does_something_of_its_own(method: Method, bikes: list[Tensor]) -> None:
    uniform = methods.get("uniform")(*bikes, retention_ratio=0.3)
    kept, indices = method(*bikes, retention_ratio=0.3)
    assert len(kept) < bikes[0].shape[0] * bikes[0].shape[1], "it prunes"
    if method.name == "pool":
        assert torch.equal(indices, uniform.indices)
        assert not torch.equal(kept, uniform.tokens)
    elif method.name != "uniform":
        assert not torch.equal(indices, uniform.indices)
    merges = method.name in ("pool", "visionzip", "prunevid", "simple_cluster", "fastvid")
    assert torch.equal(kept, bikes[0].flatten(0, 1)[indices]) != merges, "it merges, or it copies"


def test_fastvid_by_name_is_the_operator(bikes: list[Tensor]) -> None:
    expected = prune(*bikes, retention_ratio=0.2, tau=0.7)
    assert all(map(torch.equal, methods.get("fastvid")(*bikes, retention_ratio=0.2, tau=0.7), expected))
    without_merging = prune(*bikes, dtm_ratio=0.0)
    assert torch.equal(methods.get("attention")(*bikes).indices, without_merging.indices)


def test_a_backward_pass_says_that_it_ends_here() -> None:
    tokens, attn, _ = film(4, 20, 12)
    kept, _ = methods.get("uniform")(tokens.requires_grad_(), attn)
    with pytest.raises(NotImplementedError, match="uniform has no gradient"):
        kept.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("visionzipp", {}), ValueError, "method must be one of 'attention', .*'visionzip', got 'visionzipp'"),
        (("visionzip", {"share": 1}), TypeError, r"must be given only options that it has \(none\), got share"),
        (("fastvid", {"merging": "mean"}), ValueError, "merging must be one of 'density', .* got 'mean'"),
        (("fastvid", {"segmentation": 8}), ValueError, "segmentation must be one of 'dynamic', .* got 8"),
        (("random", {"seed": 0.5}), TypeError, "seed must be an integer, got 0.5"),
        (("random", {"seed": 2**64}), ValueError, "seed must fit 64 bits, got 18446744073709551616"),
        (("prunevid", {"threshold": "high"}), TypeError, "threshold must be a number, got 'high'"),
        (("prunevid", {"merged_to": 2}), ValueError, r"merged_to must be in \[0, 1\], got 2"),
    ],
)
def test_what_does_not_exist(arguments: tuple[str, dict[str, Any]], error: type[Exception], message: str) -> None:
    name, options = arguments
    with pytest.raises(error, match=message):
        methods.get(name, **options)


def test_an_option_given_twice() -> None:
    with pytest.raises(ValueError, match="seed must be given once, got 'random:seed=1:seed=2'"):
        methods.parse("random:seed=1:seed=2")


@every_method
def test_only_what_it_reads_changes_a_method(method: Method) -> None:
    tokens, attn, features = film(13, 20, 12)
    changes = {"retention_ratio": 0.3, "min_segments": 2, "tau": -1.0, "dtm_ratio": 0.9, "anchor_interval": 2,
               "beta": 0.1, "num_neighbors": 1}  # fmt: skip
    usual = method(tokens, attn, features, retention_ratio=0.5)
    for name, value in changes.items():
        changed = method(tokens, attn, features, **{"retention_ratio": 0.5, name: value})
        same = usual.indices.equal(changed.indices) and usual.tokens.equal(changed.tokens)
        if name not in method.reads:
            assert same, name
        elif method.name != "fastvid":
            # Its ablations leave some unread.
            assert not same, name


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, ValueError, "attn must be given"),
        ((torch.rand(4, 19),), {}, ValueError, "attn must have the shape"),
        ((torch.rand(4, 20), torch.rand(3, 2)), {}, ValueError, "frame_features must have the shape"),
        ((torch.rand(4, 20), None, torch.tensor([0, 5], dtype=torch.int32)), {}, ValueError, "cu_frames must end"),
        ((torch.rand(4, 20), None, torch.tensor([0, 2, 2, 4], dtype=torch.int32)), {}, ValueError, "video 1 reaches"),
        ((torch.rand(4, 20),), {"retention_ratio": 0.01}, ValueError, "retention_ratio must keep at least one"),
        ((torch.rand(4, 20),), {"ratio": 0.5}, TypeError, "ratio"),
        (("high",), {}, TypeError, "attn must be a torch.Tensor"),
    ],
)
def test_bad_arguments(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        methods.get("attention")(torch.rand(4, 20, 8), *arguments, **options)


def test_tokens_of_a_wrong_type() -> None:
    for wrong in ([1.0], torch.rand(4, 20), torch.zeros(4, 20, 8, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError), match="tokens must"):
            methods.get("uniform")(wrong)  # type: ignore[arg-type]
