"""Models with PEFT's LoRA layers, which replace modules of the model, before or after `apply_fastvid`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

import reference
from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import independent, qwen_independent, test_onevision_prefill, tiny, tiny_llava, tiny_qwen
from tests.adapters.test_onevision_prefill import video_prompt
from tests.adapters.training import check_step, labels_of, loss_of, prune_by_the_equations

peft = pytest.importorskip("peft")

FIRST, LAST = "before", "after"
"""When the model is patched: before PEFT wraps it, or after."""
REPLACED = r"language model.*was replaced after apply_fastvid"


@pytest.fixture(autouse=True)
def gradients(no_gradients: Any) -> Iterator[None]:
    with torch.enable_grad():
        yield


def wrapped(model: Any, *targets: str, saved: str | None = None) -> Any:
    """A model with LoRA layers whose random weights change its outputs, and with a trained copy of one module."""
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=4, target_modules=list(targets), init_lora_weights=False, modules_to_save=None if saved is None else [saved]
    )
    return peft.get_peft_model(model, config)


def patched(make: Callable[[], Any], order: str, *targets: str, saved: str | None = None, **options: Any) -> Any:
    """A wrapped and patched model."""
    model = make()
    if order == FIRST:
        apply_fastvid(model, **options)
    model = wrapped(model, *targets, saved=saved)
    if order == LAST:
        apply_fastvid(model, **options)
    return model


@pytest.mark.parametrize("order", [FIRST, LAST])
def test_a_step_of_llava_onevision(order: str, siglip_directory: Any, head: Any) -> None:
    what: dict[str, Any] = {"saved": "multi_modal_projector"}
    options = {"siglip": siglip_directory, **tiny.HYPERPARAMETERS}
    model = patched(tiny.llava_onevision, order, "q_proj", "v_proj", **what, **options)
    twin = wrapped(tiny.llava_onevision(), "q_proj", "v_proj", **what)
    prompt = video_prompt(3)
    inputs = test_onevision_prefill.inputs_of(prompt)
    loss = model(**inputs, labels=labels_of(inputs, [prompt.ids])).loss

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        kept = independent.embedded(twin.base_model.model, head, prompt, tiny.HYPERPARAMETERS)
    logits = independent.decoded.__wrapped__(twin.base_model.model, *kept)
    inner = "base_model.model.model"
    reached = (f"{inner}.vision_tower", f"{inner}.multi_modal_projector.modules_to_save", f"{inner}.language_model")
    check_step(loss, model, loss_of([logits], [prompt.ids]), twin, *reached)


@pytest.mark.parametrize("order", [FIRST, LAST])
@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3"])
def test_a_step_of_qwen(kind: str, order: str) -> None:
    """The tower's projection of queries and keys, whose output ranks the tokens, is one of the layers replaced."""
    what = ("qkv", "q_proj", "v_proj")
    model = patched(lambda: tiny_qwen.model(kind), order, *what, saved="merger", **tiny_qwen.HYPERPARAMETERS)
    twin = wrapped(tiny_qwen.model(kind), *what, saved="merger")
    words = [tiny_qwen.words(seed, 5) for seed in (3, 4)]
    prompt = tiny_qwen.prompt(kind, words[0], tiny_qwen.film(3), words[1])
    inputs = tiny_qwen.inputs_of(prompt)
    loss = model(**inputs, labels=labels_of(inputs, [prompt.ids])).loss

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        row = qwen_independent.embedded(kind, twin.base_model.model, prompt, tiny_qwen.HYPERPARAMETERS)
    logits = qwen_independent.decoded.__wrapped__(twin.base_model.model, row)
    inner = "base_model.model.model"
    reached = (f"{inner}.visual.blocks", f"{inner}.visual.merger.modules_to_save", f"{inner}.language_model")
    check_step(loss, model, loss_of([logits], [prompt.ids]), twin, *reached)


