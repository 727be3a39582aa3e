"""Base classes of the models: they give vLLM the positions of pruned videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather

from fastvid_kernels.adapters.pruner import Video
from fastvid_kernels.adapters.qwen_vl import DEFAULT_ATTENTION
from fastvid_kernels.adapters.tower import Grid, TowerAttention
from fastvid_kernels.api import Pruned
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, TOWER_ATTENTION, TowerScore
from fastvid_kernels.vllm.placement import (
    Item,
    between_texts,
    delta,
    in_grid,
    place,
    prompt_positions,
    with_positions,
)
from fastvid_kernels.vllm.pruning import ServedPruner
from fastvid_kernels.vllm.settings import Serving
from fastvid_kernels.vllm.startup import serving_of
from fastvid_kernels.vllm.towers import ServedBlockScorer


class PrunedModel:
    """Mixin before a vLLM model class; does nothing if the server does not prune by this method."""

    serving: Serving | None
    pruner: ServedPruner
    embedding_width: int
    placeholder_ids: frozenset[int]

    def prepare_pruning(self, vllm_config: Any, embedding_width: int, placeholder_ids: Sequence[int]) -> bool:
        """Read the pruning settings, and return whether videos are pruned.

        Args:
            vllm_config: the server's configuration.
            embedding_width: channels of an embedding as the language model gets it.
            placeholder_ids: token ids of the placeholders of images and videos.
        """
        self.serving = serving_of(vllm_config.model_config)
        self.embedding_width = embedding_width
        self.placeholder_ids = frozenset(placeholder_ids)
        if self.serving is not None:
            self.pruner = ServedPruner(self.serving)
        return self.serving is not None

    def items(self, features: Sequence[Any]) -> list[Item]:
        """The images and videos in a prompt, in order of their offsets.

        Args:
            features: vLLM's features, in the same order. Data that a cache made unnecessary may be missing.
        """
        raise NotImplementedError

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """All positions of a prompt except those inside its videos."""
        if self.serving is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc, no-any-return]
        features = sorted(mm_features, key=lambda one: one.mm_position.offset)
        return prompt_positions(len(input_tokens), self.items(features))

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Fill in the positions inside videos, for the part of a prompt that is computed next."""
        if self.serving is None:
            return super().recompute_mrope_positions(  # type: ignore[misc, no-any-return]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        if not len(multimodal_embeddings):
            return [], mrope_positions, delta(mrope_positions)
        ids = input_ids.tolist() if isinstance(input_ids, Tensor) else input_ids
        embeddings, positions = place(
            ids, multimodal_embeddings, mrope_positions, num_computed_tokens, self.placeholder_ids, self.embedding_width
        )
        return embeddings, positions, delta(positions)


class TextEmbedded(PrunedModel):
    """Base class of models with text between the frames of a video, which is embedded with the video.

    How many tokens of a frame are kept depends on the video, and with it where the text between frames stands. So a
    prompt has as many placeholders as there are text and kept tokens, and the model fills all of them.
    """

    language_model: Any

    def refuse_adapters_of_the_embedding(self) -> None:
        """Make vLLM refuse LoRA adapters that change the embedding.

        Where a video is embedded, vLLM does not know which adapter its request has.
        """
        others = dict(getattr(self.language_model, "embedding_modules", {}))
        others.pop("embed_tokens", None)
        self.language_model.embedding_modules = others

    def with_texts(self, kept: Pruned, texts: Sequence[Sequence[int]], grid: Tensor) -> Tensor:
        """A video as in the prompt: the text around its frames, its kept tokens, and their positions as channels.

        Args:
            kept: the kept tokens.
            texts: F + 1 lists of token ids: before the first frame, between frames, and after the last one.
            grid: int64 `[3, N]`, as `between_texts` takes it.
        """
        places, counts = places_of(kept, len(texts) - 1, grid.shape[1])
        is_kept = torch.tensor(
            [
                one
                for text, count in zip(texts, [*counts, 0], strict=True)
                for one in [False] * len(text) + [True] * count
            ]
        )
        embeddings = kept.tokens.new_empty(len(is_kept), self.embedding_width)
        is_kept = is_kept.to(embeddings.device)
        embeddings[is_kept] = kept.tokens
        words = torch.tensor([one for text in texts for one in text], device=embeddings.device)
        embeddings[~is_kept] = self.language_model.embed_input_ids(words).to(embeddings)
        positions = between_texts([len(text) for text in texts], grid, places)
        return with_positions(embeddings, positions.to(embeddings.device), lead=len(texts[0]))


class PrunedByGrid(PrunedModel):
    """Base class of Qwen and GLM models: hooks on the tower, and the pruning of videos given their grids."""

    visual: Any

    def prepare_tower(self) -> None:
        """Register the hooks that score the tokens, if the attention comes from the tower."""
        assert self.serving is not None
        name = self.serving.attention or DEFAULT_ATTENTION
        self.of_tokens = ATTENTION_SUBSTITUTES.get(name)
        self.of_tower: TowerAttention | None = None
        if self.of_tokens is None:
            self.of_tower = TowerAttention(self.visual, self.block_scorer(TOWER_ATTENTION[name]))
            self.of_tower.attach()

    def block_scorer(self, score: TowerScore) -> ServedBlockScorer:
        """The scorer for the tower's last block; here each rank has the queries, keys and values of some heads."""
        heads = self.visual.blocks[-1].attn.num_attention_heads_per_partition
        return ServedBlockScorer(heads, score, self.visual.spatial_merge_size**2, tensor_model_parallel_all_gather)

    def in_rows(self, scores: Tensor, grid: Grid) -> Tensor:
        """Scores `[F, N]` reordered from the tower's order of tokens to row by row; here these are the same."""
        return scores

    def pruned_videos(self, run: Any, video_input: Any, channels: int) -> list[tuple[Tensor, Pruned]]:
        """Run the tower, and prune the videos, one by one.

        So no video's tokens depend on those beside it, to the last bit. And many may come at once, since vLLM's budget
        counts kept tokens: together they would take more memory than it has set aside.

        Args:
            run: maps the input of a video to a sequence of one, its embeddings `[F * N, C]`.
            video_input: vLLM's input, with `video_grid_thw`.
            channels: how many of the C channels, from the first, are the tokens.

        Returns:
            For each video, its embeddings and its pruned tokens.
        """
        grids: list[Grid] = [
            (frames, rows, columns) for frames, rows, columns in video_input["video_grid_thw"].tolist()
        ]
        patches = video_input["pixel_values_videos"].split([math.prod(grid) for grid in grids])
        inputs = [
            {"type": video_input["type"], "pixel_values_videos": one, "video_grid_thw": row}
            for one, row in zip(patches, video_input["video_grid_thw"].split(1), strict=True)
        ]
        return [self._pruned_video(run, one, grid, channels) for one, grid in zip(inputs, grids, strict=True)]

    def _pruned_video(self, run: Any, video_input: Any, grid: Grid, channels: int) -> tuple[Tensor, Pruned]:
        if self.of_tower is None:
            (embeddings,) = run(video_input)
        else:
            (embeddings,), (scores,) = self.of_tower.of(run, [grid], video_input)
        tokens = embeddings[:, :channels].contiguous().unflatten(0, (grid[0], -1))
        if self.of_tower is None:
            assert self.of_tokens is not None
            attention = self.of_tokens(tokens)
        else:
            attention = self.in_rows(scores, grid)
        return embeddings, self.pruner(Video(tokens, attention))


class TextBetweenFrames(TextEmbedded, PrunedByGrid):
    """Base class of Qwen and GLM models with text between the frames of a video."""

    def items(self, features: Sequence[Any]) -> list[Item]:
        """See `PrunedModel`."""
        return [self._item(one) for one in features]

    def _item(self, feature: Any) -> Item:
        frames, rows, columns = grid_of(feature, self.visual.spatial_merge_size)
        if feature.modality != "video":
            return image_item(feature, in_grid(frames, rows, columns))
        assert self.serving is not None
        length = feature.mm_position.length
        words = length - frames * self.serving.kept_per_frame(rows * columns)
        return Item(feature.mm_position.offset, length, words + frames * max(rows, columns))


def places_of(kept: Pruned, frames: int, tokens_per_frame: int) -> tuple[Tensor, list[int]]:
    """The kept tokens' flat indices on the host, for which it waits, and how many each frame keeps."""
    places = kept.indices.cpu()
    return places, torch.bincount(places // tokens_per_frame, minlength=frames).tolist()


def image_item(feature: Any, rows: Tensor) -> Item:
    """An image, at vLLM's offset and with its positions unchanged."""
    return Item(feature.mm_position.offset, feature.mm_position.length, int(rows.max()) + 1, rows)


def grid_of(feature: Any, merge_size: int) -> Grid:
    """Number of frames, and of rows and columns of tokens in a frame, of an image or a video."""
    frames, rows, columns = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
    return frames, rows // merge_size, columns // merge_size
