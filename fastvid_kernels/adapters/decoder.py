"""Hooks that make a decoder skip the dropped tokens among its input embeddings.

There are three hooks on the language model; nothing outside it changes. A dropped token is marked by an embedding whose
channels are all -inf (`mark_dropped`), so the choice travels with the embeddings from the vision tower to the decoder.

- Before the decoder: the kept embeddings, their mask and their positions are gathered; the rows of a batch are padded
  on the left. The decoder itself gets contiguous positions, because it takes gaps for borders of packed sequences.
- Before its rotary embedding: the contiguous positions are replaced by the original ones of the kept tokens.
- After the decoder: hidden states are scattered to the original places of their tokens, with zeros elsewhere, so that
  logits, labels and `logits_to_keep` keep their meaning. The cache records which tokens it holds. If a row ends with a
  dropped token, that place gets the state of the last kept token, because the next token is predicted from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastvid_kernels.adapters.cache import PrunedEntries, as_cache, pruned_part, remember, set_counting_entries
from fastvid_kernels.adapters.versions import cache_name, cache_of

# Outputs that cannot be had where tokens are dropped, and why.
_NOT_WHERE_PRUNED = {
    "output_router_logits": "the auxiliary loss would weigh the tokens that were dropped: leave it out of the loss",
}
# Layers that depend on the whole past: by attention, or through a recurrent state.
_WHOLE_PAST = ("full_attention", "linear_attention")


def mark_dropped(tokens: Tensor, kept: Tensor, indices: Tensor) -> Tensor:
    """Return all tokens of a video, with the dropped ones marked.

    Args:
        tokens: `[F, N, D]`, the video's tokens.
        kept: `[F * K, D]`, the kept tokens, as `prune` returns them.
        indices: int64 `[F * K]`, their flat indices.

    Returns:
        `[F, N, D]`: the kept tokens at their places, -inf everywhere else.
    """
    return torch.full_like(tokens, -math.inf).flatten(0, 1).index_copy_(0, indices, kept).view(tokens.shape)


def are_dropped(tokens: Tensor) -> Tensor:
    """Which tokens `[..., D]` are marked as dropped: bool `[...]`.

    Their largest channel is -inf. To compare every channel with -inf would write and read a bool for each.
    """
    return tokens.detach().amax(-1) == -math.inf


def has_sliding_window(config: Any) -> bool:
    """Whether some layer attends only to a window of the past; `layer_types` or else `sliding_window` tells."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind not in _WHOLE_PAST for kind in kinds)
    return getattr(config, "sliding_window", None) is not None


def check_language_model(language_model: nn.Module) -> None:
    """Raise unless a language model can skip tokens.

    Raises:
        ValueError: it has no rotary embedding of its own, or layers that attend only to a window of the past.
    """
    config: Any = language_model.config
    if not hasattr(language_model, "rotary_emb") or has_sliding_window(config):
        raise ValueError(
            "the language model must have one rotary embedding and no sliding-window layers, got "
            f"{type(language_model).__name__}"
        )


def masks_for_pruned_decoder(*, inputs_embeds: Tensor, **given: Any) -> Any:
    """Replace `create_masks_for_generate`: return the token mask unchanged wherever tokens may be missing."""
    if inputs_embeds.shape[1] > 1 or pruned_part(cache_of(given)) is not None:
        return given["attention_mask"]
    from transformers.masking_utils import create_masks_for_generate

    # This mask has the same shape at each step, as a compiled decoder needs.
    return create_masks_for_generate(inputs_embeds=inputs_embeds, **given)


@dataclass(frozen=True)
class _Gathered:
    """Which tokens of a call the decoder sees.

    Attributes:
        source: int64 `[B, S]`, indices of these tokens among the call's tokens; a row may begin with padding.
        real: bool `[B, S]`, False where `source` is padding.
        padded: whether any entry is padding.
        last: int64 `[B]`, index of each row's last token that is not masked, dropped or not.
        length: number of tokens of the call, dropped ones included.
    """

    source: Tensor
    real: Tensor
    padded: bool
    last: Tensor
    length: int


