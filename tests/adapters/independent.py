"""What a model should answer to a pruned prompt, computed another way.

Every row is computed alone: the oracle prunes each video, the kept embeddings are concatenated, and the unpatched
language model sees them with their original positions and an explicit causal mask, without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import reference
from tests.adapters import tiny


@dataclass(frozen=True)
class Prompt:
    """Token ids of a row, and what its placeholders stand for, in order."""

    ids: list[int]
    videos: tuple[Tensor, ...] = ()
    images: Tensor | None = None


def attention_and_features(head: Any, patches: Tensor) -> tuple[Tensor, Tensor]:
    """[CLS] attention `[F, P]` and pooled features by transformers' own modules."""
    head = getattr(head, "vision_model", head)
    hidden = head.post_layernorm(patches)
    probe = head.head.probe.repeat(len(patches), 1, 1)
    _, weights = head.head.attention(probe, hidden, hidden, average_attn_weights=True)
    return weights[:, 0], head.head(hidden)


def pruned_video(model: Any, head: Any, video: Tensor, hyperparameters: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embeddings of a video's kept tokens and newline, and their places among its placeholders."""
    tower = model.model.vision_tower(video, output_hidden_states=True)
    patches = tower.hidden_states[-1]
    tokens = model.model.apply_pooling(model.model.multi_modal_projector(patches))
    attention, features = attention_and_features(head.to(patches.dtype), patches)
    grid = attention.float().view(len(patches), 1, tiny.GRID, tiny.GRID)
    attention = functional.interpolate(grid, size=(5, 5), mode="bilinear").flatten(1)
    pruned = reference.prune(tokens, attention, features, None, **hyperparameters)
    newline = model.model.image_newline[None]
    places = torch.cat([pruned.indices, torch.tensor([tokens.shape[0] * tokens.shape[1]])])
    return torch.cat([pruned.tokens.to(tokens.dtype), newline]), places


def embedded(model: Any, head: Any, prompt: Prompt, hyperparameters: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The row as the language model should see it: embeddings `[S, D]`, and original positions `[S]`."""
    pruned = [pruned_video(model, head, video, hyperparameters) for video in prompt.videos]
    lengths = [len(tiny.placeholders(len(video))) for video in prompt.videos]
    return with_videos(model, prompt, pruned, lengths)


def with_videos(
    model: Any, prompt: Prompt, pruned: list[tuple[Tensor, Tensor]], lengths: list[int]
) -> tuple[Tensor, Tensor]:
    """Embeddings and positions of a row, given embeddings and places of each video, and its number of placeholders."""
    ids = torch.tensor(prompt.ids)
    embeds = model.get_input_embeddings()(ids)
    keep = torch.ones(len(ids), dtype=torch.bool)
    first = 0
    for (kept, places), length in zip(pruned, lengths, strict=True):
        first += prompt.ids[first:].index(tiny.VIDEO)
        keep[first : first + length] = False
        keep[first + places] = True
        embeds[first + places] = kept
        first += length
    if prompt.images is not None:
        sizes = torch.full((len(prompt.images), 2), 40)
        patches = prompt.images[:, None].expand(-1, 2, -1, -1, -1)
        outputs = model.model.get_image_features(patches, sizes, return_dict=True)
        embeds[ids == tiny.IMAGE] = torch.cat(list(outputs.pooler_output))
    return embeds[keep], keep.nonzero().squeeze(1)


def logits(model: Any, head: Any, prompt: Prompt, hyperparameters: dict[str, Any]) -> Tensor:
    """Logits of every kept token `[S, V]`."""
    return decoded(model, *embedded(model, head, prompt, hyperparameters))


@torch.no_grad()
def decoded(model: Any, embeds: Tensor, positions: Tensor) -> Tensor:
    """Logits `[S, V]` of embeddings `[S, D]` at their positions `[S]`."""
    length = len(positions)
    mask = torch.full((length, length), torch.finfo(embeds.dtype).min, dtype=embeds.dtype).triu(1)
    hidden = model.model.language_model(
        inputs_embeds=embeds[None], attention_mask=mask[None, None], position_ids=positions[None], use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden)[0]


def generated(
    model: Any, head: Any, prompt: Prompt, hyperparameters: dict[str, Any], count: int
) -> tuple[list[int], Tensor]:
    """Greedy continuation, and the logits `[count, V]` it was chosen from."""
    return continued(model, *embedded(model, head, prompt, hyperparameters), count)


def continued(model: Any, embeds: Tensor, positions: Tensor, count: int) -> tuple[list[int], Tensor]:
    """Greedy continuation of embeddings `[S, D]` at positions `[S]`, and the logits `[count, V]` it was chosen from."""
    ids: list[int] = []
    chosen = []
    for _ in range(count):
        chosen.append(decoded(model, embeds, positions)[-1])
        token = chosen[-1].argmax()
        ids.append(int(token))
        embeds = torch.cat([embeds, model.get_input_embeddings()(token)[None]])
        positions = torch.cat([positions, positions[-1:] + 1])
    return ids, torch.stack(chosen)
