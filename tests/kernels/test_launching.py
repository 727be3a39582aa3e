"""A second call of the same kind launches what the first one compiled, with exactly the arguments Triton would pass.

There is no GPU: stand-ins replace its driver and the compiled kernels (`benchmarks.compiled.no_device`). The tests
compare with what Triton's own code passes to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from triton.runtime.jit import JITFunction

from benchmarks.compiled.no_device import STREAM, no_device
from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.pipeline import Call


@pytest.fixture
def launched() -> Iterator[list[tuple[Any, ...]]]:
    """The launches that reach compiled kernels."""
    launches: list[tuple[Any, ...]] = []
    with no_device(lambda *launch: launches.append(launch)):
        yield launches


def prepared(*, features: bool = True, videos: int | None = None, shift: int = 0, **hyperparameters: Any) -> Call:
    frames, n, dim = 12, 40, 48
    attn = torch.zeros(frames * n + shift)[shift:].view(frames, n)
    given = torch.zeros(frames, 24) if features else None
    cu_frames = torch.tensor([0, 5, frames], dtype=torch.int32) if videos else None
    return pipeline.prepare(torch.zeros(frames, n, dim), attn, given, cu_frames, PruneConfig(**hyperparameters))


def plain(launch: tuple[Any, ...]) -> list[Any]:
    """A launch with tensors replaced by their addresses, and the metadata for profilers by its contents."""

    def seen(one: Any) -> Any:
        if hasattr(one, "data_ptr"):
            return one.data_ptr()
        return one.data if type(one).__name__ == "LazyDict" else one

    return [seen(one) for one in launch]


@pytest.mark.parametrize(
    "options",
    [{}, {"features": False}, {"videos": 2}, {"dtm_ratio": 0.0}, {"retention_ratio": 1.0}, {"beta": 1.0}],
    ids=str,
)
def test_the_second_call_passes_what_the_first_did(options: dict[str, Any], launched: list[tuple[Any, ...]]) -> None:
    call = prepared(**options)
    pipeline.launch(call)
    first = [plain(one) for one in launched]
    assert [one[0] for one in first] == [step.kernel.__name__ for step in call.recipe.steps]
    launched.clear()
    with mock.patch.object(JITFunction, "run", side_effect=AssertionError("looked at every argument again")):
        pipeline.launch(call)
    assert [plain(one) for one in launched] == first
    assert {one[4] for one in first} == {STREAM}
    assert not any(hasattr(one, "data_ptr") for launch in launched for one in launch), "the driver is asked about these"


def test_another_call_passes_its_own_addresses(launched: list[tuple[Any, ...]]) -> None:
    calls = [prepared(), prepared()]
    assert calls[0].recipe is calls[1].recipe
    for call in calls:
        pipeline.launch(call)
    known, ours = ([plain(one) for one in launched[part]] for part in (slice(0, 8), slice(8, 16)))
    assert ours != known
    launched.clear()
    calls[1].recipe.compiled.clear()
    pipeline.launch(calls[1])
    assert [plain(one) for one in launched] == ours


def test_what_is_laid_otherwise_is_compiled_anew(launched: list[tuple[Any, ...]]) -> None:
    recipe = prepared().recipe
    for number, call in enumerate((prepared(), prepared(shift=1), prepared(), prepared(shift=4)), start=1):
        assert call.recipe is recipe
        pipeline.launch(call)
        assert len(recipe.compiled) == min(number, 2), "four floats on is aligned again"


def test_more_threads_than_amd_takes_are_refused() -> None:
    """A million frames of four tokens: `emit` would start 70 blocks of 256 threads for each."""

    def prepare(frames: int) -> Call:
        tokens, attn = torch.empty(frames, 4, 3584, device="meta"), torch.empty(frames, 4, device="meta")
        return pipeline.prepare(tokens, attn, None, None, PruneConfig(retention_ratio=0.5))

    prepare(1 << 20)
    with mock.patch.object(torch.version, "hip", "6.4"):
        prepare(1 << 17)
        with pytest.raises(ValueError, match=r"tokens must have fewer frames.* got 1048576 frames of 3584 channels"):
            prepare(1 << 20)


def test_nothing_is_kept_where_nothing_was_compiled() -> None:
    pipeline.recipe_for.cache_clear()
    call = prepared()
    with mock.patch.object(JITFunction, "run", return_value=None):
        pipeline.launch(call)
    assert call.recipe.compiled == {}