class PrunedDecoder:
    """The hooks of one language model, and the state they share during a call.

    Args:
        language_model: the language model.
        refused: arguments that must be false in calls in which tokens are dropped, and why.
    """

    def __init__(self, language_model: nn.Module, refused: Mapping[str, str] | None = None) -> None:
        self._refused = {**_NOT_WHERE_PRUNED, **(refused or {})}
        self._language_model = self._wrapper = language_model
        self._rotary_embedding: Any = language_model.rotary_emb
        self._is_recurrent = "linear_attention" in (getattr(language_model.config, "layer_types", None) or ())
        # Asked once, here: torch.compile on torch 2.11 cannot trace the import that asking takes.
        self._cache_name = cache_name()
        self._positions: Tensor | None = None
        self._gathered: _Gathered | None = None
        self._cache_will_hold: PrunedEntries | None = None

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks.

        Raises:
            RuntimeError: the language model was copied, with such hooks, from one that was patched.
        """
        for module in self._language_model.modules():
            hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            if any(isinstance(getattr(hook, "__self__", None), PrunedDecoder) for hook in hooks):
                raise RuntimeError(
                    f"{type(module).__name__} has the hooks of an earlier apply_fastvid, copied while the model was "
                    "patched: call model.fastvid_handle.remove() before a part of the model is copied, as PEFT's "
                    "modules_to_save does, and apply_fastvid afterwards"
                )
        return [
            self._language_model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._language_model.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            self._rotary_embedding.register_forward_pre_hook(self._with_own_positions, with_kwargs=True),
        ]

    def check_is_in_place(self, language_model: nn.Module) -> None:
        """Raise unless the hooks are on what is now the model's language model, or is in a wrapper around it.

        Raises:
            RuntimeError: they are not.
        """
        if language_model is not self._wrapper:
            # PEFT's `modules_to_save` keeps the module that it wraps, but runs a copy.
            runs_a_copy = type(language_model).__name__ == "ModulesToSaveWrapper"
            if not runs_a_copy and any(one is self._language_model for one in language_model.modules()):
                self._wrapper = language_model
        if language_model is not self._wrapper or self._language_model.rotary_emb is not self._rotary_embedding:
            raise RuntimeError(
                "the language model, or its rotary embedding, was replaced after apply_fastvid: call "
                "model.fastvid_handle.remove() and apply_fastvid again"
            )

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._forget_call()
        kwargs = kwargs | dict(zip(self._positional(), args, strict=False))
        mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
        # Reset what an interrupted call left, since an interrupt skips `_after`.
        set_counting_entries(cache, False)
        past = pruned_part(cache)
        gathered = _find_dropped(kwargs.get("inputs_embeds"), mask)
        if past is None and gathered is None:
            return None
        inputs = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        batch, length = inputs.shape[:2]
        seen = 0 if cache is None else cache.get_seq_length()
        _check_mask(mask, seen, length)
        mask = None if mask is None else mask.to(inputs.device, torch.bool)
        # From here on, the cache's length leaves out dropped tokens, which `seen` counts.
        set_counting_entries(cache, True)
        entries = 0 if cache is None else cache.get_seq_length()

        positions = kwargs.get("position_ids")
        if positions is None:
            positions = (torch.arange(length, device=inputs.device) + seen)[None]
        # Some families give several rows of positions; the last ones are for the rotary embedding (`_rows_like`).
        positions = positions.to(inputs.device)[..., -length:]
        positions = positions.expand(*positions.shape[:-2], batch, length)
        past_real = _past_real(past, mask, batch, entries, length)
        own_real = None if mask is None else mask[:, -length:]
        kept_length = length
        if gathered is not None:
            self._check_outputs(kwargs)
            source, real = gathered.source, gathered.real
            embeds = inputs[_row_of(source), source]
            kwargs["inputs_embeds"] = embeds.masked_fill(~real[..., None], 0)
            positions = positions.gather(-1, source.expand(*positions.shape[:-1], -1))
            _check_state(self._is_recurrent, entries, gathered)
            _gather_deepstack(kwargs, gathered)
            # Keep a mask of ones: FlashAttention needs it to tell which entries of a static cache are filled.
            own_real = real if gathered.padded or mask is not None else None
            self._gathered = gathered
            self._cache_will_hold = _extended(past, past_real, gathered, int(seen))
            kept_length = source.shape[1]
        kwargs["attention_mask"] = _joined(past_real, own_real, batch, entries, kept_length)
        kwargs["position_ids"] = (torch.arange(kept_length, device=inputs.device) + entries)[None]
        if kwargs.get("cache_position") is not None:
            kwargs["cache_position"] = kwargs["position_ids"][0]
        if "return_dict" in kwargs:
            # `_after` reads fields by name; a caller who asked for a tuple can still index the output.
            kwargs["return_dict"] = True
        self._positions = positions
        return (), kwargs

    def _with_own_positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._positions is None:
            return None
        if "position_ids" in kwargs:
            return args, kwargs | {"position_ids": _rows_like(kwargs["position_ids"], self._positions)}
        return (args[0], _rows_like(args[1], self._positions), *args[2:]), kwargs

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        gathered, will_hold = self._gathered, self._cache_will_hold
        cache = cache_of(kwargs)
        set_counting_entries(cache, False)
        self._forget_call()
        if gathered is None or will_hold is None or output is None:
            return None
        if cache is None:
            cache = as_cache(getattr(output, self._cache_name))
            setattr(output, self._cache_name, cache)
        if cache is not None:
            remember(cache, will_hold)
        hidden = output.last_hidden_state
        everywhere = hidden.new_zeros(hidden.shape[0], gathered.length, hidden.shape[2])
        hidden = hidden.masked_fill(~gathered.real.to(hidden.device)[..., None], 0)
        for place, states in ((gathered.source, hidden), (gathered.last[:, None], hidden[:, -1:])):
            everywhere.index_put_((_row_of(place).to(hidden.device), place.to(hidden.device)), states)
        output.last_hidden_state = everywhere
        return output

    def _check_outputs(self, kwargs: dict[str, Any]) -> None:
        for name, reason in self._refused.items():
            if kwargs.get(name):
                raise ValueError(f"{name} must be False where video tokens are pruned, got {kwargs[name]}: {reason}")

    def _positional(self) -> tuple[str, ...]:
        """Names of a language model's first parameters, in order."""
        return ("input_ids", "attention_mask", "position_ids", self._cache_name, "inputs_embeds")

    def _forget_call(self) -> None:
        self._positions = self._gathered = self._cache_will_hold = None


