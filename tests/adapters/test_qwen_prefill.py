"""One forward pass of a pruned Qwen-VL or one of its kin, against the independent computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastvid_kernels.adapters import apply_fastvid, pruner
from tests.adapters import qwen_case, qwen_independent, tiny_qwen
from tests.adapters.qwen_case import Case, case_of
from tests.adapters.tiny_qwen import WIDE, film, inputs_of, words


@pytest.fixture(params=qwen_case.all_cases())
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    return case_of(*request.param, monkeypatch)


@pytest.fixture(params=qwen_case.main_cases())
def main_case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    return case_of(*request.param, monkeypatch)


def test_one_row(case: Case) -> None:
    prompt = case.video_prompt(3)
    logits = case.model(**inputs_of(prompt)).logits[0]
    assert len(logits) == len(prompt.ids), "logits keep the shape that they have without pruning"
    case.check_row(logits, prompt)


def test_pruning_changes_the_answer(case: Case) -> None:
    inputs = inputs_of(case.video_prompt(3))
    difference = case.model(**inputs).logits[0, -1] - case.twin(**inputs).logits[0, -1]
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("mask", [True, False])
def test_a_row_without_a_mask(main_case: Case, mask: bool) -> None:
    prompt = main_case.video_prompt(5)
    inputs = inputs_of(prompt)
    if not mask:
        del inputs["attention_mask"]
    for use_cache in (True, False):
        main_case.check_row(main_case.model(**inputs, use_cache=use_cache).logits[0], prompt)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(case: Case, side: str) -> None:
    """Videos of two resolutions and a longer row of text: DeepStack must find the rows to which it adds."""
    if side == "right" and case.kind.startswith("qwen3.5"):
        pytest.skip("a state goes on through padding: these models want it on the left, pruned or not")
    prompts = [
        case.video_prompt(5),
        case.video_prompt(6, before=11, after=2, grid=WIDE),
        case.text(9, 30),
        case.text(10, 250),
    ]
    inputs = inputs_of(*prompts, side=side)
    logits = case.model(**inputs).logits
    for row, prompt in enumerate(prompts):
        own = logits[row][inputs["attention_mask"][row].bool()]
        case.check_row(own, prompt)
        own[qwen_independent.embedded(case.kind, case.twin, prompt, case.hyperparameters).places] = 0
        assert not own.any(), "where a token was dropped there are zeros"


def test_two_videos_of_two_resolutions_in_a_prompt(case: Case) -> None:
    prompt = case.prompt(words(1, 3), film(7), words(2, 5), film(8, WIDE), words(3, 4))
    case.check_row(case.model(**inputs_of(prompt)).logits[0], prompt)


def test_image_and_video(case: Case) -> None:
    """GLM has one placeholder for both, and refuses them together, pruned or not."""
    prompt = case.prompt(words(1, 3), film(20, (1, 4, 6)), words(2, 2), film(4), words(3, 6))
    if case.kind.startswith("glm"):
        for model in (case.model, case.twin):
            with pytest.raises(ValueError, match="Image features and image tokens do not match"):
                model(**inputs_of(prompt))
        return
    case.check_row(case.model(**inputs_of(prompt)).logits[0], prompt)


def test_a_text_only_prompt_is_untouched(main_case: Case) -> None:
    if main_case.model.config._attn_implementation.startswith("flash"):
        pytest.skip("the twin takes explicit masks")
    inputs = inputs_of(main_case.text(1, 20), main_case.text(2, 12))
    assert torch.equal(main_case.model(**inputs).logits, main_case.twin(**inputs).logits)


def test_videos_whose_frames_are_alike_share_a_call(main_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = pruner.prune
    monkeypatch.setattr(pruner, "prune", lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs))
    turned = (8, 10, 6)
    main_case.model(
        **inputs_of(
            main_case.video_prompt(1),
            main_case.video_prompt(2, grid=WIDE),
            main_case.video_prompt(3, grid=turned),
        )
    )
    assert [(list(call[0].shape[:2]), call[3] if call[3] is None else call[3].tolist()) for call in calls] == [
        ([14, 15], [0, 6, 14]),
        ([4, 14], None),
    ]


@pytest.mark.parametrize("path", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", tiny_qwen.KINDS)
def test_retention_one_and_remove_give_the_same_bits(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(kind, path, monkeypatch, retention_ratio=1.0)
    inputs = inputs_of(case.video_prompt(1), case.video_prompt(2, before=9, grid=WIDE), case.text(3, 17))
    expected = case.twin(**inputs).logits
    words_expected = case.twin.generate(**inputs, max_new_tokens=8, do_sample=False)
    for _ in ("retention 1", "removed"):
        assert torch.equal(case.model(**inputs).logits, expected)
        assert torch.equal(case.model.generate(**inputs, max_new_tokens=8, do_sample=False), words_expected)
        case.handle.remove()


def test_labels_give_the_loss_of_the_kept_text(main_case: Case) -> None:
    prompt = main_case.video_prompt(8, after=12)
    inputs = inputs_of(prompt)
    labels = inputs["input_ids"].clone()
    labels[:, :-10] = -100
    loss = main_case.model(**inputs, labels=labels).loss
    expected = qwen_independent.logits(main_case.kind, main_case.twin, prompt, main_case.hyperparameters)[-11:-1]
    expected = torch.nn.functional.cross_entropy(expected, labels[0, -10:])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_logits_to_keep(main_case: Case) -> None:
    inputs = inputs_of(main_case.video_prompt(8))
    everything = main_case.model(**inputs).logits
    main_case.check(main_case.model(**inputs, logits_to_keep=3).logits, everything[:, -3:])


def test_a_video_of_one_frame(case: Case) -> None:
    """It has the grid of an image, but is a video."""
    clip = film(2, (1, 6, 10))
    ids = case.prompt(words(2, 4), clip, words(3, 7))
    kind = tiny_qwen.KINDS[case.kind]
    stamp = words(900, 2) if kind.timestamps else []
    before = [*words(2, 4), *stamp, tiny_qwen.START]
    after = [tiny_qwen.END, *words(3, 7)]
    placeholders = [kind.placeholder] * clip.tokens_per_frame
    prompt = tiny_qwen.Prompt(
        [*before, *placeholders, *after],
        [*[0] * len(before), *[2] * len(placeholders), *[0] * len(after)],
        videos=(clip,),
        frame_seconds=kind.frame_seconds,
    )
    assert ids.images, "the helper takes it for an image"
    case.check_row(case.model(**inputs_of(prompt)).logits[0], prompt)


def test_the_family_s_published_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in tiny_qwen.KINDS:
        model, twin = (tiny_qwen.model(kind) for _ in range(2))
        handle = apply_fastvid(model)
        assert (handle.config.retention_ratio, handle.config.tau, handle.config.min_segments) == (0.27, 0.84, 8)
        case = Case(kind, model, twin, handle)
        prompt = case.video_prompt(4)
        case.check_row(model(**inputs_of(prompt)).logits[0], prompt)


@pytest.mark.parametrize("hyperparameters", [{"retention_ratio": 0.07}, {"retention_ratio": 0.6, "dtm_ratio": 0.9}])
def test_hyperparameters_reach_the_operator(hyperparameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("qwen2.5", "sdpa", monkeypatch, **hyperparameters)
    prompt = case.video_prompt(4)
    case.check_row(case.model(**inputs_of(prompt)).logits[0], prompt)


@pytest.mark.parametrize("kind", qwen_case.MAIN)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_loses_no_more_than_the_model_itself(kind: str, attention: str) -> None:
    """Compared on the first video of which bfloat16 selects the same tokens."""

    def logits(seed: int, is_patched: bool) -> list[Any]:
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            model = tiny_qwen.model(kind, attention=attention).bfloat16().to(dtype)
            if is_patched:
                apply_fastvid(model, **tiny_qwen.HYPERPARAMETERS)
            prompt = tiny_qwen.prompt(kind, words(1, 4), film(seed, (3, 6, 10)), words(2, 7))
            found.append(model(**inputs_of(prompt)).logits[0].float())
        return found

    for seed in range(20):
        pruned = logits(seed, is_patched=True)
        if torch.equal(*(one.abs().amax(1) > 0 for one in pruned)):
            break
    else:
        pytest.fail("bfloat16 changes every selection")
    ours, models_own = ((one[0] - one[1])[-8:].abs().max() for one in (pruned, logits(seed, is_patched=False)))
    assert ours <= 2 * models_own
