"""Served by vLLM, every family answers as transformers does with the oracle's pruning, on the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.vllm import engine
from tests.vllm.engine import Engine, Request
from tests.vllm.family import BEHIND, Family

pytestmark = pytest.mark.parametrize(
    "family",
    [
        "llava",
        "next-video",
        "internvl",
        "internvl-chat",
        "qwen2",
        "qwen2.5",
        "qwen3",
        "qwen3-moe",
        "qwen3.5",
        "qwen3.5-moe",
        "glm4.1",
        "glm4.5-moe",
        "glm4.6",
    ],
    indirect=True,
)


@pytest.fixture(scope="module")
def worst(family: Family) -> Iterator[dict[str, float]]:
    seen: dict[str, float] = {}
    yield seen
    shown = {name: f"{value:.1e}" for name, value in seen.items()}
    print(f"\n{type(family.model).__name__}: worst differences of log-probabilities:", shown)


def test_all_at_once(family: Family, served: Engine, worst: dict[str, float]) -> None:
    served.forget()
    several = family.requests()
    for name, answer in zip(several, served.answer(*several.values()), strict=True):
        worst[name] = family.check(several[name], answer)


def test_each_alone(family: Family, served: Engine) -> None:
    served.forget()
    for request in family.requests().values():
        (answer,) = served.answer(request)
        family.check(request, answer)


def test_a_prompt_in_words(family: Family, served: Engine) -> None:
    """Of a prompt as text, the processor of transformers expands placeholders to their number without pruning."""
    served.forget()
    tokenizer = family.processor.tokenizer
    given = family.requests()["video"]
    # Some ids of the vocabulary stand for no character.
    ids = [one for one in given.ids if tokenizer(tokenizer.decode([one]))["input_ids"] == [one]]
    request = replace(given, ids=ids, text=tokenizer.decode(ids))
    (answer,) = served.answer(request)
    family.check(request, answer)


def test_many_at_once(family: Family, served: Engine) -> None:
    served.forget()
    several = [family.short(seed) for seed in range(30)]
    for request, answer in zip(several, served.answer(*several), strict=True):
        family.check(request, answer)


def test_prefix_cache(family: Family, served: Engine) -> None:
    """The cache is cold, then warm, then covers the whole video but not the words behind it, then is emptied."""
    served.forget()
    first = family.requests()["long"]
    # A block of the cache has 32 tokens. Of linear attention, vLLM caches only the state at the last block's end.
    shared, others = 33, family.requests()["text"].ids
    other = Request([*(first.ids if family.has_state else first.ids[: shared - BEHIND]), *others], first.videos)
    (cold,) = served.answer(first)
    (warm,) = served.answer(first)
    (covered,) = served.answer(other)
    served.forget()
    (again,) = served.answer(first)
    for request, answer in ((first, cold), (first, warm), (other, covered), (first, again)):
        family.check(request, answer)
    assert cold.cached == again.cached == 0
    assert warm.cached > warm.prompt - BEHIND
    assert covered.cached > covered.prompt - len(others) - shared


def test_chunked_prefill(family: Family) -> None:
    """A video takes more than three chunks, beside other requests."""
    chunks = {"max_num_batched_tokens": family.chunk, "max_num_seqs": 4, "enable_prefix_caching": False}
    several = [one for name, one in family.requests().items() if "image" not in name]
    with engine.running(family.checkpoint, **family.settings(), **chunks) as chunked:
        for request, answer in zip(several, chunked.answer(*several), strict=True):
            family.check(request, answer)