def test_a_whole_tower_that_is_trained() -> None:
    kind, options = "qwen2.5", tiny_qwen.HYPERPARAMETERS
    model = patched(lambda: tiny_qwen.model(kind), LAST, "q_proj", saved="visual", **options)
    twin = wrapped(tiny_qwen.model(kind), "q_proj", saved="visual")
    prompt = tiny_qwen.prompt(kind, tiny_qwen.words(3, 5), tiny_qwen.film(3), tiny_qwen.words(4, 5))
    inputs = tiny_qwen.inputs_of(prompt)
    with torch.no_grad():
        row = qwen_independent.embedded(kind, twin.base_model.model, prompt, options)
        expected = qwen_independent.decoded(twin.base_model.model, row)
        found = model(**inputs).logits[0, row.places]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    too_early = patched(lambda: tiny_qwen.model(kind), FIRST, "q_proj", saved="visual", **options)
    with pytest.raises(RuntimeError, match=r"after replacing the tower, call model.fastvid_handle.remove\(\)"):
        too_early(**inputs)


@pytest.mark.parametrize("order", [FIRST, LAST])
def test_a_step_of_the_llava_package(order: str, llava: Any, siglip_directory: Any, head: Any) -> None:
    def make() -> Any:
        return tiny_llava.llava_qwen(llava, "grid")

    what: dict[str, Any] = {"saved": "mm_projector"}
    options = {"siglip": siglip_directory, **tiny_llava.HYPERPARAMETERS}
    model = patched(make, order, "q_proj", "v_proj", **what, **options)
    twin = wrapped(make(), "q_proj", "v_proj", **what)
    prompt = tiny_llava.video_prompt(5)
    inputs = tiny_llava.inputs_of(prompt)
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    loss = model.base_model.model(**inputs, position_ids=positions, labels=labels_of(inputs, [prompt.ids])).loss

    with mock.patch.object(reference, "prune", prune_by_the_equations):
        logits = tiny_llava.logits(twin.base_model.model, head, prompt)
    inner = "base_model.model.model"
    reached = (f"{inner}.vision_tower", f"{inner}.mm_projector.modules_to_save", f"{inner}.layers")
    check_step(loss, model, loss_of([logits], [prompt.ids]), twin, *reached)


@pytest.mark.parametrize("order", [FIRST, LAST])
@torch.no_grad()
def test_the_merged_model_goes_on_pruning(order: str, siglip_directory: Any, head: Any) -> None:
    options = {"siglip": siglip_directory, **tiny.HYPERPARAMETERS}
    model = patched(tiny.llava_onevision, order, "q_proj", "v_proj", saved="multi_modal_projector", **options)
    inner = model.base_model.model
    assert model.fastvid_handle is inner.fastvid_handle
    merged = model.merge_and_unload()
    assert merged is inner
    twin = wrapped(tiny.llava_onevision(), "q_proj", "v_proj", saved="multi_modal_projector").merge_and_unload()
    prompt = video_prompt(3)
    embeds, positions = independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS)
    logits = merged(**test_onevision_prefill.inputs_of(prompt)).logits[0, positions]
    torch.testing.assert_close(logits, independent.decoded(twin, embeds, positions), rtol=0, atol=1e-4)
    merged.fastvid_handle.remove()
    inputs = test_onevision_prefill.inputs_of(prompt)
    torch.testing.assert_close(merged(**inputs).logits, twin(**inputs).logits, rtol=0, atol=1e-4)


def test_a_copy_of_the_projector_is_no_copy_of_the_model(siglip_directory: Any) -> None:
    """PEFT copies modules that are to be trained whole, with their hooks and all that these refer to."""
    model = tiny.llava_onevision()
    apply_fastvid(model, siglip=siglip_directory)
    copied: dict[int, Any] = {}
    copy.deepcopy(model.model.multi_modal_projector, copied)
    assert id(model.model.multi_modal_projector.linear_1.weight) in copied
    assert not {id(one) for one in model.model.language_model.parameters()} & copied.keys()


def test_a_copy_of_the_projection_is_no_copy_of_the_tower() -> None:
    model = tiny_qwen.model("qwen2.5")
    apply_fastvid(model)
    copied: dict[int, Any] = {}
    projection = model.model.visual.blocks[-1].attn.qkv
    copy.deepcopy(projection, copied)
    others = {id(one) for one in model.parameters()} - {id(one) for one in projection.parameters()}
    assert not others & copied.keys()


