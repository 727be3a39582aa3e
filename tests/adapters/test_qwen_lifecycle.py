"""Putting the patch on a Qwen-VL or one of its kin and taking it off, refusals, copies, compilation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastvid_kernels.adapters import apply_fastvid, qwen_vl
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, mean_query, received
from tests.adapters import qwen_case, qwen_independent, tiny, tiny_qwen
from tests.adapters.qwen_case import Case, case_of
from tests.adapters.test_onevision_lifecycle import everything_about
from tests.adapters.tiny_qwen import WIDE, film, inputs_of, words


@pytest.fixture(params=tiny_qwen.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def some_inputs(kind: str) -> dict[str, torch.Tensor]:
    return inputs_of(tiny_qwen.prompt(kind, words(1, 4), film(3), words(2, 7)))


def without_positions(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out `rope_deltas`, which the model, not the patch, sets for its last prompt."""
    return {name: {key: value for key, value in own.items() if key != "rope_deltas"} for name, own in found.items()}


def test_remove_leaves_nothing(kind: str) -> None:
    model = tiny_qwen.model(kind)
    model.generate(**some_inputs(kind), max_new_tokens=2)
    before = without_positions(everything_about(model))
    with apply_fastvid(model):
        assert without_positions(everything_about(model)) != before
        model.generate(**some_inputs(kind), max_new_tokens=2)
    assert without_positions(everything_about(model)) == before


def test_every_class_of_the_table_is_tested(kind: str) -> None:
    assert type(tiny_qwen.model(kind)).__name__ in qwen_vl.MODELS
    tested = {f"{own.prefix}ForConditionalGeneration" for own in tiny_qwen.KINDS.values()}
    assert {name for name in qwen_vl.MODELS if tiny_qwen.HAS_OMNI or "Omni" not in name} == tested


@pytest.mark.parametrize("kind", qwen_case.MAIN)
def test_a_deep_copy_is_a_model_of_its_own(kind: str) -> None:
    model = tiny_qwen.model(kind)
    handle = apply_fastvid(model, **tiny_qwen.HYPERPARAMETERS)
    copied = copy.deepcopy(model)
    inputs = some_inputs(kind)
    expected = model(**inputs).logits
    handle.remove()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(**inputs).logits, expected), "the copy goes on pruning, with weights of its own"
    copied.fastvid_handle.remove()
    assert torch.equal(copied(**inputs).logits, tiny_qwen.model(kind)(**inputs).logits)


@pytest.mark.parametrize("kind", qwen_case.MAIN)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decoding_is_one_graph(kind: str, cache: str) -> None:
    torch.compiler.reset()
    model = tiny_qwen.model(kind)
    apply_fastvid(model, **tiny_qwen.HYPERPARAMETERS)
    text = model.config.text_config
    caches = [
        tiny.transformers.DynamicCache(config=text)
        if cache == "dynamic"
        else tiny.transformers.StaticCache(config=text, max_cache_len=200)
        for _ in range(2)
    ]
    inputs = some_inputs(kind)
    for one in caches:
        model(**inputs, past_key_values=one)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    length = inputs["input_ids"].shape[1]
    for step, token in enumerate(words(5, 4)):
        ids = {"input_ids": torch.tensor([[token]]), "position_ids": torch.full((3, 1, 1), length + step)}
        logits = [call(**ids, past_key_values=one).logits for call, one in zip((model, compiled), caches, strict=True)]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-5 * logits[0].abs().max().item())


