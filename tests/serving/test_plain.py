"""What the plug-in for vLLM computes without vLLM: digits, positions, settings."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastvid_kernels import PruneConfig
from fastvid_kernels.vllm.digits import BASE, DIGITS, from_digits, to_digits
from fastvid_kernels.vllm.placement import (
    Item,
    between_texts,
    delta,
    in_grid,
    place,
    prompt_positions,
    with_positions,
)
from fastvid_kernels.vllm.settings import Serving, is_supported
from tests.adapters import qwen_independent, tiny_qwen

VIDEO, WORD = 9, 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_digits_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    numbers = torch.tensor([[0, 1, 255], [256, 257, 65535], [65536, 2**23 + 1, BASE**DIGITS - 1]])
    digits = to_digits(numbers, dtype)
    assert digits.dtype == dtype
    assert torch.equal(from_digits(torch.cat([torch.rand(3, 2).to(dtype), digits], dim=1)[:, 2:]), numbers)


@given(st.lists(st.integers(0, BASE**DIGITS - 1), min_size=1, max_size=8))
def test_any_number_comes_back(numbers: list[int]) -> None:
    assert from_digits(to_digits(torch.tensor([numbers]), torch.bfloat16)).tolist() == [numbers]


@pytest.mark.parametrize("number", [-1, BASE**DIGITS])
def test_a_number_that_has_no_digits(number: int) -> None:
    with pytest.raises(ValueError, match=f"numbers must be from 0 to 16777215, got {number}"):
        to_digits(torch.tensor([[number]]), torch.float32)


def test_a_grid_counts_frames_rows_and_columns() -> None:
    expected = [(int(2.5 * frame), row, column) for frame in range(3) for row in range(2) for column in range(4)]
    assert in_grid(3, 2, 4, per_frame=2.5).T.tolist() == [list(one) for one in expected]


class Prompt:
    """Text and videos: a video of F frames of N tokens, some of which are kept, takes F * N + 1 positions.

    A part is a number of words, or a video: relative positions of its entries, how many positions it takes, and how
    many words it begins with, if any.
    """

    def __init__(self, *parts: Any) -> None:
        self.ids: list[int] = []
        self.items: list[Item] = []
        self.expected: list[int] = []
        self.embeddings: list[Tensor] = []
        at = 0
        for part in parts:
            if isinstance(part, int):
                self.ids += [WORD] * part
                self.expected += range(at, at + part)
                at += part
                continue
            kept, span, *lead = part
            self.items.append(Item(len(self.ids), len(kept), span))
            self.ids += [WORD] * sum(lead) + [VIDEO] * (len(kept) - sum(lead))
            self.expected += [at + one for one in kept]
            rows = torch.full((len(kept), 4), float(len(self.items))).bfloat16()
            self.embeddings.append(with_positions(rows, torch.tensor(kept).expand(3, -1), sum(lead)))
            at += span
        self.end = at


PROMPTS = {
    "video between words": Prompt(4, ([0, 3, 300, 699, 700], 701), 6),
    "video first": Prompt(([2, 5, 6], 7), 3),
    "two videos": Prompt(2, ([1, 4, 6], 7), 3, ([0, 1, 800], 801), 2),
    "adjacent videos": Prompt(2, ([1, 4, 6], 7), ([0, 400], 401), 2),
    "video last": Prompt(3, ([1, 2, 6], 7)),
    "videos that begin with words": Prompt(2, ([0, 1, 4, 6], 7, 2), ([0, 3, 6], 7, 1), 3),
}


def test_frames_between_words_are_placed_as_by_hand() -> None:
    """All tokens of the tenth and last frame are dropped."""
    clip = tiny_qwen.film(1, (10, 4, 6))
    prompt = tiny_qwen.prompt("qwen3", [5, 6, 7], clip)
    types = torch.tensor(prompt.types)
    keep = torch.rand(len(types), generator=torch.Generator().manual_seed(0)) < 0.4
    video = (types == 2).nonzero()[:, 0]
    keep[types == 0] = True
    keep[video[-clip.tokens_per_frame :]] = False
    expected = qwen_independent.positions(tiny_qwen.KINDS["qwen3"], prompt)[:, keep][:, 3:] - 3
    # Around frames are three ids, two words for a time and the start mark, and the end mark of the frame before.
    found = between_texts([3, *[4] * 9, 1], in_grid(1, 2, 3), keep[video].nonzero()[:, 0])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", PROMPTS)
def test_text_is_placed_before_a_video_is_seen(name: str) -> None:
    prompt = PROMPTS[name]
    positions, behind = prompt_positions(len(prompt.ids), prompt.items)
    words = torch.ones(len(prompt.ids), dtype=torch.bool)
    for item in prompt.items:
        words[item.offset : item.offset + item.length] = False
    assert torch.equal(positions[:, words], torch.tensor(prompt.expected)[words].expand(3, -1))
    assert len(prompt.ids) + behind == prompt.end


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_kept_tokens_are_placed_however_a_prompt_is_cut(name: str, chunk: int) -> None:
    """Placed twice, since an interrupted request starts again; in chunks that may hold part of a video, as in vLLM."""
    prompt = PROMPTS[name]
    positions, _ = prompt_positions(len(prompt.ids), prompt.items)
    for _ in range(2):
        for computed in range(0, len(prompt.ids), chunk):
            parts = []
            for item, embedding in zip(prompt.items, prompt.embeddings, strict=True):
                first, last = max(0, computed - item.offset), min(item.length, computed + chunk - item.offset)
                if first < last:
                    parts.append(embedding[first:last])
            if not parts:
                continue
            rows, positions = place(prompt.ids, parts, positions, computed, {VIDEO}, 4)
            assert all(row.shape[1] == 4 for row in rows)
    assert torch.equal(positions, torch.tensor(prompt.expected).expand(3, -1))
    assert delta(positions) == int(positions[0, -1]) + 1 - len(prompt.ids)


def test_the_rate_is_read_as_a_decimal() -> None:
    serving = Serving.asked(0.9, {"other": 1, "fastvid": {"tau": 0.8, "siglip": "here"}}, PruneConfig(min_segments=5))
    assert serving.config == PruneConfig(retention_ratio=0.1, tau=0.8, min_segments=5)
    assert serving.kept_per_frame(100) == 10
    assert serving.siglip == "here"
    assert Serving.from_plain(serving.plain()) == serving


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ([], TypeError, "must be an object"),
        ({"retention_ratio": 0.1}, ValueError, "retention_ratio must be left out"),
        ({"taus": 1}, TypeError, "must hold only .*got taus"),
        ({"siglip": 1}, TypeError, "siglip must be a string, got 1"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, eager, triton, got 'cuda'"),
        ({"min_segments": 0}, ValueError, "min_segments"),
    ],
)
def test_settings_that_are_refused(own: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Serving.asked(0.9, {"fastvid": own}, PruneConfig())


def test_a_rate_that_leaves_nothing() -> None:
    serving = Serving.asked(0.99, {}, PruneConfig())
    with pytest.raises(ValueError, match=r"--video-pruning-rate must keep at least one of a frame's 25 tokens.*K = 0"):
        serving.kept_per_frame(25)


def test_caches_do_not_mix_what_was_pruned_otherwise() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"tau": 0.8}, {"min_segments": 7}, {"dtm_ratio": 0.5}, {"anchor_interval": 3}, {"beta": 0.5},
        {"num_neighbors": 3}, {"siglip": "x"}, {"attention": "norm"},
    ]  # fmt: skip
    suffixes = {Serving.asked(0.9, {"fastvid": own}, PruneConfig()).suffix() for own in changes}
    suffixes.add(Serving.asked(0.8, {}, PruneConfig()).suffix())
    assert len(suffixes) == len(changes) + 1
    assert Serving.asked(0.9, {}, PruneConfig()).suffix() == Serving.asked(0.9, {}, PruneConfig()).suffix()


@pytest.mark.parametrize(
    ("version", "known"), [("0.32.0", True), ("0.33.1", True), ("0.31.2", False), ("0.34.0", False)]
)
def test_versions(version: str, known: bool) -> None:
    assert is_supported(version) == known


def test_the_entry_point_imports_neither_torch_nor_vllm() -> None:
    program = "import sys, importlib.util; import fastvid_kernels.vllm as v; print('vllm' in sys.modules, v.register)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("False <function register")