@torch.no_grad()
def test_the_adapter_of_a_tower_is_switched_off_and_on() -> None:
    kind, options = "qwen2.5", tiny_qwen.HYPERPARAMETERS
    model = patched(lambda: tiny_qwen.model(kind), LAST, "q_proj", saved="visual", **options)
    model.base_model.model.model.visual.modules_to_save["default"].blocks[-1].attn.qkv.weight.neg_()
    inputs = tiny_qwen.inputs_of(tiny_qwen.prompt(kind, tiny_qwen.words(3, 5), tiny_qwen.film(3)))
    on = model(**inputs).logits
    plain = tiny_qwen.model(kind)
    apply_fastvid(plain, **options)
    with model.disable_adapter():
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert torch.equal(model(**inputs).logits, on)
    assert not torch.equal(on, plain(**inputs).logits)


@torch.no_grad()
def test_a_language_model_that_is_trained_whole(siglip_directory: Any, head: Any) -> None:
    """The hooks stay where they were; where another copy of the language model runs, the call is refused."""
    options = {"siglip": siglip_directory, **tiny.HYPERPARAMETERS}
    model = patched(tiny.llava_onevision, LAST, "q_proj", saved="language_model", **options)
    twin = wrapped(tiny.llava_onevision(), "q_proj", saved="language_model")
    prompt = video_prompt(3)
    inputs = test_onevision_prefill.inputs_of(prompt)
    embeds, positions = independent.embedded(twin.base_model.model, head, prompt, tiny.HYPERPARAMETERS)
    expected = independent.decoded(twin.base_model.model, embeds, positions)
    torch.testing.assert_close(model(**inputs).logits[0, positions], expected, rtol=0, atol=1e-4)
    with model.disable_adapter(), pytest.raises(RuntimeError, match=REPLACED):
        model(**inputs)
    merged = model.merge_and_unload()
    with pytest.raises(RuntimeError, match=REPLACED):
        merged(**inputs)
    merged.fastvid_handle.remove()
    apply_fastvid(merged, **options)
    torch.testing.assert_close(merged(**inputs).logits[0, positions], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrap", ["PEFT", "torch.compile"])
@torch.no_grad()
def test_a_language_model_that_is_wrapped_later(wrap: str, siglip_directory: Any, head: Any) -> None:
    model, twin = tiny.llava_onevision(), tiny.llava_onevision()
    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    language_model = model.model.language_model
    if wrap == "PEFT":
        model.model.language_model = wrapped(language_model, "q_proj")
        twin.model.language_model = wrapped(twin.model.language_model, "q_proj")
    else:
        torch.compiler.reset()
        model.model.language_model = torch.compile(language_model, backend="eager")
    prompt = video_prompt(3)
    embeds, positions = independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS)
    found = model(**test_onevision_prefill.inputs_of(prompt)).logits[0, positions]
    torch.testing.assert_close(found, independent.decoded(twin, embeds, positions), rtol=0, atol=1e-4)


@torch.no_grad()
def test_hooks_that_peft_has_copied_are_removed(siglip_directory: Any, head: Any) -> None:
    """Hooks that stayed in the copy would prune beside those of the next patch."""
    options = {"siglip": siglip_directory, **tiny.HYPERPARAMETERS}
    model = patched(tiny.llava_onevision, FIRST, "q_proj", saved="language_model", **options)
    twin = wrapped(tiny.llava_onevision(), "q_proj", saved="language_model")
    prompt = video_prompt(3)
    inputs = test_onevision_prefill.inputs_of(prompt)
    with pytest.raises(RuntimeError, match=REPLACED):
        model(**inputs)
    model.fastvid_handle.remove()
    assert not hooks_of(model)
    assert torch.equal(model(**inputs).logits, twin(**inputs).logits)
    apply_fastvid(model, **options)
    embeds, positions = independent.embedded(twin.base_model.model, head, prompt, tiny.HYPERPARAMETERS)
    expected = independent.decoded(twin.base_model.model, embeds, positions)
    torch.testing.assert_close(model(**inputs).logits[0, positions], expected, rtol=0, atol=1e-4)


def hooks_of(model: Any) -> list[Any]:
    names = [name for name in vars(torch.nn.Module()) if name.startswith("_forward")]
    assert len(names) == 5
    return [hook for module in model.modules() for name in names for hook in getattr(module, name).values()]


