"""Putting the patch on and taking it off; what else people do to a model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastvid_kernels.adapters import FastVidHandle, apply_fastvid
from fastvid_kernels.vision import load_siglip_head
from tests.adapters import tiny
from tests.adapters.test_onevision_generation import GREEDY, check_generated
from tests.adapters.test_onevision_prefill import check_row, inputs_of, video_prompt

HOOKS = [name for name in nn.Module().__dict__ if "hooks" in name]


def everything_about(model: nn.Module) -> dict[str, Any]:
    """All that a patch could change on the instance, module by module."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = {
            key: list(value) if key in HOOKS else id(value)
            for key, value in module.__dict__.items()
            if not key.startswith("_parameters")
        }
    return found


@pytest.fixture
def model() -> Any:
    return tiny.llava_onevision()


def test_remove_leaves_nothing(model: Any, siglip_directory: Any) -> None:
    answer = model(**inputs_of(video_prompt(3))).logits
    model.generate(**inputs_of(video_prompt(3)), max_new_tokens=2)
    before = everything_about(model)
    handle = apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    assert everything_about(model) != before
    assert not torch.equal(model(**inputs_of(video_prompt(3))).logits, answer)
    handle.remove()
    assert everything_about(model) == before
    assert torch.equal(model(**inputs_of(video_prompt(3))).logits, answer)
    handle.remove()
    assert everything_about(model) == before


def test_a_block_restores_the_model_also_after_an_exception(model: Any, siglip_directory: Any) -> None:
    before = everything_about(model)

    def fail_inside() -> None:
        with apply_fastvid(model, siglip=siglip_directory) as handle:
            assert model.fastvid_handle is handle
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert everything_about(model) == before


def test_a_head_that_would_not_be_read_is_refused(model: Any, siglip_directory: Any) -> None:
    with pytest.raises(ValueError, match="siglip must be left out with attention 'norm'"):
        apply_fastvid(model, siglip=siglip_directory, attention="norm")
    assert "fastvid_handle" not in model.__dict__


def test_a_handle_serves_one_block(model: Any, siglip_directory: Any) -> None:
    """A second one would run unpruned without a word."""
    handle = apply_fastvid(model, siglip=siglip_directory)
    with handle:
        pass
    with pytest.raises(RuntimeError, match="call apply_fastvid again"), handle:
        pass


def test_an_exception_inside_the_model_leaves_it_usable(
    model: Any, siglip_directory: Any, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    prompt = video_prompt(3)
    layers = model.model.language_model.layers
    with monkeypatch.context() as patch:
        patch.setattr(layers[1], "forward", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs_of(prompt))
    text = tiny.batch([tiny.words(1, 20)])
    assert torch.equal(model(**text).logits, tiny.llava_onevision()(**text).logits)
    check_row(model(**inputs_of(prompt)).logits[0], prompt, tiny.llava_onevision(), head)


def test_a_pruned_conversation_ends_with_the_patch(model: Any, siglip_directory: Any) -> None:
    with apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS):
        cache = model(**inputs_of(video_prompt(3)), use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="the model no longer prunes"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_other_hyperparameters_after_removal(model: Any, siglip_directory: Any) -> None:
    counts = []
    for ratio in (0.1, 0.5):
        with apply_fastvid(model, siglip=siglip_directory, retention_ratio=ratio) as handle:
            assert handle.config.retention_ratio == ratio
            cache = model(**inputs_of(video_prompt(3)), use_cache=True).past_key_values
            counts.append(cache.layers[0].keys.shape[2])
    text = 4 + 7 + 1
    assert counts == [tiny.FRAMES * 2 + text, tiny.FRAMES * 12 + text]


def test_patched_twice(model: Any, siglip_directory: Any) -> None:
    apply_fastvid(model, siglip=siglip_directory)
    before = everything_about(model)
    with pytest.raises(RuntimeError, match=r"already: call model\.fastvid_handle\.remove\(\)"):
        apply_fastvid(model, siglip=siglip_directory)
    assert everything_about(model) == before


def test_a_deep_copy_is_a_model_of_its_own(model: Any, siglip_directory: Any, head: Any) -> None:
    handle = apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    copied = copy.deepcopy(model)
    prompt = video_prompt(3)
    expected = model(**inputs_of(prompt)).logits
    handle.remove()
    assert torch.equal(copied(**inputs_of(prompt)).logits, expected), "the copy goes on pruning"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(**inputs_of(prompt)).logits, expected), "with weights of its own"
    copied.fastvid_handle.remove()
    assert torch.equal(copied(**inputs_of(prompt)).logits, tiny.llava_onevision()(**inputs_of(prompt)).logits)


