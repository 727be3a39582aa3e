"""Sound beside a video, and a video's own sound between its frames: the thinkers of Qwen-Omni."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import qwen_independent, tiny, tiny_qwen
from tests.adapters.qwen_case import GREEDY, NEW, Case, case_of
from tests.adapters.tiny_qwen import AUDIO, AUDIO_END, AUDIO_START, END, START, VIDEO, Clip, Prompt, film, words

KINDS = [kind for kind in tiny_qwen.KINDS if "omni" in kind]
SAMPLES = 61
needs_omni = pytest.mark.skipif(not KINDS, reason="the parts of these models lie elsewhere in this version")


def sounds(kind: str) -> int:
    """Number of tokens of SAMPLES frames of a spectrogram."""
    module = tiny.transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe
    if kind == "qwen3-omni":
        return int(module._get_feat_extract_output_lengths(torch.tensor(SAMPLES)))
    return ((SAMPLES - 1) // 2 + 1 - 2) // 2 + 1


def beside(kind: str, clip: Clip) -> list[int]:
    """A video, then sound."""
    video = [START, *[VIDEO] * (clip.grid[0] * clip.tokens_per_frame), END]
    return [*video, *words(5, 3), AUDIO_START, *[AUDIO] * sounds(kind), AUDIO_END]


def within(kind: str, clip: Clip) -> list[int]:
    """A video and its sound in turns: two seconds of each at a time, or ordered by their time, 10 positions a frame."""
    frames, n = clip.grid[0], clip.tokens_per_frame
    if kind == "qwen3-omni":
        timed = [(10 * frame, 0, [VIDEO] * n) for frame in range(frames)]
        timed += [(time, 1, [AUDIO]) for time in range(sounds(kind))]
    else:
        timed = [(50 * (10 * frame // 50), 0, [VIDEO] * n) for frame in range(frames)]
        timed += [(50 * (time // 50), 1, [AUDIO]) for time in range(sounds(kind))]
    inner = [token for _, _, ids in sorted(timed, key=lambda one: one[:2]) for token in ids]
    return [START, AUDIO_START, *inner, AUDIO_END, END]


@pytest.fixture(params=["beside", "within"])
def arranged(request: pytest.FixtureRequest) -> tuple[Callable[[str, Clip], list[int]], dict[str, Any]]:
    """How sound is arranged, and the argument that says so."""
    return (beside, {}) if request.param == "beside" else (within, {"use_audio_in_video": True})


def case_with_sound(kind: str, monkeypatch: pytest.MonkeyPatch, arranged: Any) -> tuple[Case, Prompt, dict[str, Any]]:
    """A case, a prompt with a video and sound, and the arguments for it.

    The independent computation gets its positions and its sound from transformers' own functions, on the twin.
    """
    arrange, options = arranged
    case = case_of(kind, "sdpa", monkeypatch)
    clip = film(3)
    ids = [*words(1, 4), *arrange(kind, clip), *words(2, 7)]
    prompt = Prompt(ids, [2 * (token == VIDEO) for token in ids], (clip,), frame_seconds=0.4)
    spectrogram = torch.randn(1, 8, SAMPLES, generator=torch.Generator().manual_seed(4))
    sound = {"input_features": spectrogram, "feature_attention_mask": torch.ones(1, SAMPLES, dtype=torch.int64)}
    inputs = tiny_qwen.inputs_of(prompt) | sound
    positions, _ = case.twin.get_rope_index(
        inputs["input_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        attention_mask=inputs["attention_mask"],
        use_audio_in_video=bool(options),
        audio_seqlens=torch.tensor([SAMPLES]),
        second_per_grids=inputs["video_second_per_grid"],
    )
    heard = case.twin.get_audio_features(**sound, return_dict=True).last_hidden_state
    original = qwen_independent.embedded

    def embedded(*args: Any) -> qwen_independent.Row:
        row = original(*args)
        row.embeds[torch.tensor(ids)[row.places] == AUDIO] = heard
        return row

    monkeypatch.setattr(qwen_independent, "positions", lambda *_: positions[:, 0])
    monkeypatch.setattr(qwen_independent, "embedded", embedded)
    return case, prompt, inputs | options


@needs_omni
@pytest.mark.parametrize("kind", KINDS)
def test_prefill(kind: str, monkeypatch: pytest.MonkeyPatch, arranged: Any) -> None:
    case, prompt, inputs = case_with_sound(kind, monkeypatch, arranged)
    logits: Tensor = case.model(**inputs).logits[0]
    case.check_row(logits, prompt)
    kept = logits.abs().amax(1) > 0
    assert kept[torch.tensor(prompt.ids) == AUDIO].all(), "sound is never dropped"
    n = prompt.videos[0].tokens_per_frame
    assert kept[torch.tensor(prompt.ids) == VIDEO].sum() == 6 * int(n * 0.27)


@needs_omni
@pytest.mark.parametrize("kind", KINDS)
def test_generation(kind: str, monkeypatch: pytest.MonkeyPatch, arranged: Any) -> None:
    case, prompt, inputs = case_with_sound(kind, monkeypatch, arranged)
    case.check_generated(case.model.generate(**inputs, **GREEDY), 0, prompt, NEW)


@needs_omni
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_of_which_speech_would_be_made_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3-Omni's talker would take those of some tokens for those of all, without an error."""
    case = case_of(kind, "sdpa", monkeypatch)
    asked = GREEDY | {"output_hidden_states": True}
    inputs = tiny_qwen.inputs_of(case.video_prompt(3))
    with pytest.raises(ValueError, match=r'output_hidden_states must be False .* generation_mode="text"'):
        case.model.generate(**inputs, **asked)
    assert case.model.generate(**tiny_qwen.inputs_of(case.text(9, 30)), **asked).hidden_states
    with torch.no_grad():
        case.check_row(case.model(**inputs).logits[0], case.video_prompt(3))


@pytest.mark.skipif(bool(KINDS), reason="this version has the parts where the adapter looks for them")
def test_an_older_transformers_is_refused() -> None:
    cls = tiny.transformers.Qwen2_5OmniThinkerForConditionalGeneration
    with torch.device("meta"):
        model = cls(cls.config_class())
    with pytest.raises(RuntimeError, match=r"transformers must be at least 5\.23 .* for this model"):
        apply_fastvid(model)
