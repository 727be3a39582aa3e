"""A cache that knows what was pruned before it was filled."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from fastvid_kernels.adapters.cache import PrunedEntries, pruned_part, remember, set_counting_entries
from tests.adapters import tiny

ENTRIES, REMOVED = 5, 7


@pytest.fixture
def cache() -> Any:
    """Two rows of five entries that remain of twelve tokens; the first entry of row 0 is padding."""
    cache = tiny.transformers.DynamicCache()
    cache.update(torch.randn(2, 1, ENTRIES, 4), torch.randn(2, 1, ENTRIES, 4), 0)
    real = torch.ones(2, ENTRIES, dtype=torch.bool)
    real[0, 0] = False
    position = torch.tensor([[0, 1, 5, 10, 11], [0, 2, 3, 10, 11]])
    remember(cache, PrunedEntries(real, position, ENTRIES + REMOVED, padded=True))
    return cache


def test_it_is_as_long_as_what_it_stands_for(cache: Any) -> None:
    assert isinstance(cache, tiny.transformers.DynamicCache)
    assert cache.get_seq_length() == ENTRIES + REMOVED
    set_counting_entries(cache, True)
    assert cache.get_seq_length() == ENTRIES
    set_counting_entries(cache, False)
    append(cache, 3)
    assert cache.get_seq_length() == ENTRIES + REMOVED + 3


def append(cache: Any, count: int) -> None:
    """Append entries as the decoder does."""
    set_counting_entries(cache, True)
    cache.update(torch.randn(2, 1, count, 4), torch.randn(2, 1, count, 4), 0)
    set_counting_entries(cache, False)


def test_a_decoder_that_knows_of_no_pruning_is_refused(cache: Any) -> None:
    with pytest.raises(RuntimeError, match=r"the model no longer prunes.*before remove\(\)"):
        cache.update(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4), 0)
    assert cache.get_seq_length() == ENTRIES + REMOVED


def test_a_cache_that_knows_nothing() -> None:
    cache = tiny.transformers.DynamicCache()
    set_counting_entries(cache, True)
    assert pruned_part(cache) is None
    assert pruned_part(None) is None
    assert type(cache) is tiny.transformers.DynamicCache


@pytest.mark.parametrize(
    ("act", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ],
)
def test_rows_take_along_what_is_known_of_them(cache: Any, act: Any, rows: list[int]) -> None:
    before, keys = pruned_part(cache), cache.layers[0].keys
    act(cache)
    after = pruned_part(cache)
    assert torch.equal(cache.layers[0].keys, keys[rows])
    assert torch.equal(after.real, before.real[rows])
    assert torch.equal(after.position, before.position[rows])
    assert cache.get_seq_length() == ENTRIES + REMOVED


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_knows_it_too_and_goes_its_own_way(cache: Any, copied: Any) -> None:
    other = copied(cache)
    assert type(other) is type(cache)
    assert torch.equal(other.layers[0].keys, cache.layers[0].keys)
    other.crop(-1)
    assert (other.get_seq_length(), cache.get_seq_length()) == (ENTRIES + REMOVED - 1, ENTRIES + REMOVED)


def test_crop(cache: Any) -> None:
    keys = cache.layers[0].keys
    append(cache, 3)
    cache.crop(-3)
    assert torch.equal(cache.layers[0].keys, keys)
    cache.crop(-2)
    assert torch.equal(cache.layers[0].keys, keys[:, :, :-2])
    assert cache.get_seq_length() == 10
    assert pruned_part(cache).length == 10
    for count in (1, 2, 11):
        with pytest.raises(ValueError, match="crop must not remove a pruned video token"):
            cache.crop(-count)
    assert cache.get_seq_length() == 10, "nothing half-done"


def test_crop_to_nothing(cache: Any) -> None:
    """`crop(0)` leaves nothing or everything, depending on the version; the record of what was pruned must match."""
    cache.crop(0)
    left = cache.layers[0].keys.shape[2]
    assert (pruned_part(cache) is None) == (left == 0)
    assert cache.get_seq_length() == (ENTRIES + REMOVED if left else 0)


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("crop", lambda cache: cache.crop(-1)),
        ("reset", lambda cache: cache.reset()),
        ("reorder_cache", lambda cache: cache.reorder_cache(torch.tensor([1, 0]))),
        ("batch_select_indices", lambda cache: cache.batch_select_indices(torch.tensor([1]))),
        ("batch_repeat_interleave", lambda cache: cache.batch_repeat_interleave(2)),
    ],
)
def test_what_fails_leaves_what_is_known(cache: Any, monkeypatch: pytest.MonkeyPatch, name: str, act: Any) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    before = pruned_part(cache)
    monkeypatch.setattr(tiny.transformers.DynamicCache, name, fail)
    with pytest.raises(ZeroDivisionError):
        act(cache)
    assert pruned_part(cache) is before
    assert cache.get_seq_length() == ENTRIES + REMOVED


def test_reset(cache: Any) -> None:
    """A reset cache counts like a plain one: not from 0 again in every version of transformers."""
    plain = tiny.transformers.DynamicCache()
    plain.update(torch.randn(2, 1, ENTRIES, 4), torch.randn(2, 1, ENTRIES, 4), 0)
    for one in (cache, plain):
        one.reset()
    assert pruned_part(cache) is None
    assert cache.get_seq_length() == plain.get_seq_length()