def _row_of(places: Tensor) -> Tensor:
    """The row of a batch that each of the places `[B, S]` is in, `[B, 1]`. Whole tokens are copied by row and place."""
    return torch.arange(len(places), device=places.device)[:, None]


def _rows_like(asked: Tensor, own: Tensor) -> Tensor:
    """`own` positions, `[B, S]` or `[rows, B, S]`, in as many rows as `asked` has, without a leading row for text."""
    if asked.dim() == own.dim():
        return own if own.dim() == 2 else own[-len(asked) :].expand(len(asked), -1, -1)
    return own.expand(len(asked), -1, -1)


def _gather_deepstack(kwargs: dict[str, Any], gathered: _Gathered) -> None:
    """Select the kept tokens' DeepStack features, which the first layers of a decoder add; changes `kwargs`."""
    is_visual, features = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
    if is_visual is None or features is None:
        return
    source, real = gathered.source.to(is_visual.device), gathered.real.to(is_visual.device)
    kept = torch.zeros_like(is_visual).scatter(1, source, real)[is_visual]
    kwargs["visual_pos_masks"] = is_visual.gather(1, source) & real
    kwargs["deepstack_visual_embeds"] = [feature[kept.to(feature.device)] for feature in features]


def _check_state(is_recurrent: bool, entries: Any, gathered: _Gathered) -> None:
    """Refuse padding after the first token, where it would change a recurrent state; before, it changes nothing."""
    if is_recurrent and gathered.padded and int(entries) > 0:
        raise ValueError(
            "each row of the batch must keep the same number of tokens, and at least one, once the cache holds tokens "
            "and the model has linear attention, whose state would be changed by padding: continue the rows one by "
            "one, or use larger chunks of the prompt"
        )


def _find_dropped(embeds: Tensor | None, mask: Any) -> _Gathered | None:
    """The kept tokens, or None if no token is marked as dropped. Waits for the device once, but not for one token."""
    if embeds is None or embeds.shape[1] == 1:
        return None
    dropped = are_dropped(embeds)
    present = torch.ones_like(dropped)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        present = mask[:, -embeds.shape[1] :].to(dropped.device, torch.bool)
    keep = present & ~dropped
    left = keep.sum(1)
    number_dropped, least, most = torch.stack([dropped.sum(), left.min(), left.max()]).tolist()
    if number_dropped == 0:
        return None
    most = max(most, 1)
    # A stable sort puts the kept tokens of a row at its end, in order; a row with fewer gets others before them.
    source = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, -most:]
    last = embeds.shape[1] - 1 - present.flip(1).to(torch.uint8).argmax(1)
    return _Gathered(source, keep.gather(1, source), least < most, last, embeds.shape[1])


def _check_mask(mask: Any, seen: Any, length: int) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        kind = f"{mask.dim()} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask must be [B, tokens] or None where video tokens are pruned, got {kind}")
    if isinstance(seen, int) and mask.shape[1] != seen + length:
        raise ValueError(
            f"attention_mask must cover the {seen} tokens seen before, pruned ones included, and the {length} of this "
            f"call, got {mask.shape[1]} columns"
        )


def _past_real(past: PrunedEntries | None, mask: Tensor | None, batch: int, entries: Any, length: int) -> Tensor | None:
    """Which of the cache's entries hold a token: bool `[B, entries]`, None if all do."""
    if past is None:
        return None if mask is None or mask.shape[1] == length else mask[:, :-length]
    if mask is not None:
        return torch.cat([past.real, mask[:, past.length : -length]], dim=1)
    if not past.padded:
        return None
    since = past.real.new_ones(batch, int(entries) - past.entries)
    return torch.cat([past.real, since], dim=1)


def _joined(past: Tensor | None, own: Tensor | None, batch: int, entries: Any, length: int) -> Tensor | None:
    """The mask of all entries, None if all hold a token."""
    if past is None and own is None:
        return None
    if past is None:
        assert own is not None
        past = own.new_ones(batch, int(entries))
    if own is None:
        own = past.new_ones(batch, length)
    return torch.cat([past, own], dim=1)


def _extended(past: PrunedEntries | None, past_real: Tensor | None, gathered: _Gathered, seen: int) -> PrunedEntries:
    """What a cache that represents `seen` tokens holds after the call."""
    source, real = gathered.source, gathered.real
    padded = gathered.padded or past_real is not None
    if past_real is None:
        past_real = real.new_ones(len(real), seen - (0 if past is None else past.removed))
    return PrunedEntries(torch.cat([past_real, real], dim=1), source + seen, seen + gathered.length, padded)
