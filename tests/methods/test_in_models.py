"""Methods by name inside models: what the models answer, against the loops inside the independent computation."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvid_kernels import methods, prune
from fastvid_kernels.adapters import apply_fastvid, scoring
from fastvid_kernels.adapters.tally import VideoCount, counted_videos
from fastvid_kernels.adapters.tower import TowerAttention
from tests.adapters import independent, qwen_independent, tiny, tiny_qwen
from tests.adapters.independent import Prompt
from tests.adapters.test_onevision_generation import GREEDY
from tests.adapters.test_onevision_prefill import inputs_of, video_prompt
from tests.methods import loops

RATIO = 0.3
TOLERANCE = 1e-5
LOOPS: dict[str, Any] = {
    name: getattr(loops, name)
    for name in ("uniform", "pool", "attention", "visionzip", "dycoke", "evs", "vidcom2", "vcast", "simple_cluster")
}
LOOPS["prunevid"] = lambda *inputs: loops.prunevid(*inputs, num_neighbors=7)
LOOPS["fastvid"] = loops.fastvid


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("siglip")
    tiny.siglip().save_pretrained(directory)
    return directory


def by_loops(name: str, sink: bool = False) -> SimpleNamespace:
    """A method's loops with the oracle's interface."""

    def pruned(tokens: Tensor, attention: Tensor, features: Tensor | None, _: None, retention_ratio: float) -> Any:
        attention = loops.sink_corrected(attention).float() if sink else attention.float()
        features = None if features is None else features.double()
        # As in the adapter: a method that needs no attention has no head, and so no frame features from it.
        features = features if methods.get(name).needs_attention else None
        kept, indices = LOOPS[name](tokens.double(), attention, features, None, retention_ratio)
        return SimpleNamespace(tokens=kept, indices=indices)

    return SimpleNamespace(prune=pruned)


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def ratio_of(name: str) -> dict[str, float]:
    """The retention ratio, for a method that reads it."""
    return {"retention_ratio": RATIO} if "retention_ratio" in methods.get(name).reads else {}


@pytest.mark.parametrize("name", LOOPS)
def test_llava_onevision(name: str, siglip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independent, "reference", by_loops(name))
    model, twin, head = tiny.llava_onevision(), tiny.llava_onevision(), tiny.siglip()
    own = {"siglip": siglip} if methods.get(name).needs_attention else {}
    apply_fastvid(model, method=name, **ratio_of(name), **own)
    prompt = video_prompt(3)
    settings = {"retention_ratio": RATIO}
    _, places = independent.embedded(twin, head, prompt, settings)
    close(model(**inputs_of(prompt)).logits[0][places], independent.logits(twin, head, prompt, settings))
    out = model.generate(**inputs_of(prompt), **GREEDY)
    ids, logits = independent.generated(twin, head, prompt, settings, GREEDY["max_new_tokens"])
    assert out.sequences[0, -len(ids) :].tolist() == ids
    close(torch.stack([step[0] for step in out.logits]), logits)


@pytest.mark.parametrize("name", LOOPS)
def test_qwen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a padded batch, whose rows keep different numbers of tokens."""
    loop = by_loops(name)
    monkeypatch.setattr(
        qwen_independent, "reference", SimpleNamespace(prune=lambda *inputs, **given: loop.prune(*inputs, RATIO))
    )
    model, twin = tiny_qwen.model("qwen2.5"), tiny_qwen.model("qwen2.5")
    apply_fastvid(model, method=name, **ratio_of(name))
    prompts = [
        tiny_qwen.prompt("qwen2.5", tiny_qwen.words(seed, 4), tiny_qwen.film(seed), tiny_qwen.words(seed + 1, length))
        for seed, length in ((3, 7), (5, 9))
    ]
    inputs = tiny_qwen.inputs_of(*prompts)
    logits = model(**inputs).logits
    for row, prompt in enumerate(prompts):
        expected = qwen_independent.embedded("qwen2.5", twin, prompt, {})
        own = logits[row][inputs["attention_mask"][row].bool()]
        close(own[expected.places], qwen_independent.decoded(twin, expected))


