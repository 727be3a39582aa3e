"""Faults of transformers itself, pruned or not: documented, and tested so that a change is noticed."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

from tests.adapters import qwen_independent, tiny, tiny_qwen
from tests.adapters.tiny_qwen import KINDS, film, inputs_of, words

INSTALLED = Version(tiny.transformers.__version__)


def test_text_after_a_long_film_goes_on_before_the_film_s_end() -> None:
    """Qwen2.5-VL: text goes on from the film's first position plus max(H, W) / 2, however many seconds it has."""
    model = tiny_qwen.model("qwen2.5")
    prompt = tiny_qwen.prompt("qwen2.5", film(1, (8, 4, 6)), words(1, 2))
    positions = qwen_independent.positions(KINDS["qwen2.5"], prompt)
    found, deltas = model.model.get_rope_index(**{k: v for k, v in inputs_of(prompt).items() if "pixel" not in k})
    assert torch.equal(found[:, 0], positions)
    assert positions[:, -1].max() < positions.max()
    # So `generate`, which counts on from the last position, and a loop over `forward`, from the largest, disagree.
    assert deltas.item() + len(prompt.ids) == positions.max() + 1 != positions[0, -1] + 1


def test_a_conversation_continued_after_another_takes_the_other_s_positions() -> None:
    """`rope_deltas` is the last prompt's, whichever cache is continued."""
    model = tiny_qwen.model("qwen3")
    one = tiny_qwen.prompt("qwen3", words(1, 4), film(3), words(2, 7))
    other = tiny_qwen.prompt("qwen3", words(1, 9))
    step = torch.tensor([[5]])
    expected = model(input_ids=step, past_key_values=model(**inputs_of(one), use_cache=True).past_key_values).logits
    cache = model(**inputs_of(one), use_cache=True).past_key_values
    model.generate(**inputs_of(other), max_new_tokens=1, do_sample=False)
    found = model(input_ids=step, past_key_values=cache).logits
    assert (found - expected).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3"])
def test_a_new_video_after_an_earlier_one(kind: str) -> None:
    """Without positions: an error since 5.23, silently other logits on 5.17; the adapter does not change this."""
    model = tiny_qwen.model(kind)
    first = tiny_qwen.prompt(kind, words(1, 4), film(3), words(2, 24))
    options = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**inputs_of(first), **options)
    new = out.sequences[0, len(first.ids) :].tolist()
    second = first.then(new, words(8, 5), film(11), words(9, 3), kind=kind)
    inputs = inputs_of(second)
    inputs["pixel_values_videos"], inputs["video_grid_thw"] = film(11).patches, torch.tensor([film(11).grid])
    if Version("5.23") <= INSTALLED:
        with pytest.raises(Exception):  # noqa: B017, PT011
            model.generate(**inputs, past_key_values=out.past_key_values, **options)
        return
    again = model.generate(**inputs, past_key_values=out.past_key_values, **options)
    whole = model.generate(**inputs_of(second), **options)
    assert (again.logits[0] - whole.logits[0]).abs().max() > 0.01


def test_a_state_cannot_be_cropped() -> None:
    model = tiny_qwen.model("qwen3.5")
    cache = model(**inputs_of(tiny_qwen.prompt("qwen3.5", words(1, 9))), use_cache=True).past_key_values
    with pytest.raises((RuntimeError, ValueError, NotImplementedError, AttributeError)):
        cache.crop(-2)