@pytest.mark.parametrize("saved", ["multi_modal_projector", "visual"])
def test_no_copies_of_hooks_pile_up(saved: str, siglip_directory: Any) -> None:
    model = tiny.llava_onevision() if saved == "multi_modal_projector" else tiny_qwen.model("qwen2.5")
    options = {"siglip": siglip_directory} if saved == "multi_modal_projector" else {}
    for _ in range(2):
        handle = apply_fastvid(model, **options)
        model = wrapped(model, "q_proj", saved=saved)
        assert hooks_of(model)
        handle.remove()
        assert not hooks_of(model)
        model = model.merge_and_unload()


def test_hooks_of_others_stay(siglip_directory: Any) -> None:
    """Those of a patched model that shares a module, too."""
    model, other = tiny.llava_onevision(), tiny.llava_onevision()
    projector = model.model.multi_modal_projector = other.model.multi_modal_projector
    projector.register_forward_pre_hook(print, with_kwargs=True)
    apply_fastvid(other, siglip=siglip_directory)
    before = hooks_of(other)
    apply_fastvid(model, siglip=siglip_directory).remove()
    assert hooks_of(other) == before
    model.model.language_model = other.model.language_model
    with pytest.raises(RuntimeError, match="has the hooks of an earlier apply_fastvid"):
        apply_fastvid(model, siglip=siglip_directory)
    assert hooks_of(other) == before


def test_a_language_model_copied_from_a_patched_model(siglip_directory: Any) -> None:
    """Its hooks would prune beside those of the next patch."""
    model, other = tiny.llava_onevision(), tiny.llava_onevision()
    apply_fastvid(other, siglip=siglip_directory)
    model.model.language_model = copy.deepcopy(other.model.language_model)
    with pytest.raises(RuntimeError, match="has the hooks of an earlier apply_fastvid"):
        apply_fastvid(model, siglip=siglip_directory)
    assert not hasattr(model, "fastvid_handle")


def test_a_class_of_the_user_s_own(siglip_directory: Any) -> None:
    class Mine(peft.PeftModel):
        pass

    model = Mine(tiny.llava_onevision(), peft.LoraConfig(target_modules=["q_proj"]))
    assert apply_fastvid(model, siglip=siglip_directory).model is model.base_model.model


@pytest.mark.parametrize("wrap", ["PEFT", "torch.compile"])
@pytest.mark.parametrize("kind", ["llava", "qwen2.5"])
def test_a_model_whose_inner_model_is_wrapped(wrap: str, kind: str) -> None:
    """The inner model calls its own methods, not what is set on a wrapper around it."""
    model = tiny.llava_onevision() if kind == "llava" else tiny_qwen.model(kind)
    model.model = wrapped(model.model, "q_proj") if wrap == "PEFT" else torch.compile(model.model)
    with pytest.raises(TypeError, match=r"must not be wrapped before apply_fastvid.* get_video_features is that of"):
        apply_fastvid(model, **({"attention": "uniform"} if kind == "llava" else {}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_virtual_tokens": 3, "token_dim": 48, "num_attention_heads": 6, "num_layers": 1}, "PROMPT_TUNING"),
        ({"target_modules": ["q_proj"], "alora_invocation_tokens": [5]}, "LORA with alora_invocation_tokens"),
    ],
)
def test_peft_that_does_more_than_replace_layers(config: dict[str, Any], message: str) -> None:
    kind = peft.LoraConfig if "target_modules" in config else peft.PromptTuningConfig
    made = kind(task_type="CAUSAL_LM", **config)
    made.num_transformer_submodules = 1
    model = peft.get_peft_model(tiny.llava_onevision(), made)
    with pytest.raises(TypeError, match=f"adapters only replace layers, as LoRA does, got {message}"):
        apply_fastvid(model)


def test_x_lora_is_refused() -> None:
    """Its name is what tells; a whole one takes adapters on a disk."""
    model = wrapped(tiny.llava_onevision(), "q_proj")
    model.peft_config["default"].peft_type = peft.PeftType.XLORA
    with pytest.raises(TypeError, match="adapters only replace layers, as LoRA does, got XLORA"):
        apply_fastvid(model)
