"""The head against transformers' own: its pooled output, and the averaged weights of its `nn.MultiheadAttention`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from fastvid_kernels.vision import SiglipHead, SiglipHeadConfig
from tests.vision.models import HEADS, HIDDEN, INTERMEDIATE, PATCH, VISION, pixels, randomize, truth, vision_model

CONFIG = SiglipHeadConfig(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_attention_heads=HEADS)
SO400M = SiglipHeadConfig(hidden_size=1152, intermediate_size=4304, num_attention_heads=16)


def head_of(vision: torch.nn.Module, config: SiglipHeadConfig = CONFIG) -> SiglipHead:
    weights = {
        name.removeprefix("head."): weight
        for name, weight in vision.state_dict().items()
        if name.startswith(("head.", "post_layernorm."))
    }
    head = SiglipHead(config)
    head.load_state_dict(weights)
    return head.requires_grad_(False)


@pytest.fixture(scope="module")
def vision() -> Any:
    return vision_model()


@pytest.fixture(scope="module")
def x(vision: Any) -> Tensor:
    """The patches of three frames, as they enter LLaVA's projector."""
    with torch.no_grad():
        return vision(pixels(), output_hidden_states=True).hidden_states[-1]


def test_features_are_the_models_pooled_output(vision: Any, x: Tensor) -> None:
    with torch.no_grad():
        expected = vision(pixels()).pooler_output
    torch.testing.assert_close(head_of(vision)(x).features, expected, rtol=1e-5, atol=1e-6)


def test_attention_is_the_averaged_weights_of_multihead_attention(vision: Any, x: Tensor) -> None:
    attention, _ = head_of(vision)(x)
    expected, _ = truth(vision, x)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention, expected, rtol=1e-5, atol=1e-6)
    assert attention.max() > 2 / attention.shape[1], "nearly uniform attention would show nothing"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", [1, 16])
def test_low_precision_is_as_good_as_transformers_own(vision: Any, dtype: torch.dtype, frames: int) -> None:
    """Against float64 on the same rounded weights: at most twice what transformers itself loses."""
    vision = copy.deepcopy(vision).to(dtype)
    with torch.no_grad():
        x = vision(pixels(frames).to(dtype), output_hidden_states=True).hidden_states[-1]
    attention, features = head_of(vision).to(dtype)(x)
    theirs = truth(vision, x)
    exact = truth(copy.deepcopy(vision).double(), x.double())
    assert (attention.dtype, features.dtype) == (torch.float32, dtype)
    for got, their, true in zip((attention, features), theirs, exact, strict=True):
        assert 0 < (got - true).norm() <= 2 * (their - true).norm() < 0.1 * true.norm()


def test_a_full_precision_head_reads_low_precision_patches(vision: Any, x: Tensor) -> None:
    head, x = head_of(vision), x.bfloat16()
    for got, expected in zip(head(x), head(x.float()), strict=True):
        assert torch.equal(got, expected)


def test_siglip2_computes_the_same() -> None:
    config = {name: VISION[name] for name in VISION if name != "image_size"}
    vision = randomize(Siglip2VisionModel(Siglip2VisionConfig(**config, num_patches=25)))
    patches = torch.randn(2, 24, 3 * PATCH * PATCH, generator=torch.Generator().manual_seed(2))
    whole = torch.ones(2, 24, dtype=torch.int64)
    with torch.no_grad():
        output = vision(patches, whole, torch.tensor([[4, 6], [4, 6]]), output_hidden_states=True)
    features, expected = head_of(vision)(output.hidden_states[-1]).features, output.pooler_output
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_frames_do_not_see_each_other(vision: Any, x: Tensor) -> None:
    head = head_of(vision)
    spoilt = x.clone()
    spoilt[1] = torch.nan
    for got, expected in zip(head(spoilt), head(x), strict=True):
        torch.testing.assert_close(got[[0, 2]], expected[[0, 2]])
        assert got[1].isnan().all()


def test_the_size_of_so400m() -> None:
    """google/siglip-so400m-patch14-384: 13 tensors, 15.24 M parameters; on meta, so nothing may read a value."""
    with torch.device("meta"):
        head = SiglipHead(SO400M)
        attention, features = head(torch.empty(32, 729, 1152))
    assert len(head.state_dict()) == 13
    assert sum(weight.numel() for weight in head.parameters()) == 15_240_656
    assert (attention.shape, features.shape) == ((32, 729), (32, 1152))


@pytest.mark.slow
def test_parity_at_the_size_of_so400m() -> None:
    vision = vision_model(
        hidden_size=1152,
        intermediate_size=4304,
        num_attention_heads=16,
        num_hidden_layers=1,
        image_size=378,
        patch_size=14,
    )
    with torch.no_grad():
        pictures = torch.randn(2, 3, 378, 378, generator=torch.Generator().manual_seed(3))
        output = vision(pictures, output_hidden_states=True)
    attention, features = head_of(vision, SO400M)(output.hidden_states[-1])
    expected, _ = truth(vision, output.hidden_states[-1])
    assert attention.shape == (2, 729)
    torch.testing.assert_close(attention, expected, rtol=1e-5, atol=1e-6)
    largest = output.pooler_output.abs().max().item()
    torch.testing.assert_close(features, output.pooler_output, rtol=0, atol=1e-6 * largest)


def test_compiles_to_one_graph_for_any_number_of_frames(vision: Any, x: Tensor) -> None:
    head = head_of(vision)
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="eager")
    for frames in (3, 2):
        for got, expected in zip(compiled(x[:frames]), head(x[:frames]), strict=True):
            torch.testing.assert_close(got, expected)


def test_a_new_head_is_usable() -> None:
    attention, features = SiglipHead(CONFIG)(torch.randn(2, 9, HIDDEN))
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(2))
    assert features.isfinite().all()


@pytest.mark.parametrize("shape", [(3, HIDDEN), (1, 3, 25, HIDDEN), (3, 25, HIDDEN + 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must be of shape \[F, P, H\] with H = 32, got \[") as refused:
        SiglipHead(CONFIG)(torch.zeros(shape))
    assert str(list(shape)) in str(refused.value)
