import pytest
import torch
import torch.nn.functional as F

from benchmarks.inputs.videos import EQUAL_SHOTS, PRESETS, preset_video, synthetic_video


def transitions(video):
    return F.cosine_similarity(video.frame_features[:-1], video.frame_features[1:])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_dtype_and_no_empty_token(preset, dtype):
    video = preset_video(preset, 20, 30, 24, seed=1, dtype=dtype)
    assert video.tokens.shape == (20, 30, 24)
    assert video.attn.shape == (20, 30)
    assert video.frame_features.shape == (20, 1152)
    assert {part.dtype for part in video} == {dtype}
    assert all(torch.isfinite(part).all() for part in video)
    assert (video.tokens.float().norm(dim=-1) > 0).all()
    assert (video.attn > 0).all()


def test_the_seed_decides_and_the_dtype_only_rounds():
    video = preset_video("few cuts", 12, 16, 8, seed=3)
    again = preset_video("few cuts", 12, 16, 8, seed=3)
    half = preset_video("few cuts", 12, 16, 8, seed=3, dtype=torch.float16)
    other = preset_video("few cuts", 12, 16, 8, seed=4)
    for part, same, rounded, different in zip(video, again, half, other, strict=True):
        assert torch.equal(part, same)
        assert torch.equal(part.half(), rounded)
        assert not torch.equal(part, different)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", range(5))
def test_features_are_similar_inside_a_shot_and_only_there(preset, seed):
    similarity = transitions(preset_video(preset, 64, 4, 8, seed=seed))
    boundary = similarity < 0.9
    assert int(boundary.sum()) == PRESETS[preset].shots - 1
    assert (similarity[boundary] < 0.7).all()
    assert (similarity[~boundary] > 0.95).all()


@pytest.mark.parametrize(("frames", "ends"), [(64, [7, 15, 23, 31, 39, 47, 55]), (12, [0, 2, 3, 5, 6, 8, 9])])
def test_equal_shots(frames, ends):
    similarity = transitions(preset_video(EQUAL_SHOTS, frames, 4, 8, seed=0))
    assert (similarity < 0.9).nonzero().flatten().tolist() == ends


def test_tokens_change_little_inside_a_shot_and_much_at_a_cut():
    video = synthetic_video(24, 64, 32, shots=4, drift=0.1, noise=0.05, seed=0)
    change = (video.tokens[1:] - video.tokens[:-1]).square().mean(dim=(1, 2))
    boundary = transitions(video) < 0.9
    assert change[boundary].min() > 10 * change[~boundary].max()


def test_neighbouring_tokens_are_alike():
    video = synthetic_video(4, 196, 64, shots=1, drift=0.1, noise=0.05, seed=0)
    grid = video.tokens.view(4, 14, 14, 64)
    beside = (grid[:, :, 1:] - grid[:, :, :-1]).square().mean()
    far = (grid[:, :, 7:] - grid[:, :, :-7]).square().mean()
    assert beside < 0.25 * far


def test_attention_is_peaky_and_normalised():
    attn = synthetic_video(8, 196, 16, shots=2, drift=0.1, noise=0.1, seed=0).attn
    torch.testing.assert_close(attn.sum(dim=-1), torch.ones(8))
    assert (attn.topk(20, dim=-1).values.sum(dim=-1) > 0.3).all()


@pytest.mark.parametrize("shots", [0, 9])
def test_impossible_number_of_shots(shots):
    with pytest.raises(ValueError, match="between 1 and the number of frames"):
        synthetic_video(8, 4, 4, shots=shots, drift=0.1, noise=0.1, seed=0)
