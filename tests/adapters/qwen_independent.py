"""What a Qwen or one of its kin should answer to a pruned prompt, computed another way.

Every row is computed alone: attention in float64 loops, the oracle prunes each video, the kept embeddings are
concatenated, and the unpatched language model sees them with positions counted by hand, an explicit causal mask and no
cache.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import reference
from tests.adapters.tiny_qwen import KINDS, MERGE, Clip, Kind, Prompt

DEFAULTS = {"retention_ratio": 0.27, "tau": 0.84}


def window_places(grid: tuple[int, int, int], window: int) -> list[int]:
    """For each token in the tower's order, window by window, its place in row-major order."""
    frames, rows, columns = grid[0], grid[1] // MERGE, grid[2] // MERGE
    return [
        (frame * rows + row) * columns + column
        for frame in range(frames)
        for top in range(0, rows, window)
        for left in range(0, columns, window)
        for row in range(top, min(top + window, rows))
        for column in range(left, min(left + window, columns))
    ]


def queries_and_keys(model: Any, clip: Clip) -> tuple[Tensor, Tensor]:
    """Those of the tower's last block, `[F, P, H, d]`, after its rotary embedding, by transformers' own functions."""
    attention = model.model.visual.blocks[-1].attn
    seen: list[Any] = []
    hook = attention.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    video_features(model, clip)
    hook.remove()
    args, kwargs = seen[0]
    hidden = args[0] if args else kwargs["hidden_states"]
    if hasattr(attention, "qkv"):
        queries, keys, _ = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1).unbind(1)
    else:
        heads = (len(hidden), attention.num_heads, -1)
        queries, keys = (one(hidden).reshape(heads) for one in (attention.q, attention.k))
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    queries, keys = rotate(queries, keys, *kwargs["position_embeddings"])
    return queries.unflatten(0, (clip.grid[0], -1)), keys.unflatten(0, (clip.grid[0], -1))


def mean_query(queries: Tensor, keys: Tensor, grid: tuple[int, int, int], window: int | None) -> Tensor:
    """The published attention `[F, N]`, token by token and head by head in float64."""
    frames, patches, heads, dim = queries.shape
    n = patches // MERGE**2
    attention = torch.zeros(frames * n, dtype=torch.float64)
    places = list(range(frames * n)) if window is None else window_places(grid, window)
    for frame in range(frames):
        for head in range(heads):
            query = queries[frame, :, head].double().mean(0)
            scores = torch.zeros(n, dtype=torch.float64)
            for token in range(n):
                key = keys[frame, token * MERGE**2 : (token + 1) * MERGE**2, head].double().mean(0)
                scores[token] = (query * key).sum() / dim**0.5
            for token, weight in enumerate(scores.softmax(0)):
                attention[places[frame * n + token]] += weight / heads
    return attention.view(frames, n)


def video_features(model: Any, clip: Clip) -> tuple[Tensor, list[Tensor]]:
    """Tokens `[F * N, D]` of a video alone, and what DeepStack adds to the first layers, `[F * N, D]` each."""
    patches = clip.patches.to(model.dtype)
    outputs = model.model.get_video_features(patches, torch.tensor([clip.grid]), return_dict=True)
    deepstack = getattr(outputs, "deepstack_features", None) or []
    return outputs.pooler_output[0], [layer if isinstance(layer, Tensor) else layer[0] for layer in deepstack]


def positions(kind: Kind, prompt: Prompt) -> Tensor:
    """Time, row and column of each id, `[3, S]`, counted by hand; 25 positions are a second, where that is known."""
    step = kind.seconds if prompt.frame_seconds is None else int(25 * prompt.frame_seconds)
    found: list[tuple[int, int, int]] = []
    videos, images = iter(prompt.videos), iter(prompt.images)
    at, place = 0, 0
    frames_left: list[Clip] = []
    while place < len(prompt.types):
        if prompt.types[place] == 0:
            found.append((at, at, at))
            at, place = at + 1, place + 1
            continue
        if prompt.types[place] == 1:
            clip, frames = next(images), 1
        else:
            if not frames_left:
                clip = next(videos)
                frames_left = [clip] * (clip.grid[0] if kind.timestamps else 1)
            clip = frames_left.pop()
            frames = 1 if kind.timestamps else clip.grid[0]
        rows, columns = clip.grid[1] // MERGE, clip.grid[2] // MERGE
        for frame in range(frames):
            found += [(at + frame * step, at + row, at + column) for row in range(rows) for column in range(columns)]
        place += frames * rows * columns
        # Where the model is told the time, what follows a video also follows its last frame in time.
        last = 0 if prompt.frame_seconds is None else (frames - 1) * step
        at += max(rows, columns, last + 1)
    return torch.tensor(found).T