def test_attention_without_sinks(siglip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independent, "reference", by_loops("fastvid", sink=True))
    model, twin, head = tiny.llava_onevision(), tiny.llava_onevision(), tiny.siglip()
    prompt, settings = video_prompt(3), {"retention_ratio": RATIO}
    with apply_fastvid(model, siglip=siglip, retention_ratio=RATIO):
        uncorrected = model(**inputs_of(prompt)).logits[0, -1]
    apply_fastvid(model, siglip=siglip, sink=True, retention_ratio=RATIO)
    _, places = independent.embedded(twin, head, prompt, settings)
    logits = model(**inputs_of(prompt)).logits[0]
    close(logits[places], independent.logits(twin, head, prompt, settings))
    assert (logits[-1] - uncorrected).abs().max() > 0.01


def test_an_ablation_differs_and_fastvid_by_name_does_not(siglip: Any) -> None:
    model = tiny.llava_onevision()
    answers = []
    for method in (None, "fastvid", methods.get("fastvid", segmentation="fixed", merging="uniform")):
        with apply_fastvid(model, siglip=siglip, method=method, retention_ratio=RATIO, min_segments=2):
            answers.append(model(**inputs_of(video_prompt(3))).logits[0, -1])
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_no_head_is_read_and_no_score_computed_where_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("attention was computed")

    monkeypatch.setattr(scoring, "load_siglip_head", fail)
    monkeypatch.setattr(TowerAttention, "of", fail)
    llava, qwen = tiny.llava_onevision(), tiny_qwen.model("qwen2.5")
    for model in (llava, qwen):
        apply_fastvid(model, method="evs")
    llava(**inputs_of(video_prompt(3)))
    qwen(**tiny_qwen.inputs_of(tiny_qwen.prompt("qwen2.5", tiny_qwen.film(3), tiny_qwen.words(4, 3))))


def test_videos_are_counted_for_whoever_asks(siglip: Any) -> None:
    model = tiny.llava_onevision()
    inputs = inputs_of(video_prompt(3))
    with apply_fastvid(model, siglip=siglip, retention_ratio=RATIO):
        model(**inputs)
        with counted_videos() as counts:
            model.generate(**inputs, max_new_tokens=3)
            model(**inputs_of(Prompt(tiny.words(1, 9))))
    tokens = tiny.FRAMES * tiny.TOKENS_PER_FRAME
    assert counts == [VideoCount(tiny.FRAMES, tokens, tiny.FRAMES * 7)]
    with apply_fastvid(model, method="prunevid"), counted_videos() as counts:
        model(**inputs)
    assert 0 < counts[0].kept < tokens
    qwen = tiny_qwen.model("qwen2.5")
    films = [tiny_qwen.film(3), tiny_qwen.film(4, grid=tiny_qwen.WIDE)]
    prompt = tiny_qwen.prompt("qwen2.5", films[0], tiny_qwen.words(4, 3), films[1], tiny_qwen.words(4, 3))
    with apply_fastvid(qwen, retention_ratio=RATIO), counted_videos() as counts:
        qwen(**tiny_qwen.inputs_of(prompt))
    assert [one.frames for one in counts] == [film.grid[0] for film in films]
    for one in counts:
        n = one.tokens // one.frames
        expected, _ = prune(torch.rand(one.frames, n, 4), torch.rand(one.frames, n), retention_ratio=RATIO)
        assert one.kept == len(expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "visionzipp"}, ValueError, "method must be one of .*, got 'visionzipp'"),
        ({"method": 3}, TypeError, "method must be a name, a Method or None, got int"),
        ({"method": "visionzip", "tau": 0.8}, TypeError, "tau must be left out: visionzip reads only retention_ratio"),
        (
            {"method": "prunevid", "retention_ratio": 0.3},
            TypeError,
            "retention_ratio must be left out: prunevid reads no hyperparameter",
        ),
        (
            {"method": "visionzip", "ratio": 0.3},
            TypeError,
            "hyperparameters must be among retention_ratio, .*got ratio",
        ),
        ({"method": "evs", "sink": True}, ValueError, "sink must be False for evs"),
        ({"sink": 0.02}, TypeError, "sink must be True or False, got 0.02"),
    ],
)
@pytest.mark.parametrize("build", [tiny.llava_onevision, lambda: tiny_qwen.model("qwen2.5")], ids=["llava", "qwen"])
def test_bad_arguments_change_nothing(
    build: Callable[[], nn.Module], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = build()
    with pytest.raises(error, match=message):
        apply_fastvid(model, **arguments)
    assert "fastvid_handle" not in model.__dict__
