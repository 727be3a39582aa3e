"""One forward pass of a pruned LLaVA-OneVision, against the independent computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import independent, tiny
from tests.adapters.independent import Prompt

TOLERANCE = 1e-5


def check_row(logits: Tensor, prompt: Prompt, twin: Any, head: Any) -> None:
    """Check that `logits [T, V]` of a row without padding are the independent ones at kept tokens."""
    _, places = independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS)
    expected = independent.logits(twin, head, prompt, tiny.HYPERPARAMETERS)
    torch.testing.assert_close(logits[places], expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def video_prompt(seed: int, before: int = 4, after: int = 7, frames: int = tiny.FRAMES) -> Prompt:
    ids = tiny.words(seed, before) + tiny.placeholders(frames) + tiny.words(seed + 1, after)
    return Prompt(ids, (tiny.film(seed, frames)[0],))


def inputs_of(*prompts: Prompt, side: str = "left") -> dict[str, Tensor]:
    inputs = tiny.batch([prompt.ids for prompt in prompts], side)
    videos = [video for prompt in prompts for video in prompt.videos]
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    return inputs


def test_one_row(patched: Any, twin: Any, head: Any) -> None:
    prompt = video_prompt(3)
    logits = patched(**inputs_of(prompt)).logits[0]
    assert len(logits) == len(prompt.ids), "logits keep the shape that they have without pruning"
    check_row(logits, prompt, twin, head)


def test_pruning_changes_the_answer(patched: Any, twin: Any) -> None:
    inputs = inputs_of(video_prompt(3))
    difference = patched(**inputs).logits[0, -1] - twin(**inputs).logits[0, -1]
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("mask", [True, False])
def test_a_row_without_a_mask(patched: Any, twin: Any, head: Any, mask: bool) -> None:
    prompt = video_prompt(5)
    inputs = inputs_of(prompt)
    if not mask:
        del inputs["attention_mask"]
    for use_cache in (True, False):
        check_row(patched(**inputs, use_cache=use_cache).logits[0], prompt, twin, head)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(patched: Any, twin: Any, head: Any, side: str) -> None:
    """Positions count each row's own tokens, as generation gives them."""
    text = Prompt(tiny.words(9, 30))
    prompts = [video_prompt(5), video_prompt(6, before=11, after=2), text, Prompt(tiny.words(10, 200))]
    inputs = inputs_of(*prompts, side=side)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = patched(**inputs).logits
    for row, prompt in enumerate(prompts):
        own = logits[row][inputs["attention_mask"][row].bool()]
        check_row(own, prompt, twin, head)
        _, places = independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS)
        own[places] = 0
        assert not own.any(), "where a token was dropped there are zeros"


def test_two_videos_in_a_prompt(patched: Any, twin: Any, head: Any) -> None:
    films = tiny.film(7, videos=2)
    ids = tiny.words(1, 3) + tiny.placeholders() + tiny.words(2, 5) + tiny.placeholders() + tiny.words(3, 4)
    prompt = Prompt(ids, (films[0], films[1]))
    check_row(patched(**inputs_of(prompt)).logits[0], prompt, twin, head)


def test_image_and_video(patched: Any, twin: Any, head: Any) -> None:
    images = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[40, 40]])
    pixels = images[:, None].expand(-1, 2, -1, -1, -1)
    outputs = twin.model.get_image_features(pixels, sizes, return_dict=True)
    ids = tiny.words(1, 3) + [tiny.IMAGE] * len(outputs.pooler_output[0]) + tiny.words(2, 2) + tiny.placeholders()
    prompt = Prompt(ids + tiny.words(3, 6), (tiny.film(4)[0],), images)
    logits = patched(**inputs_of(prompt), pixel_values=pixels, image_sizes=sizes).logits[0]
    check_row(logits, prompt, twin, head)


def test_a_text_only_prompt_is_untouched(patched: Any, unpatched: Any) -> None:
    inputs = tiny.batch([tiny.words(1, 20), tiny.words(2, 12)])
    assert torch.equal(patched(**inputs).logits, unpatched(**inputs).logits)


def test_several_videos_take_one_call_of_the_operator(patched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvid_kernels.adapters import pruner

    calls = []
    original = pruner.prune
    monkeypatch.setattr(pruner, "prune", lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs))
    patched(**inputs_of(video_prompt(1), video_prompt(2), video_prompt(3)))
    assert [call[3].tolist() for call in calls] == [[0, 6, 12, 18]]


def test_retention_one_gives_the_same_bits(model: Any, unpatched: Any, siglip_directory: Any) -> None:
    apply_fastvid(model, siglip=siglip_directory, retention_ratio=1.0)
    inputs = inputs_of(video_prompt(1), video_prompt(2, before=9), Prompt(tiny.words(3, 17)))
    assert torch.equal(model(**inputs).logits, unpatched(**inputs).logits)
    ours, theirs = (one.generate(**inputs, max_new_tokens=8, do_sample=False) for one in (model, unpatched))
    assert torch.equal(ours, theirs)


def test_labels_give_the_loss_of_the_kept_text(patched: Any, twin: Any, head: Any) -> None:
    prompt = video_prompt(8, after=12)
    inputs = inputs_of(prompt)
    labels = inputs["input_ids"].clone()
    labels[:, :-10] = -100
    loss = patched(**inputs, labels=labels).loss
    expected = independent.logits(twin, head, prompt, tiny.HYPERPARAMETERS)[-11:-1]
    expected = torch.nn.functional.cross_entropy(expected, labels[0, -10:])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_logits_to_keep(patched: Any) -> None:
    inputs = inputs_of(video_prompt(8))
    everything = patched(**inputs).logits
    chosen = torch.tensor([1, len(everything[0]) - 2])
    for to_keep, expected in ((3, everything[:, -3:]), (chosen, everything[:, chosen])):
        logits = patched(**inputs, logits_to_keep=to_keep).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def test_a_video_of_one_frame(patched: Any, twin: Any, head: Any) -> None:
    prompt = video_prompt(2, frames=1)
    check_row(patched(**inputs_of(prompt)).logits[0], prompt, twin, head)


@pytest.mark.parametrize("hyperparameters", [{"retention_ratio": 0.04}, {"retention_ratio": 0.6, "dtm_ratio": 0.9}])
def test_hyperparameters_reach_the_operator(siglip_directory: Any, head: Any, hyperparameters: dict[str, Any]) -> None:
    model, twin = tiny.llava_onevision(), tiny.llava_onevision()
    apply_fastvid(model, siglip=siglip_directory, **hyperparameters)
    prompt = video_prompt(4)
    ours = model(**inputs_of(prompt)).logits[0, -1]
    expected = independent.logits(twin, head, prompt, hyperparameters)[-1]
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_loses_no_more_than_the_model_itself(siglip_directory: Any, attention: str) -> None:
    prompt = video_prompt(3)
    inputs = inputs_of(prompt)
    errors = {}
    for is_patched in (False, True):
        logits = []
        for dtype in (torch.float32, torch.bfloat16):
            model = tiny.llava_onevision(dtype=torch.bfloat16, attention=attention).to(dtype)
            if is_patched:
                apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
            pixels = inputs["pixel_values_videos"].to(dtype)
            out = model(**(inputs | {"pixel_values_videos": pixels})).logits[0].float()
            logits.append(out)
        kept = [one.abs().amax(1) > 0 for one in logits]
        assert torch.equal(*kept), "choose a video whose selection bfloat16 leaves as it is"
        errors[is_patched] = (logits[0] - logits[1])[-8:].abs().max().item()
    assert errors[True] <= 2 * errors[False]
