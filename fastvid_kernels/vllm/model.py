"""What the models share: where vLLM asks them for positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastvid_kernels.adapters.pruner import Video
from fastvid_kernels.adapters.qwen_vl import DEFAULT_ATTENTION
from fastvid_kernels.adapters.tower import Grid
from fastvid_kernels.api import Pruned
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, TOWER_ATTENTION
from fastvid_kernels.vllm.placement import Item, delta, place, prompt_positions
from fastvid_kernels.vllm.pruning import ServedPruner
from fastvid_kernels.vllm.settings import Serving
from fastvid_kernels.vllm.startup import serving_of
from fastvid_kernels.vllm.towers import ServedTowerAttention


class PrunedModel:
    """Stands before a model of vLLM; does nothing where the method is another."""

    serving: Serving | None
    pruner: ServedPruner
    embedding_width: int
    placeholder_ids: frozenset[int]

    def prepare_pruning(self, vllm_config: Any, embedding_width: int, placeholder_ids: Sequence[int]) -> bool:
        """Read how videos are pruned, and say whether they are.

        Args:
            vllm_config: of the server.
            embedding_width: channels of an embedding as the language model gets it.
            placeholder_ids: those of images and videos.
        """
        self.serving = serving_of(vllm_config.model_config)
        self.embedding_width = embedding_width
        self.placeholder_ids = frozenset(placeholder_ids)
        if self.serving is not None:
            self.pruner = ServedPruner(self.serving)
        return self.serving is not None

    def items(self, features: Sequence[Any]) -> list[Item]:
        """What stands in a prompt, in order of offsets.

        Args:
            features: vLLM's, in that order. Their data may lack what a cache made unnecessary.
        """
        raise NotImplementedError

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """All positions of a prompt but those inside its videos."""
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
        """The positions inside the videos of the part of a prompt that is computed next."""
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


class PrunedQwen(PrunedModel):
    """What the Qwen models share: a tower that is seen at work, grids, and videos whose positions are theirs."""

    visual: Any

    def prepare_tower(self) -> None:
        """Put the hooks in place that score the tokens, if the tower does."""
        assert self.serving is not None
        name = self.serving.attention or DEFAULT_ATTENTION
        self.of_tokens = ATTENTION_SUBSTITUTES.get(name)
        self.of_tower: ServedTowerAttention | None = None
        if self.of_tokens is None:
            from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

            attention = self.visual.blocks[-1].attn
            self.of_tower = ServedTowerAttention(
                attention,
                attention.num_attention_heads_per_partition,
                TOWER_ATTENTION[name],
                self.visual.spatial_merge_size**2,
                **(
                    {"gather": lambda scores: tensor_model_parallel_all_gather(scores[None].contiguous(), dim=0)}
                    if get_tensor_model_parallel_world_size() > 1
                    else {}
                ),
            )
            self.of_tower.attach()

    def in_rows(self, scores: Tensor, grid: Grid) -> Tensor:
        """Scores `[F, N]` as the tower has the tokens, row by row."""
        return scores

    def pruned_videos(self, run: Any, video_input: Any, channels: int) -> list[tuple[Tensor, Pruned]]:
        """Run the tower, and prune.

        Args:
            run: from the input to the videos' embeddings, `[F * N, C]` each.
            video_input: with `video_grid_thw`.
            channels: the first of C, which are the tokens.

        Returns:
            For each video its embeddings, and what is left of its tokens.
        """
        grids: list[Grid] = [
            (frames, rows, columns) for frames, rows, columns in video_input["video_grid_thw"].tolist()
        ]
        if self.of_tower is None:
            videos, scores = run(video_input), None
        else:
            videos, scores = self.of_tower.of(run, grids, video_input)
        pruned = []
        for number, (embeddings, grid) in enumerate(zip(videos, grids, strict=True)):
            tokens = embeddings[:, :channels].contiguous().unflatten(0, (grid[0], -1))
            if scores is None:
                assert self.of_tokens is not None
                attention = self.of_tokens(tokens)
            else:
                attention = self.in_rows(scores[number], grid)
            pruned.append((embeddings, self.pruner(Video(tokens, attention))))
        return pruned


def image_item(feature: Any, rows: Tensor) -> Item:
    """An image that stands where vLLM has it, its positions as they are."""
    return Item(feature.mm_position.offset, feature.mm_position.length, int(rows.max()) + 1, rows)


def grid_of(feature: Any, merge_size: int) -> Grid:
    """Frames, and rows and columns of tokens, of an image or a video."""
    frames, rows, columns = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
    return frames, rows // merge_size, columns // merge_size