def test_a_projector_that_is_replaced(model: Any, siglip_directory: Any) -> None:
    another = tiny.llava_onevision(seed=5).model.multi_modal_projector
    patched_later = tiny.llava_onevision()
    patched_later.model.multi_modal_projector = another
    options = {"siglip": siglip_directory, **tiny.HYPERPARAMETERS}
    apply_fastvid(model, **options)
    prompt = inputs_of(video_prompt(3))
    before = model(**prompt).logits
    model.model.multi_modal_projector = copy.deepcopy(another)
    apply_fastvid(patched_later, **options)
    found = model(**prompt).logits
    assert not torch.equal(found, before)
    assert torch.equal(found, patched_later(**prompt).logits)


def test_the_state_dict_and_checkpoints_are_the_model_s_own(model: Any, siglip_directory: Any, tmp_path: Any) -> None:
    keys = list(model.state_dict())
    apply_fastvid(model, siglip=siglip_directory)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not hasattr(loaded, "fastvid_handle")


def test_a_head_that_is_given_stays_as_it_is(model: Any, siglip_directory: Any) -> None:
    """One head may serve several models of different dtypes."""
    given = load_siglip_head(siglip_directory)
    before = copy.deepcopy(given.state_dict())
    apply_fastvid(model, siglip=given, **tiny.HYPERPARAMETERS)
    inputs = inputs_of(video_prompt(3))
    expected = model(**inputs).logits
    other = tiny.llava_onevision().bfloat16()
    apply_fastvid(other, siglip=given, **tiny.HYPERPARAMETERS)
    other(**inputs | {"pixel_values_videos": inputs["pixel_values_videos"].bfloat16()})
    assert torch.equal(model(**inputs).logits, expected)
    for name, parameter in given.state_dict().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


def test_there_and_back_between_dtypes(model: Any, siglip_directory: Any) -> None:
    """Weights that bfloat16 can hold are unchanged by the round trip, and so must be the tokens that they choose."""
    model.bfloat16().float()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    inputs = inputs_of(video_prompt(3))
    expected = model(**inputs).logits
    model.bfloat16()
    model(**inputs | {"pixel_values_videos": inputs["pixel_values_videos"].bfloat16()})
    model.float()
    assert torch.equal(model(**inputs).logits, expected)


def test_gradients_after_inference_mode(model: Any, siglip_directory: Any) -> None:
    apply_fastvid(model.bfloat16(), siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    inputs = inputs_of(video_prompt(3))
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].bfloat16()
    with torch.inference_mode():
        expected = model(**inputs).logits
    with torch.enable_grad():
        assert torch.equal(model(**inputs).logits, expected)


