"""How a llava model is patched, restored and refused; and its newlines against the published code's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fastvid_kernels import prune
from fastvid_kernels.adapters import apply_fastvid, llava_next
from fastvid_kernels.adapters.decoder import mark_dropped
from tests.adapters import tiny, tiny_llava
from tests.adapters.tiny_llava import IMAGE_TOKEN, Prompt, inputs_of, video_prompt
from tests.golden import load_case


@pytest.fixture
def model(llava: Any) -> Any:
    return tiny_llava.llava_qwen(llava, "grid")


@pytest.mark.parametrize("name", ["llava_video_r10", "llava_video_r25"])
def test_grid_newlines_are_those_of_the_published_code(model: Any, siglip_directory: Any, name: str) -> None:
    case = load_case(name)
    assert case.newline.shape == (tiny.TEXT["hidden_size"],)
    model.model.image_newline.data = case.newline
    apply_fastvid(model, siglip=siglip_directory)
    kept = prune(case.tokens, case.attn, case.frame_features, **case.hyperparameters)
    stream = model.add_token_per_grid(mark_dropped(case.tokens, *kept))
    positions = (stream != -torch.inf).any(1).nonzero().squeeze(1)
    assert torch.equal(positions, case.grid_positions)
    torch.testing.assert_close(stream[positions], case.grid_tokens, rtol=0, atol=1e-5)


def state_of(module: Any) -> tuple[set[str], list[Any], list[Any]]:
    return set(module.__dict__), list(module._forward_hooks.values()), list(module._forward_pre_hooks.values())


def test_remove_leaves_nothing(model: Any, siglip_directory: Any) -> None:
    modules = list(model.modules())
    inputs = inputs_of(video_prompt(3))
    expected = model(**inputs).logits
    before = [state_of(module) for module in modules]
    with apply_fastvid(model, siglip=siglip_directory):
        assert not torch.equal(model(**inputs).logits, expected)
    assert [state_of(module) for module in modules] == before
    assert torch.equal(model(**inputs).logits, expected)


def test_nothing_of_a_video_is_kept_after_a_call(model: Any, siglip_directory: Any) -> None:
    apply_fastvid(model, siglip=siglip_directory)
    model(**inputs_of(video_prompt(3)))
    record = model.get_2dPool._record
    assert record.input is None
    assert record.output is None


def test_a_substitute_for_attention(model: Any, llava: Any) -> None:
    from fastvid_kernels.vision import ATTENTION_SUBSTITUTES

    apply_fastvid(model, attention=next(iter(ATTENTION_SUBSTITUTES)), **tiny_llava.HYPERPARAMETERS)
    inputs = inputs_of(video_prompt(3))
    twin = tiny_llava.llava_qwen(llava, "grid")
    assert (model(**inputs).logits[0, -1] - twin(**inputs).logits[0, -1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mm_newline_position", "row"),
        ("mm_spatial_pool_mode", "median"),
        ("add_faster_video", True),
        ("use_sliding_window", True),
    ],
)
def test_a_setting_that_is_not_supported(model: Any, siglip_directory: Any, setting: str, value: Any) -> None:
    setattr(model.config, setting, value)
    with pytest.raises(ValueError, match=f"{setting} of the model must be"):
        apply_fastvid(model, siglip=siglip_directory)
    assert "fastvid_handle" not in model.__dict__


def test_a_stride_that_is_not_supported(model: Any, siglip_directory: Any) -> None:
    apply_fastvid(model, siglip=siglip_directory)
    with pytest.raises(ValueError, match="stride 2 where video tokens are pruned, got 4"):
        model.get_2dPool(torch.zeros(1, 81, 48), 4)


def test_pooling_outside_the_preparation_of_a_prompt(model: Any, siglip_directory: Any) -> None:
    apply_fastvid(model, siglip=siglip_directory)
    with pytest.raises(RuntimeError, match="must be called by prepare_inputs_labels_for_multimodal"):
        model.get_2dPool(torch.zeros(1, 81, 48))


def test_a_model_without_its_vision_tower(model: Any, siglip_directory: Any) -> None:
    del model.model.vision_tower
    with pytest.raises(ValueError, match="must have a vision tower and mm_projector"):
        apply_fastvid(model, siglip=siglip_directory)


def test_no_token_would_be_kept(model: Any, siglip_directory: Any) -> None:
    with pytest.raises(ValueError, match=r"at least one of a frame's 16 tokens, got 0\.05, which keeps none"):
        apply_fastvid(model, siglip=siglip_directory, retention_ratio=0.05)


def test_no_siglip_head(model: Any, tmp_path: Any) -> None:
    with pytest.raises((OSError, ValueError)):
        apply_fastvid(model, siglip=tmp_path / "nowhere")
    assert "fastvid_handle" not in model.__dict__


@pytest.mark.parametrize("version", ["4.40.2", "4.45.2", "6.0.0"])
def test_a_version_that_is_not_supported(
    model: Any, siglip_directory: Any, monkeypatch: pytest.MonkeyPatch, version: str, pytestconfig: pytest.Config
) -> None:
    if pytestconfig.option.any_version and version == "6.0.0":
        pytest.skip("--any-version takes every newer one")
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(RuntimeError, match=rf"at least 4\.46 .* got {version}: 4\.40\.2, which llava pins"):
        apply_fastvid(model, siglip=siglip_directory)


def test_another_model_of_llava(llava: Any) -> None:
    class LlavaMistralForCausalLM(torch.nn.Module):
        pass

    LlavaMistralForCausalLM.__module__ = llava.__name__
    with pytest.raises(TypeError, match="LlavaQwenForCausalLM of llava"):
        apply_fastvid(LlavaMistralForCausalLM())


def test_a_marked_newline_has_no_token_of_its_row() -> None:
    tokens = torch.ones(2, 3, 4)
    tokens[0] = tokens[1, :2] = -torch.inf

    def with_newlines(tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([tokens, torch.zeros(2, 1, 4)], dim=1)

    marked = llava_next.MarkedNewlines(with_newlines)(tokens)
    assert torch.equal(marked[:, -1].isinf().all(1), torch.tensor([True, False]))


def test_what_the_siglip_tower_of_llava_gives(model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scored patches are the output of the last layer but one, before any norm; 27 by 27 become 13 by 13."""
    encoder = pytest.importorskip(
        "llava.model.multimodal_encoder.siglip_encoder", reason="not shown: this needs the tower of the real llava"
    )
    sizes = tiny.VISION | {"image_size": 54, "patch_size": 2, "num_hidden_layers": 3}
    torch.manual_seed(2)
    siglip = tiny.transformers.SiglipVisionModel(tiny.transformers.SiglipVisionConfig(**sizes)).eval()
    siglip.save_pretrained(tmp_path)
    tower = encoder.SigLipVisionTower(str(tmp_path), model.config, delay_load=True)
    tower.load_model()
    tower.config = tower.vision_tower.config
    model.model.vision_tower = tower.eval()
    scored: list[torch.Tensor] = []

    def score(patches: torch.Tensor) -> tuple[torch.Tensor, None]:
        scored.append(patches)
        return patches.norm(dim=2), None

    monkeypatch.setattr(llava_next, "scorer", lambda settings, hidden_size: score)
    apply_fastvid(model)
    video = torch.randn(3, 3, 54, 54, generator=torch.Generator().manual_seed(1))
    prompt = Prompt([1, IMAGE_TOKEN, 2], (video,), ("video",))
    logits = model(**inputs_of(prompt)).logits
    assert logits.shape[1] == 3 * 13 * 14 + 2
    expected = siglip(video, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(scored[0], expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_deep_copy_is_a_model_of_its_own(model: Any, siglip_directory: Any) -> None:
    handle = apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    copied = copy.deepcopy(model)
    inputs = inputs_of(video_prompt(3))
    expected = model(**inputs).logits
    handle.remove()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(**inputs).logits, expected), "it goes on pruning, with weights of its own"
    copied.fastvid_handle.remove()
    assert not torch.equal(copied(**inputs).logits, expected)
