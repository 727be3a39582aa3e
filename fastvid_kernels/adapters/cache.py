"""A key-value cache that knows what was pruned before it was filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrunedEntries:
    """What a cache's first entries stand for.

    Attributes:
        real: bool `[B, P]`, which of the first P entries hold a token; the others are padding.
        position: int64 `[B, S]`, where the tokens of the last S of them stood before pruning, counted in tokens.
        length: tokens that these entries stand for, pruned ones included.
        padded: whether any of the entries is padding, known without a look at `real`.
    """

    real: Tensor
    position: Tensor
    length: int
    padded: bool

    @property
    def entries(self) -> int:
        """P."""
        return self.real.shape[1]

    @property
    def removed(self) -> int:
        """How many entries the cache lacks."""
        return self.length - self.entries

    def without_last(self, count: int) -> PrunedEntries:
        """The same without the last `count` tokens, none of which may have been pruned.

        Raises:
            ValueError: some token among them was pruned, or would have to be.
        """
        left = self.position.shape[1] - count
        expected = torch.arange(self.length - count, self.length, device=self.position.device)
        if left < 0 or not bool((self.position[:, left:] == expected).all()):
            raise ValueError(
                "a cache can be cropped only to where no pruned video token is cut off, got a crop of the last "
                f"{count} of {self.length} tokens: start from an empty cache instead"
            )
        return PrunedEntries(self.real[:, :-count], self.position[:, :left], self.length - count, self.padded)

    def of_rows(self, select: Callable[[Tensor], Tensor]) -> PrunedEntries:
        """The same for other rows of the batch."""
        return replace(self, real=select(self.real), position=select(self.position))


_CLASSES: dict[type, type] = {}


class PrunedCache:
    """What a cache becomes that was filled with pruned tokens; mixed into the class that it had.

    To its owner it is as long as the tokens it stands for, so that what is counted in tokens (the rest of a prompt,
    the next position) stays right; while the decoder runs, it is as long as its entries.
    """

    pruned: PrunedEntries | None
    counts_entries: bool = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class has no name that a pickle could find.
        return _restore, (type(self).__mro__[2], self.__dict__)

    def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
        """Tokens seen, pruned ones included, or entries while the decoder runs."""
        entries = super().get_seq_length(*args, **kwargs)  # type: ignore[misc]
        return entries if self.pruned is None or self.counts_entries else entries + self.pruned.removed

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take in new keys and values.

        Raises:
            RuntimeError: they come from a decoder that does not know that tokens were pruned.
        """
        if self.pruned is not None and not self.counts_entries:
            raise RuntimeError(
                "past_key_values holds a pruned video, and the model prunes no longer: continue it before remove(), or "
                "start from an empty cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def crop(self, length: int) -> None:
        """Shorten the cache by `-length` tokens, or, as older versions have it, to `length` tokens.

        Raises:
            ValueError: that would cut off a pruned token.
        """
        left_over = self.pruned
        if left_over is not None:
            seen = int(self.get_seq_length())
            left = seen + length if length <= 0 else min(seen, length)
            if left < left_over.length:
                left_over = left_over.without_last(left_over.length - left)
            if length > 0:
                length = left - left_over.removed
        # Before 4.54, a dynamic cache asks itself for its length here.
        self.counts_entries = True
        try:
            super().crop(length)  # type: ignore[misc]
            # Before 5, `crop(0)` leaves nothing; since then, it leaves everything.
            self.pruned = None if left_over is None or int(self.get_seq_length()) == 0 else left_over
        finally:
            self.counts_entries = False

    def reset(self) -> None:
        """Empty the cache."""
        super().reset()  # type: ignore[misc]
        self.pruned = None

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        """Take other rows, as beam search does."""
        result = super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._take(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))
        return result

    def batch_select_indices(self, indices: Tensor) -> Any:
        """Take some rows."""
        result = super().batch_select_indices(indices)  # type: ignore[misc]
        self._take(lambda rows: rows[indices.to(rows.device)])
        return result

    def batch_repeat_interleave(self, repeats: int) -> Any:
        """Repeat every row."""
        result = super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._take(lambda rows: rows.repeat_interleave(repeats, dim=0))
        return result

    def _take(self, select: Callable[[Tensor], Tensor]) -> None:
        if self.pruned is not None:
            self.pruned = self.pruned.of_rows(select)


def pruned_part(cache: Any) -> PrunedEntries | None:
    """What of a cache was pruned; None for a cache that knows of nothing, or no cache."""
    return cache.pruned if isinstance(cache, PrunedCache) else None


def as_cache(cache: Any) -> Any:
    """A cache that can remember; before 4.48, transformers gives a caller who gave no cache tuples of tensors."""
    if not isinstance(cache, tuple):
        return cache
    from transformers import DynamicCache

    remembering = DynamicCache()
    for layer, (keys, values) in enumerate(cache):
        remembering.update(keys, values, layer)
    return remembering


def remember(cache: Any, pruned: PrunedEntries) -> None:
    """Make a cache know what its entries stand for, in place."""
    if not isinstance(cache, PrunedCache):
        cache.__class__ = _pruned_class(type(cache))
    cache.pruned = pruned


def set_counting_entries(cache: Any, value: bool) -> None:
    """Let a cache that knows of pruning be as long as its entries, or as long as what they stand for."""
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