def test_an_interrupt_leaves_the_cache_usable(
    model: Any, siglip_directory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    prompt = video_prompt(3)
    step = {"input_ids": torch.tensor([[5]]), "use_cache": True}
    caches = [model(**inputs_of(prompt), use_cache=True).past_key_values for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(model.model.language_model.layers[0], "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**step, past_key_values=caches[0])
    interrupted, undisturbed = (model(**step, past_key_values=cache).logits for cache in caches)
    assert torch.equal(interrupted, undisturbed)
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == len(prompt.ids) + 1


def test_moved_to_another_dtype_after_patching(model: Any, siglip_directory: Any) -> None:
    apply_fastvid(model, siglip=siglip_directory)
    model.to(torch.bfloat16)
    inputs = inputs_of(video_prompt(3))
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].bfloat16()
    assert model(**inputs).logits.isfinite().all()


@pytest.fixture
def dispatched(model: Any, tmp_path: Any) -> Any:
    """A model dispatched by accelerate, which loads the language model from disk, layer by layer, for each use."""
    accelerate = pytest.importorskip("accelerate")
    parts = ["model.vision_tower", "model.multi_modal_projector", "model.image_newline", "lm_head"]
    device_map = dict.fromkeys(parts, "cpu") | {"model.language_model": "disk"}
    return accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)


def test_accelerate_s_hooks_and_ours_get_along(dispatched: Any, siglip_directory: Any, head: Any) -> None:
    dispatched(**inputs_of(video_prompt(3)))
    before = everything_about(dispatched)
    handle = apply_fastvid(dispatched, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    prompt = video_prompt(3)
    twin = tiny.llava_onevision()
    check_row(dispatched(**inputs_of(prompt)).logits[0], prompt, twin, head)
    out = dispatched.generate(**inputs_of(prompt), **GREEDY)
    check_generated(out, 0, prompt, twin, head)
    handle.remove()
    assert everything_about(dispatched) == before


class TestRefusals:
    def test_an_unsupported_model(self) -> None:
        with pytest.raises(TypeError, match=r"LlavaOnevisionFor.*, LlavaNextVideoFor.* of transformers; .*got Linear"):
            apply_fastvid(nn.Linear(1, 1))

    def test_a_wrapper(self, model: Any, siglip_directory: Any) -> None:
        with pytest.raises(TypeError, match=r"and not a wrapper around one, got OptimizedModule"):
            apply_fastvid(torch.compile(model), siglip=siglip_directory)

    @pytest.mark.parametrize("version", ["4.57.6", "5.16.0", "5.25.0", "6.0.0"])
    def test_an_unsupported_version(
        self, model: Any, siglip_directory: Any, version: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("transformers.__version__", version)
        monkeypatch.setattr("fastvid_kernels.adapters.versions.TOO_NEW", "5.25")
        with pytest.raises(RuntimeError, match=rf"at least 5\.17 and below 5\.25.*got {version}"):
            apply_fastvid(model, siglip=siglip_directory)
        assert not hasattr(model, "fastvid_handle")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"backend": "cuda"}, ValueError, "backend must be 'auto', 'eager' or 'triton', got 'cuda'"),
            ({"backend": "triton"}, ValueError, "for a model on the CPU, got 'triton'"),
            ({"siglip": 7}, TypeError, "siglip must be str or Path or SiglipHead or None, got int"),
            ({"attention": ["norm"]}, TypeError, "attention must be str or None, got list"),
            ({"config": {"tau": 0.9}}, TypeError, "config must be PruneConfig or None, got dict"),
        ],
    )
    def test_arguments_before_anything_is_patched(
        self, model: Any, siglip_directory: Any, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        before = everything_about(model)
        with pytest.raises(error, match=message):
            apply_fastvid(model, **({"siglip": siglip_directory} | options))
        assert everything_about(model) == before

    def test_a_projector_whose_hooks_do_not_run(
        self, model: Any, siglip_directory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apply_fastvid(model, siglip=siglip_directory)
        projector = type(model.model.multi_modal_projector)
        monkeypatch.setattr(projector, "__call__", lambda self, patches: self.forward(patches))
        with pytest.raises(RuntimeError, match="multi_modal_projector must be called as a module while get_video"):
            model(**inputs_of(video_prompt(3)))

    def test_an_unknown_hyperparameter(self, model: Any, siglip_directory: Any) -> None:
        with pytest.raises(TypeError, match="retention"):
            apply_fastvid(model, siglip=siglip_directory, retention=0.1)

    def test_nothing_kept(self, model: Any, siglip_directory: Any) -> None:
        with pytest.raises(ValueError, match=r"at least one of a frame's 25 tokens.*use 0\.04 or more"):
            apply_fastvid(model, siglip=siglip_directory, retention_ratio=0.01)

    def test_no_head(self, model: Any, tmp_path: Any) -> None:
        with pytest.raises(OSError, match="nowhere"):
            apply_fastvid(model, siglip=tmp_path / "nowhere")

    def test_a_head_that_does_not_fit(self, model: Any, tmp_path: Any) -> None:
        config = tiny.transformers.SiglipVisionConfig(**(tiny.VISION | {"hidden_size": 16}))
        tiny.transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"with 32 channels, got one with 16.*attention="):
            apply_fastvid(model, siglip=tmp_path)

    def test_an_unknown_substitute(self, model: Any) -> None:
        with pytest.raises(ValueError, match=r"attention must be one of 'siglip', .*got 'random'"):
            apply_fastvid(model, attention="random")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("vision_feature_layer", [-1, -2], "must be the number of one layer"),
            ("vision_feature_select_strategy", "default", "must be 'full'"),
        ],
    )
    def test_a_configuration_it_does_not_know(
        self, model: Any, siglip_directory: Any, name: str, value: Any, message: str
    ) -> None:
        before = everything_about(model)
        setattr(model.config, name, value)
        with pytest.raises(ValueError, match=message):
            apply_fastvid(model, siglip=siglip_directory)
        assert everything_about(model) == before

    @pytest.mark.parametrize(
        "settings",
        [
            {"model_type": "mistral", "sliding_window": 64},
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        ],
        ids=["every layer", "some layers"],
    )
    def test_windows_over_the_past(self, siglip_directory: Any, settings: dict[str, Any]) -> None:
        model = tiny.llava_onevision(text=tiny.TEXT | settings)
        with pytest.raises(ValueError, match="no sliding-window layers"):
            apply_fastvid(model, siglip=siglip_directory)

    def test_another_language_model_without_windows(self, siglip_directory: Any, head: Any) -> None:
        text = tiny.TEXT | {"model_type": "mistral", "sliding_window": None}
        model, twin = (tiny.llava_onevision(text=text) for _ in range(2))
        apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
        prompt = video_prompt(3)
        check_row(model(**inputs_of(prompt)).logits[0], prompt, twin, head)

    def test_an_attribute_that_someone_else_set(self, model: Any, siglip_directory: Any) -> None:
        model.create_masks_for_generate = lambda **kwargs: None
        before = everything_about(model)
        with pytest.raises(RuntimeError, match="create_masks_for_generate is set on the instance by someone else"):
            apply_fastvid(model, siglip=siglip_directory)
        assert everything_about(model) == before

    def test_a_mask_of_four_dimensions(self, model: Any, siglip_directory: Any) -> None:
        apply_fastvid(model, siglip=siglip_directory)
        inputs = inputs_of(video_prompt(3))
        length = inputs["input_ids"].shape[1]
        inputs["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        with pytest.raises(ValueError, match=r"attention_mask must be \[B, tokens\] or None.*got 4 dimensions"):
            model(**inputs)

    def test_a_mask_that_forgets_the_pruned_tokens(self, model: Any, siglip_directory: Any) -> None:
        apply_fastvid(model, siglip=siglip_directory)
        out = model(**inputs_of(video_prompt(3)), use_cache=True)
        entries = out.past_key_values.layers[0].keys.shape[2]
        with pytest.raises(ValueError, match=r"attention_mask must cover the \d+ tokens seen before"):
            model(
                input_ids=torch.tensor([[5]]),
                attention_mask=torch.ones(1, entries + 1),
                past_key_values=out.past_key_values,
            )


@pytest.mark.parametrize("name", ["norm"])
def test_a_substitute_chosen_by_name(model: Any, name: str) -> None:
    with apply_fastvid(model, attention=name, **tiny.HYPERPARAMETERS):
        cache = model(**inputs_of(video_prompt(3)), use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[2] == tiny.KEPT + 4 + 7 + 1


def test_the_handle_is_public() -> None:
    import fastvid_kernels

    assert fastvid_kernels.apply_fastvid is apply_fastvid
    assert fastvid_kernels.adapters.FastVidHandle is FastVidHandle
