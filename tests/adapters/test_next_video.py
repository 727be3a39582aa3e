"""A pruned LLaVA-NeXT-Video against the independent computation."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import reference
from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import flash, independent, tiny, tiny_next_video
from tests.adapters.independent import Prompt
from tests.adapters.test_onevision_generation import CACHES, GREEDY, NEW
from tests.adapters.test_onevision_lifecycle import everything_about
from tests.adapters.tiny_next_video import CLIP, check_row, inputs_of, placeholders, video_prompt


@pytest.fixture(params=["sdpa", "eager", "flash"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param != "flash":
        return tiny_next_video.model(attention=request.param)
    model = tiny_next_video.model()
    flash.stand_in(monkeypatch, model)
    return model


@pytest.fixture
def patched(model: Any) -> Any:
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    return model


@pytest.fixture(scope="module")
def twin() -> Any:
    """An unpatched model of the same weights."""
    return tiny_next_video.model()


def check_generated(out: Any, row: int, prompt: Prompt, twin: Any) -> None:
    ids, logits = independent.continued(twin, *tiny_next_video.embedded(twin, prompt), NEW)
    assert out.sequences[row, -NEW:].tolist() == ids
    ours = torch.stack([step[row] for step in out.logits])
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5 * logits.abs().max().item())


def batch_with_rows_of_text() -> list[Prompt]:
    text = [Prompt(tiny.words(9, 30)), Prompt(tiny.words(10, 200))]
    return [video_prompt(5), video_prompt(6, before=11, after=2), *text]


@pytest.mark.parametrize("frames", [1, tiny.FRAMES, 13])
def test_one_row(patched: Any, twin: Any, frames: int) -> None:
    prompt = video_prompt(3, frames=frames)
    check_row(patched(**inputs_of(prompt)).logits[0], prompt, twin)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(patched: Any, twin: Any, side: str) -> None:
    prompts = batch_with_rows_of_text()
    inputs = inputs_of(*prompts, side=side)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = patched(**inputs).logits
    for row, prompt in enumerate(prompts):
        check_row(logits[row][inputs["attention_mask"][row].bool()], prompt, twin)


@pytest.mark.parametrize("cache", CACHES)
def test_generation(patched: Any, twin: Any, cache: str) -> None:
    prompts = batch_with_rows_of_text()
    out = patched.generate(**inputs_of(*prompts), **GREEDY, **CACHES[cache])
    for row, prompt in enumerate(prompts):
        check_generated(out, row, prompt, twin)


def test_two_videos_and_an_image_in_a_prompt(patched: Any, twin: Any) -> None:
    films = tiny.film(7, videos=2)
    images = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    pixels = images[:, None].expand(-1, 2, -1, -1, -1)
    sizes = torch.tensor([[40, 40]])
    outputs = twin.model.get_image_features(pixels, sizes, return_dict=True)
    ids = tiny.words(1, 3) + placeholders() + [tiny.IMAGE] * len(outputs.pooler_output[0]) + tiny.words(2, 5)
    prompt = Prompt(ids + placeholders() + tiny.words(3, 4), (films[0], films[1]), images)
    logits = patched(**inputs_of(prompt), pixel_values=pixels, image_sizes=sizes).logits[0]
    check_row(logits, prompt, twin)


def test_a_second_turn_with_a_new_video(patched: Any, twin: Any) -> None:
    first, second = video_prompt(3), video_prompt(8, before=2, frames=4)
    cache = tiny.transformers.DynamicCache()
    patched(**inputs_of(first), past_key_values=cache)
    ids = first.ids + second.ids
    logits = patched(
        input_ids=torch.tensor([second.ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        pixel_values_videos=second.videos[0][None],
        past_key_values=cache,
    ).logits[0, -1]
    expected = tiny_next_video.logits(twin, Prompt(ids, first.videos + second.videos))[-1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_retention_one_gives_the_same_bits(model: Any) -> None:
    inputs = inputs_of(video_prompt(1), video_prompt(2, before=9), Prompt(tiny.words(3, 17)))
    before = model.generate(**inputs, **GREEDY)
    apply_fastvid(model, retention_ratio=1.0)
    everything = model.generate(**inputs, **GREEDY)
    assert torch.equal(torch.stack(everything.logits), torch.stack(before.logits))


def test_remove_leaves_nothing(model: Any) -> None:
    inputs = inputs_of(video_prompt(3))
    answer = model(**inputs).logits
    model.generate(**inputs, max_new_tokens=2)
    before = everything_about(model)
    handle = apply_fastvid(model, **tiny.HYPERPARAMETERS)
    assert not torch.equal(model(**inputs).logits, answer)
    handle.remove()
    assert everything_about(model) == before
    assert torch.equal(model(**inputs).logits, answer)


@pytest.mark.parametrize("settings", [
    {"vision_feature_layer": -1},
    {"vision_feature_layer": 2},
    {"vision_feature_layer": 1},
    {"vision_feature_layer": -4},
    {"spatial_pool_mode": "max"},
], ids=str)  # fmt: skip
def test_attention_is_that_of_the_layer_that_gives_the_tokens(settings: dict[str, Any]) -> None:
    model, twin = tiny_next_video.model(**settings), tiny_next_video.model(**settings)
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    prompt = video_prompt(3)
    check_row(model(**inputs_of(prompt)).logits[0], prompt, twin)


def is_cut_elsewhere_by_means(twin: Any, video: Tensor) -> bool:
    """Whether another selection would come of the mean tokens as global features, instead of the states of [CLS]."""
    attention, _ = tiny_next_video.attention_and_features(twin, video)
    tokens = twin.model.get_video_features(video[None], return_dict=True).pooler_output[0]
    attention = tiny_next_video.pooled(twin, attention.unflatten(1, (10, 10)))
    by_means = reference.prune(tokens.reshape(len(video), 25, -1), attention, None, None, **tiny.HYPERPARAMETERS)
    _, places = tiny_next_video.pruned_video(twin, video, tiny.HYPERPARAMETERS)
    return not torch.equal(by_means.indices, places)


def test_videos_are_cut_by_the_states_of_cls(twin: Any) -> None:
    model = tiny_next_video.model()
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    films = (torch.randn(13, 3, 40, 40, generator=torch.Generator().manual_seed(seed)) for seed in range(50))
    film = next(one for one in films if is_cut_elsewhere_by_means(twin, one))
    prompt = Prompt(tiny.words(3, 4) + placeholders(13) + tiny.words(4, 7), (film,))
    check_row(model(**inputs_of(prompt)).logits[0], prompt, twin)


def test_defaults_are_those_of_llava(twin: Any) -> None:
    model = tiny_next_video.model()
    handle = apply_fastvid(model)
    assert handle.config.retention_ratio == 0.1
    prompt = video_prompt(4)
    check_row(model(**inputs_of(prompt)).logits[0], prompt, twin, {"retention_ratio": 0.1})


@pytest.mark.parametrize("name", ["norm", "similarity", "uniform"])
def test_a_substitute_chosen_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvid_kernels.vision import ATTENTION_SUBSTITUTES

    model, twin = tiny_next_video.model(), tiny_next_video.model()
    apply_fastvid(model, attention=name, **tiny.HYPERPARAMETERS)

    def substitute(twin: Any, video: Tensor) -> tuple[Tensor, None]:
        states = twin.model.vision_tower(video, output_hidden_states=True).hidden_states[-2]
        return ATTENTION_SUBSTITUTES[name](states[:, 1:]), None

    monkeypatch.setattr(tiny_next_video, "attention_and_features", substitute)
    prompt = video_prompt(4)
    check_row(model(**inputs_of(prompt)).logits[0], prompt, twin)


def test_other_methods_get_the_same_attention(twin: Any) -> None:
    """VisionZip keeps the tokens of the largest [CLS] attention as they are."""
    from fastvid_kernels import methods

    model = tiny_next_video.model()
    apply_fastvid(model, method="visionzip", retention_ratio=0.25)
    prompt = video_prompt(3)
    kept = model(**inputs_of(prompt)).logits[0].abs().amax(1) > 0
    video = prompt.videos[0]
    attention = tiny_next_video.attention_and_features(twin, video)[0]
    tokens = twin.model.get_video_features(video[None], return_dict=True).pooler_output[0]
    pooled = tiny_next_video.pooled(twin, attention.unflatten(1, (10, 10)))
    indices = methods.get("visionzip")(tokens.reshape(6, 25, -1), pooled, retention_ratio=0.25).indices
    expected = torch.ones(len(prompt.ids), dtype=torch.bool)
    expected[4 : 4 + 150] = False
    expected[4 + indices] = True
    assert torch.equal(kept, expected)


def test_bfloat16(twin: Any) -> None:
    """The attention of a bfloat16 tower is computed in float32 from its queries and keys."""
    model = tiny_next_video.model(dtype=torch.bfloat16)
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    inputs = inputs_of(video_prompt(3))
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].bfloat16()
    logits = model(**inputs).logits[0].float()
    assert logits.isfinite().all()
    assert (logits[4:154].abs().amax(1) > 0).sum() == tiny.KEPT


def test_lora_on_the_tower_and_the_language_model(twin: Any) -> None:
    """The hooks follow the projections that LoRA replaces after the patch."""
    peft = pytest.importorskip("peft")
    model, other = tiny_next_video.model(), copy.deepcopy(twin)
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    wrapped = []
    for one in (model, other):
        torch.manual_seed(3)
        wrapped.append(peft.get_peft_model(one, peft.LoraConfig(target_modules=["q_proj", "k_proj"], r=4)).eval())
        for name, parameter in wrapped[-1].named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.4)
    prompt = video_prompt(3)
    check_row(wrapped[0](**inputs_of(prompt)).logits[0], prompt, other)
    with pytest.raises(AssertionError):
        check_row(wrapped[0](**inputs_of(prompt)).logits[0], prompt, twin)


def test_nothing_is_kept_of_a_call(patched: Any) -> None:
    """A model that waits for its next video holds no attention of the last one."""
    patched(**inputs_of(video_prompt(3)))
    recorder = patched.model.get_video_features._score.of_tower._recorder
    assert recorder.attention is None
    tower = patched.model.vision_tower
    tower(tiny.film(4)[0])
    assert recorder.attention is None, "images go through the same tower, and are not scored"


def test_a_tower_that_is_replaced(twin: Any) -> None:
    model, other = tiny_next_video.model(), copy.deepcopy(twin)
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    for one in (model, other):
        one.model.vision_tower = tiny_next_video.model(seed=5).model.vision_tower
    prompt = video_prompt(3)
    check_row(model(**inputs_of(prompt)).logits[0], prompt, other)


def test_features_computed_beforehand(patched: Any, twin: Any) -> None:
    parameters = inspect.signature(patched.forward).parameters
    if "mm_encoder_outputs" not in parameters:
        pytest.skip("this version of transformers takes no features")
    prompt = video_prompt(3)
    features = patched.model.get_video_features(prompt.videos[0][None], return_dict=True)
    inputs = inputs_of(prompt)
    del inputs["pixel_values_videos"]
    check_row(patched(**inputs, mm_encoder_outputs={"video": features}).logits[0], prompt, twin)


def test_compiled(twin: Any) -> None:
    model = tiny_next_video.model()
    apply_fastvid(model, **tiny.HYPERPARAMETERS)
    compiled = torch.compile(model, backend="eager")
    prompt = video_prompt(3)
    check_row(compiled(**inputs_of(prompt)).logits[0], prompt, twin)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"siglip": "somewhere"}, "siglip cannot be used with LlavaNextVideoForConditionalGeneration"),
            ({"attention": "siglip"}, "set attention to one of cls, norm, similarity, uniform"),
            ({"attention": "mean_query"}, "attention must be one of 'cls', 'norm', .*got 'mean_query'"),
            ({"retention_ratio": 0.01}, "retention_ratio"),
        ],
        ids=str,
    )
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        model = tiny_next_video.model()
        with pytest.raises(ValueError, match=message):
            apply_fastvid(model, **arguments)
        assert not hasattr(model, "fastvid_handle")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer .*one of its 4 layers.* got \[-2, -1\]"),
            ({"vision_feature_layer": 0}, "vision_feature_layer .* got 0"),
            ({"vision_feature_layer": -5}, "vision_feature_layer .* got -5"),
            ({"vision_feature_layer": 5}, "vision_feature_layer .* got 5"),
            ({"vision_feature_select_strategy": "full"}, "must be 'default', got 'full'"),
            ({"spatial_pool_mode": "conv"}, "spatial_pool_mode .* must be average or max, got 'conv'"),
            ({"spatial_pool_stride": 11}, "spatial_pool_stride .* must be from 1 to 10, .* got 11"),
            ({"vision": {**CLIP, "model_type": "siglip_vision_model"}}, "clip_vision_model, got a siglip_vision_model"),
        ],
        ids=str,
    )
    def test_configurations(self, settings: dict[str, Any], message: str) -> None:
        model = tiny_next_video.model(**settings, runs=False)
        with pytest.raises(ValueError, match=message):
            apply_fastvid(model)
        assert not hasattr(model, "fastvid_handle")

    def test_windows_over_the_past(self) -> None:
        model = tiny_next_video.model()
        model.model.language_model.config.sliding_window = 8
        with pytest.raises(ValueError, match="no sliding-window layers"):
            apply_fastvid(model)

    @pytest.mark.parametrize(
        "given", [{"vision_feature_layer": -1}, {"vision_feature_select_strategy": "full"}], ids=str
    )
    def test_other_features_in_a_call(self, patched: Any, given: dict[str, Any]) -> None:
        (name,) = given
        with pytest.raises(ValueError, match=f"{name} must be .* as when apply_fastvid was called"):
            patched(**inputs_of(video_prompt(3)), **given)

    def test_features_as_a_tuple(self, patched: Any) -> None:
        with pytest.raises(ValueError, match="use return_dict=True"):
            patched.model.get_video_features(tiny.film(1), return_dict=False)

    def test_a_language_model_that_is_replaced(self, patched: Any) -> None:
        patched.model.language_model = tiny_next_video.model(seed=5).model.language_model
        with pytest.raises(RuntimeError, match="was replaced after apply_fastvid"):
            patched(**inputs_of(video_prompt(3)))

    def test_a_compiled_tower(self) -> None:
        """A compiled tower need not run the hooks of its parts."""
        model = tiny_next_video.model()
        apply_fastvid(model, **tiny.HYPERPARAMETERS)
        model.model.vision_tower = torch.compile(model.model.vision_tower, backend="eager")
        with pytest.raises(RuntimeError, match="compile the whole model, not its tower"):
            model(**inputs_of(video_prompt(3)))

    @pytest.mark.parametrize("shape", [{"num_hidden_layers": 5}, {"num_attention_heads": 8}], ids=str)
    def test_a_tower_of_another_shape(self, shape: dict[str, int]) -> None:
        model = tiny_next_video.model()
        apply_fastvid(model, **tiny.HYPERPARAMETERS)
        model.model.vision_tower = tiny_next_video.model(vision=CLIP | shape).model.vision_tower
        with pytest.raises(RuntimeError, match="replaced by one of another shape after apply_fastvid"):
            model(**inputs_of(video_prompt(3)))

    def test_frames_of_another_size(self, patched: Any) -> None:
        frames = torch.randn(1, 2, 3, 48, 48)
        with pytest.raises(ValueError, match=r"pixel_values_videos must have frames of 100 patches.*, got 144"):
            patched.model.get_video_features(frames, interpolate_pos_encoding=True, return_dict=True)
