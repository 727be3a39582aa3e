"""A key-value cache that records which tokens were pruned before it was filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrunedEntries:
    """Which tokens the first P entries of a cache hold, and how many tokens were seen before pruning.

    Attributes:
        real: bool `[B, P]`, True where an entry holds a token, False where it is padding.
        position: int64 `[B, S]`, index in the unpruned sequence of the token in each of the last S of these entries.
        length: number of tokens that these entries represent, pruned tokens included.
        padded: False only if no entry is padding; stored so that `real` need not be read from the device.
    """

    real: Tensor
    position: Tensor
    length: int
    padded: bool

    @property
    def entries(self) -> int:
        """P, the number of entries."""
        return self.real.shape[1]

    @property
    def removed(self) -> int:
        """How many fewer entries the cache has than tokens it represents."""
        return self.length - self.entries

    def without_last(self, count: int) -> PrunedEntries:
        """A copy without the last `count` tokens, none of which may be pruned.

        Raises:
            ValueError: one of these tokens was pruned, or `count` exceeds S.
        """
        left = self.position.shape[1] - count
        expected = torch.arange(self.length - count, self.length, device=self.position.device)
        if left < 0 or not bool((self.position[:, left:] == expected).all()):
            raise ValueError(
                "crop must not remove a pruned video token from the cache, got a crop of the last "
                f"{count} of {self.length} tokens: start from an empty cache instead"
            )
        return PrunedEntries(self.real[:, :-count], self.position[:, :left], self.length - count, self.padded)

    def of_rows(self, select: Callable[[Tensor], Tensor]) -> PrunedEntries:
        """A copy for the batch rows that `select` takes."""
        return replace(self, real=select(self.real), position=select(self.position))


_CLASSES: dict[type, type] = {}


class PrunedCache:
    """Mixin that is added to the class of a cache once the cache holds pruned tokens.

    `get_seq_length` counts pruned tokens too, so that callers who count in tokens (the rest of a prompt, the next
    position) stay right. While the decoder runs, it counts only the entries that the cache holds.
    """

    pruned: PrunedEntries | None
    counts_entries: bool = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is created at run time, so pickle cannot find it by name.
        return _restore, (type(self).__mro__[2], self.__dict__)

    def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
        """Number of tokens seen, pruned ones included; while the decoder runs, number of entries."""
        entries = super().get_seq_length(*args, **kwargs)  # type: ignore[misc]
        return entries if self.pruned is None or self.counts_entries else entries + self.pruned.removed

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Add new keys and values.

        Raises:
            RuntimeError: the cache holds pruned tokens, but the decoder is no longer patched.
        """
        if self.pruned is not None and not self.counts_entries:
            raise RuntimeError(
                "past_key_values holds a pruned video, but the model no longer prunes: use this cache before remove(), "
                "or start from an empty cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def crop(self, length: int) -> None:
        """Remove the last `-length` tokens, or keep the first `length` if it is positive, as in older versions.

        Raises:
            ValueError: a pruned token would be removed.
        """
        left_over = self.pruned
        if left_over is not None:
            seen = int(self.get_seq_length())
            left = seen + length if length <= 0 else min(seen, length)
            if left < left_over.length:
                left_over = left_over.without_last(left_over.length - left)
            if length > 0:
                length = left - left_over.removed
        # Before transformers 4.54, `DynamicCache.crop` calls `get_seq_length`, which must count entries here.
        self.counts_entries = True
        try:
            super().crop(length)  # type: ignore[misc]
            # `crop(0)` empties the cache before transformers 5, and changes nothing since.
            self.pruned = None if left_over is None or int(self.get_seq_length()) == 0 else left_over
        finally:
            self.counts_entries = False

    def reset(self) -> None:
        """Empty the cache."""
        super().reset()  # type: ignore[misc]
        self.pruned = None

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        """Reorder the batch rows, as beam search does."""
        result = super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._take(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))
        return result

    def batch_select_indices(self, indices: Tensor) -> Any:
        """Keep only the batch rows `indices`."""
        result = super().batch_select_indices(indices)  # type: ignore[misc]
        self._take(lambda rows: rows[indices.to(rows.device)])
        return result

    def batch_repeat_interleave(self, repeats: int) -> Any:
        """Repeat every batch row `repeats` times."""
        result = super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._take(lambda rows: rows.repeat_interleave(repeats, dim=0))
        return result

    def _take(self, select: Callable[[Tensor], Tensor]) -> None:
        if self.pruned is not None:
            self.pruned = self.pruned.of_rows(select)


def pruned_part(cache: Any) -> PrunedEntries | None:
    """The record of what was pruned from a cache; None if there is no cache or it has no record."""
    return cache.pruned if isinstance(cache, PrunedCache) else None


def as_cache(cache: Any) -> Any:
    """A cache object; converts the tuples that transformers before 4.48 returns if the caller gave no cache."""
    if not isinstance(cache, tuple):
        return cache
    from transformers import DynamicCache

    remembering = DynamicCache()
    for layer, (keys, values) in enumerate(cache):
        remembering.update(keys, values, layer)
    return remembering


def remember(cache: Any, pruned: PrunedEntries) -> None:
    """Record in a cache, in place, which tokens its entries hold."""
    if not isinstance(cache, PrunedCache):
        cache.__class__ = _pruned_class(type(cache))
    cache.pruned = pruned


def set_counting_entries(cache: Any, value: bool) -> None:
    """Make the length of a `PrunedCache` count its entries (True), or all tokens, pruned ones included (False)."""
    if isinstance(cache, PrunedCache):
        cache.counts_entries = value


def _pruned_class(base: Any) -> Any:
    if base not in _CLASSES:
        _CLASSES[base] = type(f"PrunedEntries{base.__name__}", (PrunedCache, base), {})
    return _CLASSES[base]


def _restore(base: Any, state: dict[str, Any]) -> Any:
    cache = base.__new__(base)
    cache.__dict__.update(state)
    cache.__class__ = _pruned_class(base)
    return cache
