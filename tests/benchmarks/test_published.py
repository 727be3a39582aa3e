"""The rebuilt baseline computes what was published: its results are equal, not only its structure."""

import pytest
import torch

from benchmarks.compared.published import llava_video_form, onevision_form
from benchmarks.inputs.videos import preset_video
from tests.golden import case_names, load_case

PAPER = {
    "retention_ratio": 0.1,
    "min_segments": 8,
    "tau": 0.9,
    "dtm_ratio": 0.4,
    "anchor_interval": 4,
    "beta": 0.6,
}


def without_noise(form, case):
    return form(case.tokens, case.attn, case.frame_features, noise=0, **case.hyperparameters)


@pytest.mark.parametrize("name", case_names())
def test_llava_video_form_reproduces_the_published_outputs(name):
    case = load_case(name)
    tokens, indices = without_noise(llava_video_form, case)
    assert torch.equal(indices, case.expected_indices)
    torch.testing.assert_close(tokens, case.expected_tokens, rtol=0, atol=1e-5)


# Percent of the golden indices that the OneVision form keeps too, as docs/method.md quotes them.
ONEVISION_OVERLAP = {
    "onevision_r10": 96.9,
    "llava_video_r10": 97.4,
    "llava_video_r25": 98.3,
    "static_scene": 97.1,
    "all_cuts": 100.0,
    "every_frame_anchors": 93.8,
    "long_interval": 89.3,
    "mean_merge": 100.0,
}


@pytest.mark.parametrize("name", case_names())
def test_onevision_form_differs_from_the_specified_operator_as_documented(name):
    case = load_case(name)
    _, indices = without_noise(onevision_form, case)
    overlap = torch.isin(case.expected_indices, indices).float().mean().item()
    assert round(100 * overlap, 1) == ONEVISION_OVERLAP[name]


def test_onevision_form_keeps_fewer_tokens():
    # Division remainders are dropped: 605 of 608 here.
    case = load_case("onevision_r10")
    tokens, indices = without_noise(onevision_form, case)
    assert tokens.shape == (605, case.tokens.shape[-1])
    assert len(indices) == 605


def test_onevision_form_agrees_on_single_frame_segments_but_for_the_anchor_joining_itself():
    # Alone in its segment, a frame has the same budgets in both forms; merged rows differ in weights.
    case = load_case("all_cuts")
    tokens, indices = without_noise(onevision_form, case)
    assert torch.equal(indices, case.expected_indices)
    sources = case.tokens.flatten(0, 1)[indices]
    unmerged = (case.expected_tokens == sources).all(dim=-1)
    assert unmerged.any()
    torch.testing.assert_close(tokens[unmerged], sources[unmerged], rtol=0, atol=1e-6)
    assert (tokens[~unmerged] - case.expected_tokens[~unmerged]).norm(dim=-1).min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [llava_video_form, onevision_form])
def test_every_dtype_keeps_ascending_distinct_tokens_of_that_dtype(form, dtype):
    video = preset_video("few cuts", 16, 64, 48, seed=0, dtype=dtype)
    tokens, indices = form(*video, **PAPER)
    assert tokens.dtype == dtype
    assert len(tokens) == len(indices) <= 16 * 6
    assert torch.isfinite(tokens).all()
    assert (indices.diff() > 0).all()
    assert 0 <= indices[0] <= indices[-1] < 16 * 64


def test_noise_tells_equal_tokens_apart():
    # Twelve distinct vectors in every frame, each six times: without noise all copies of the densest lead.
    torch.manual_seed(0)
    patterns = torch.randn(12, 32)
    tokens = patterns.repeat(6, 1).expand(8, -1, -1).contiguous()
    attn, features = torch.rand(8, 72).softmax(-1), torch.randn(8, 16)
    _, repeatable = llava_video_form(tokens, attn, features, noise=0, **PAPER)
    _, again = llava_video_form(tokens, attn, features, noise=0, **PAPER)
    draws = {tuple(llava_video_form(tokens, attn, features, **PAPER)[1].tolist()) for _ in range(8)}
    assert torch.equal(repeatable, again)
    assert len(draws) > 1


@pytest.mark.parametrize("form", [llava_video_form, onevision_form])
def test_the_published_limit_on_short_videos_is_kept(form):
    video = preset_video("few cuts", 6, 64, 48, seed=0)
    with pytest.raises(RuntimeError, match="out of range"):
        form(*video, **PAPER)