@pytest.mark.parametrize("kind", qwen_case.MAIN)
def test_prefill_compiles(kind: str) -> None:
    torch.compiler.reset()
    model = tiny_qwen.model(kind)
    apply_fastvid(model, **tiny_qwen.HYPERPARAMETERS)
    inputs = some_inputs(kind)
    expected = model(**inputs).logits
    found = torch.compile(model, backend="eager")(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


class TestOtherScores:
    @pytest.fixture
    def case(self, monkeypatch: pytest.MonkeyPatch) -> Case:
        return case_of("qwen2.5", "sdpa", monkeypatch)

    @pytest.mark.parametrize("name", ["mean_query", "received"])
    def test_from_the_tower_in_rows(self, case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two videos at once, each reaches the operator with its own scores, put back from window order."""
        case.handle.remove()
        seen: list[Any] = []
        pruner = qwen_vl.VideoPruner
        monkeypatch.setattr(
            pruner, "__call__", lambda self, videos: seen.extend(videos) or [one.tokens for one in videos]
        )
        apply_fastvid(case.model, attention=name)
        clips = (film(1), film(2, WIDE))
        case.model(**inputs_of(case.prompt(*clips)))
        score = {"mean_query": mean_query, "received": received}[name]
        for clip, video in zip(clips, seen, strict=True):
            queries, keys = qwen_independent.queries_and_keys(case.twin, clip)
            expected = torch.empty(clip.grid[0] * clip.tokens_per_frame)
            expected[qwen_independent.window_places(clip.grid, 2)] = score(queries, keys, 4).flatten()
            torch.testing.assert_close(video.attention.flatten(), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", ATTENTION_SUBSTITUTES)
    def test_from_the_tokens(self, case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def score(queries: Any, keys: Any, grid: tuple[int, int, int], window: int | None) -> torch.Tensor:
            clip = next(one for one in (film(1), film(2, WIDE)) if one.grid == grid)
            tokens, _ = qwen_independent.video_features(case.twin, clip)
            return ATTENTION_SUBSTITUTES[name](tokens.unflatten(0, (grid[0], -1))).double()

        case.handle.remove()
        apply_fastvid(case.model, attention=name, **case.hyperparameters)
        monkeypatch.setattr(qwen_independent, "mean_query", score)
        prompt = case.prompt(film(1), words(1, 3), film(2, WIDE), words(2, 4))
        case.check_row(case.model(**inputs_of(prompt)).logits[0], prompt)


class TestRefusals:
    def test_a_model_that_is_in_no_table(self) -> None:
        transformers = tiny.transformers
        for name in ("VideoLlama3ForConditionalGeneration", "Gemma4ForConditionalGeneration"):
            with torch.device("meta"):
                config = getattr(transformers, name).config_class()
                model = getattr(transformers, name)(config)
            with pytest.raises(TypeError, match=rf"Qwen3VLForConditionalGeneration.*, got {name}"):
                apply_fastvid(model)

    @pytest.mark.skipif(
        not hasattr(tiny.transformers, "Qwen4ExpForConditionalGeneration"), reason="not in this version"
    )
    def test_a_qwen_that_is_in_no_table(self) -> None:
        """The model is made without its weights, since only its class counts."""
        cls = tiny.transformers.Qwen4ExpForConditionalGeneration
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        with pytest.raises(TypeError, match=r"Qwen3_5ForConditionalGeneration.*, got Qwen4Exp"):
            apply_fastvid(model)

    @pytest.mark.parametrize("kind", [kind for kind in tiny_qwen.KINDS if "moe" in kind or kind == "qwen3-omni"])
    def test_a_loss_that_weighs_dropped_tokens(self, kind: str) -> None:
        model = tiny_qwen.model(kind)
        apply_fastvid(model, **tiny_qwen.HYPERPARAMETERS)
        with pytest.raises(ValueError, match=r"output_router_logits must be False .* the auxiliary loss would weigh"):
            model(**some_inputs(kind), output_router_logits=True)
        text = inputs_of(tiny_qwen.prompt(kind, words(1, 9)))
        assert model(**text, output_router_logits=True).aux_loss > 0

    @pytest.mark.parametrize("options", [{"siglip": "google/siglip-so400m-patch14-384"}, {"attention": "siglip"}])
    def test_siglip(self, options: dict[str, Any]) -> None:
        model = tiny_qwen.model("qwen2.5")
        before = everything_about(model)
        with pytest.raises(ValueError, match=r"siglip cannot be used with Qwen2_5_VL.*its own vision tower"):
            apply_fastvid(model, **options)
        assert everything_about(model) == before

    def test_an_unknown_attention(self) -> None:
        with pytest.raises(ValueError, match=r"attention must be one of 'mean_query', 'received', 'norm'.*got 'cls'"):
            apply_fastvid(tiny_qwen.model("qwen3"), attention="cls")
        with pytest.raises(ValueError, match=r"attention must be one of .* got ''"):
            apply_fastvid(tiny_qwen.model("qwen3"), attention="")

    @pytest.mark.parametrize("kind", ["qwen2", "qwen2.5"])
    def test_windows_over_the_past(self, kind: str) -> None:
        model = tiny_qwen.model(kind, use_sliding_window=True, sliding_window=8, max_window_layers=1)
        with pytest.raises(ValueError, match="no sliding-window layers"):
            apply_fastvid(model)

    def test_a_tower_whose_last_block_sees_windows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_qwen.model("qwen2.5")
        model.model.visual.fullatt_block_indexes = [1]
        with pytest.raises(ValueError, match=r"must attend to whole frames, got fullatt_block_indexes \[1\] of 3"):
            apply_fastvid(model)

    @pytest.mark.parametrize("version", ["5.16.0", "5.25.0"])
    def test_an_unsupported_version(self, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transformers.__version__", version)
        monkeypatch.setattr("fastvid_kernels.adapters.versions.TOO_NEW", "5.25")
        with pytest.raises(RuntimeError, match=rf"at least 5\.17 and below 5\.25.*got {version}"):
            apply_fastvid(tiny_qwen.model("qwen3"))

    def test_a_frame_of_which_nothing_would_be_kept(self) -> None:
        """The size of a frame is known only when a video comes."""
        model = tiny_qwen.model("qwen3")
        apply_fastvid(model, retention_ratio=0.05)
        with pytest.raises(ValueError, match="at least one of a frame's 15 tokens"):
            model(**some_inputs("qwen3"))

    def test_features_as_a_tuple(self) -> None:
        model = tiny_qwen.model("qwen3")
        apply_fastvid(model)
        clip = film(1)
        with pytest.raises(ValueError, match="use return_dict=True"):
            model.model.get_video_features(clip.patches, torch.tensor([clip.grid]), return_dict=False)

    def test_padding_that_a_state_would_take_in(self) -> None:
        """In a second turn, rows keep different numbers of tokens: padding would enter the state of the layers."""
        model = tiny_qwen.model("qwen3.5")
        apply_fastvid(model)
        rows = [tiny_qwen.prompt("qwen3.5", words(seed, 9)) for seed in (1, 2)]
        cache = model(**inputs_of(*rows), use_cache=True).past_key_values
        video = tiny_qwen.prompt("qwen3.5", film(3))
        text = tiny_qwen.prompt("qwen3.5", words(4, len(video.ids)))
        new = inputs_of(video, text)
        new["attention_mask"] = torch.ones(2, 9 + len(video.ids), dtype=torch.int64)
        positions = torch.arange(9, 9 + len(video.ids)).expand(3, 2, -1)
        with pytest.raises(ValueError, match="continue the rows one by one"):
            model(**new, past_key_values=cache, position_ids=positions)