@dataclass(frozen=True)
class Row:
    """A row as the language model should see it.

    Attributes:
        embeds: `[S, D]`.
        positions: int64 `[3, S]`.
        places: int64 `[S]`, among the row's ids.
        visual: bool `[S]`.
        deepstack: `[visual, D]` for each of the first layers.
    """

    embeds: Tensor
    positions: Tensor
    places: Tensor
    visual: Tensor
    deepstack: list[Tensor]


def embedded(name: str, model: Any, prompt: Prompt, hyperparameters: dict[str, Any]) -> Row:
    kind = KINDS[name]
    ids = torch.tensor(prompt.ids)
    embeds = model.get_input_embeddings()(ids)
    keep = torch.ones(len(ids), dtype=torch.bool)
    types = torch.tensor(prompt.types)
    video_places = (types == 2).nonzero()[:, 0]
    layers = len(getattr(model.model.visual, "deepstack_visual_indexes", ()))
    deepstack = [torch.zeros_like(embeds) for _ in range(layers)]
    for clip in prompt.videos:
        tokens, features = video_features(model, clip)
        own, video_places = video_places[: len(tokens)], video_places[len(tokens) :]
        attention = mean_query(*queries_and_keys(model, clip), clip.grid, kind.window)
        frames = tokens.view(clip.grid[0], -1, tokens.shape[1])
        pruned = reference.prune(frames, attention.float(), None, None, **(DEFAULTS | hyperparameters))
        keep[own] = False
        keep[own[pruned.indices]] = True
        embeds[own[pruned.indices]] = pruned.tokens.to(embeds.dtype)
        for layer, feature in zip(deepstack, features, strict=True):
            layer[own] = feature
    image_places = (types == 1).nonzero()[:, 0]
    for image in prompt.images:
        outputs = model.model.get_image_features(image.patches, torch.tensor([image.grid]), return_dict=True)
        tokens = outputs.pooler_output[0]
        own, image_places = image_places[: len(tokens)], image_places[len(tokens) :]
        embeds[own] = tokens
        for layer, feature in zip(deepstack, getattr(outputs, "deepstack_features", None) or [], strict=True):
            layer[own] = feature if isinstance(feature, Tensor) else feature[0]
    visual = (types > 0)[keep]
    return Row(
        embeds[keep],
        positions(kind, prompt)[:, keep],
        keep.nonzero()[:, 0],
        visual,
        [layer[keep][visual] for layer in deepstack],
    )


@torch.no_grad()
def decoded(model: Any, row: Row) -> Tensor:
    """Logits `[S, V]`."""
    length = len(row.embeds)
    mask = torch.full((length, length), torch.finfo(row.embeds.dtype).min, dtype=row.embeds.dtype).triu(1)
    deepstack = (
        {"visual_pos_masks": row.visual[None], "deepstack_visual_embeds": row.deepstack} if row.deepstack else {}
    )
    hidden = model.model.language_model(
        inputs_embeds=row.embeds[None],
        attention_mask=mask[None, None],
        position_ids=row.positions[:, None],
        use_cache=False,
        **deepstack,
    ).last_hidden_state
    return model.lm_head(hidden)[0]


def logits(name: str, model: Any, prompt: Prompt, hyperparameters: dict[str, Any]) -> Tensor:
    """Of every kept token, `[S, V]`."""
    return decoded(model, embedded(name, model, prompt, hyperparameters))


def generated(
    name: str, model: Any, prompt: Prompt, hyperparameters: dict[str, Any], count: int
) -> tuple[list[int], Tensor]:
    """Greedy continuation, and the logits `[count, V]` it was chosen from."""
    row = embedded(name, model, prompt, hyperparameters)
    ids: list[int] = []
    chosen = []
    for _ in range(count):
        chosen.append(decoded(model, row)[-1])
        token = chosen[-1].argmax()
        ids.append(int(token))
        row = extended(model, row, token)
    return ids, torch.stack(chosen)


def extended(model: Any, row: Row, token: Tensor) -> Row:
    """The row with a generated token at its end."""
    return Row(
        torch.cat([row.embeds, model.get_input_embeddings()(token)[None]]),
        torch.cat([row.positions, row.positions[:, -1:] + 1], dim=1),
        row.places,
        torch.cat([row.visual, torch.tensor([False])]),
        row.deepstack,
    )
