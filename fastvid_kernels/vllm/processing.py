"""Base classes of the models' processors: names of cached videos, numbers of placeholders, and checks of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastvid_kernels.vllm.settings import Serving
from fastvid_kernels.vllm.startup import serving_of


class PrunedProcessor:
    """Mixin before a vLLM processor class; does nothing if the server does not prune by this method."""

    info: Any

    @property
    def serving(self) -> Serving | None:
        """How videos are pruned; None if this method is not in use."""
        return serving_of(self.info.ctx.model_config)

    def check_places(self, serving: Serving, prompt: Any) -> None:
        """Refuse a processed prompt, before it reaches the engine, if its tokens cannot be given positions.

        Raises:
            ValueError: they cannot.
        """

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request with vLLM's own processor, and check the result."""
        prompt = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        serving = self.serving
        if serving is not None:
            self.check_places(serving, prompt)
        return prompt

    def _get_mm_hashes(self, inputs: Any) -> Any:
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        serving = self.serving
        if serving is None or "video" not in hashes:
            return hashes
        return {**hashes, "video": [name + serving.suffix() for name in hashes["video"]]}


class PrunedQwenProcessor(PrunedProcessor):
    """Counts the kept tokens of a video; all its placeholders stand in its first frame."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        serving = self.serving
        if serving is None:
            return updates  # type: ignore[no-any-return]
        config = self.info.get_hf_config()

        def count(item: int) -> int:
            grid = out_mm_kwargs["video"][item]["video_grid_thw"].data
            return kept_of_grid(serving, grid, config.vision_config.spatial_merge_size)

        return [resized(one, count, config.video_token_id) if one.modality == "video" else one for one in updates]


def kept_of_grid(serving: Serving, grid: Any, merge_size: int) -> int:
    """Number of kept tokens of a video, from its grid: int64 `[3]`, frames, rows and columns of patches.

    Raises:
        ValueError: no token would be kept.
    """
    frames, rows, columns = grid.tolist()
    return int(frames * serving.kept_per_frame(rows * columns // merge_size**2))


def resized(update: Any, count: Callable[[int], int], token: int) -> Any:
    """Change the number of placeholders of a prompt update, and put all of them where the first one is.

    Args:
        update: a prompt update of vLLM whose replacement is a function.
        count: gives the number of placeholders of an item.
        token: the id of a placeholder.
    """
    original = update.replacement

    def replacement(item: int) -> Any:
        result = original(item)
        ids = list(getattr(result, "full", result))
        first = ids.index(token)
        ids = [*ids[:first], *[token] * count(item), *(one for one in ids[first:] if one != token)]
        return replace(result, full=ids) if hasattr(result, "full") else ids

    return replace(update, replacement=replacement)
