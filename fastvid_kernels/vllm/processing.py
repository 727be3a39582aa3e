"""Base classes of the models' processors: names of cached videos, numbers of placeholders, and checks of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing import PromptUpdateDetails

from fastvid_kernels.vllm.settings import Serving
from fastvid_kernels.vllm.startup import rotary_positions, serving_of

logger = init_logger(__name__)

TEXTS = "fastvid_texts"
"""Name of an input of models with text between frames: of each video F + 1 lists of token ids, the text around its F
frames."""

# Of transformers' configurations, the attributes that hold the token ids of placeholders.
_PLACEHOLDERS = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")


class PrunedProcessor:
    """Mixin before a vLLM processor class; does nothing if the server does not prune by this method."""

    info: Any
    _warms_up = False

    @property
    def serving(self) -> Serving | None:
        """How videos are pruned; None if this method is not in use."""
        return serving_of(self.info.ctx.model_config)

    @property
    def placeholders(self) -> set[int]:
        """Token ids of the placeholders of images and videos."""
        config = self.info.get_hf_config()
        return {getattr(config, name) for name in _PLACEHOLDERS if hasattr(config, name)}

    def check_places(self, serving: Serving, prompt: Any) -> None:
        """Refuse a processed prompt, before it reaches the engine, if its tokens cannot be given positions.

        Raises:
            ValueError: they cannot.
        """

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request with vLLM's own processor, and check it.

        Raises:
            ValueError: the request has embeddings of a video, or its tokens cannot be given positions.
        """
        serving = self.serving
        # vLLM allows embeddings where a connector for caches is configured, whatever was checked when it started.
        given = inputs.mm_data_items.get("video")
        if serving is not None and isinstance(given, EmbeddingItems | DictEmbeddingItems):
            raise ValueError("a video must be given as frames where videos are pruned, got its embeddings")
        prompt = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        if serving is None:
            return prompt
        try:
            check_placeholders(self.placeholders, prompt)
            self.check_places(serving, prompt)
        except ValueError:
            # This process now takes the request's images and videos for cached in the engine, which never gets them:
            # the next request with one of them would fail.
            if inputs.cache is not None:
                for name in (one for several in prompt["mm_hashes"].values() for one in several):
                    inputs.cache.invalidate(name)
            raise
        return prompt

    def check_positions(self, prompt: Any, dropped: int) -> None:
        """Refuse a processed prompt that may reach beyond the rotary table, and warn of one beyond the model's own.

        For models whose positions count all tokens: vLLM itself limits the kept ones alone.

        Args:
            prompt: the prompt.
            dropped: how many of its tokens were dropped.

        Raises:
            ValueError: it may reach beyond the table.
        """
        model_config = self.info.ctx.model_config
        if dropped > positions_for_dropped(model_config):
            raise ValueError(
                f"the prompt's videos must leave room in the model's {rotary_positions(model_config)} positions for "
                f"--max-model-len, {model_config.max_model_len}, got {dropped} positions of dropped tokens: lower "
                "--max-model-len, or give shorter videos"
            )
        own = model_config.hf_config.get_text_config().max_position_embeddings
        if len(prompt["prompt_token_ids"]) + dropped > own and not self._warms_up:
            logger.warning_once(
                "A prompt has positions beyond the %d for which the language model was made "
                "(max_position_embeddings), since dropped tokens count: its answer may be worse. Give fewer frames.",
                own,
            )

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Process what vLLM warms up with; nobody is to be warned of that."""
        self._warms_up = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._warms_up = False

    def _get_mm_hashes(self, inputs: Any) -> Any:
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        serving = self.serving
        if serving is None or "video" not in hashes:
            return hashes
        return {**hashes, "video": [name + serving.suffix() for name in hashes["video"]]}


class FullStopBehindVideos:
    """Mixin before a vLLM class of dummy inputs, with which it warms up: there too, text must follow each video."""

    info: Any

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Images and videos one after another, with a full stop after each video."""
        text: str = super().get_dummy_text(mm_counts)  # type: ignore[misc]
        if serving_of(self.info.ctx.model_config) is None:
            return text
        video = self.info.get_hf_processor().video_token
        return text.replace(video, f"{video}.")


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


class TextAroundFrames(PrunedProcessor):
    """Counts the kept tokens of a video, puts all in its first frame, and gives the model the text around its frames.

    The model fills all of a video's prompt, so that it can put text where the kept tokens leave room for it.
    """

    @property
    def video_placeholder(self) -> int:
        """The token id that stands for a token of a video in a prompt."""
        raise NotImplementedError

    def texts(self, mm_items: Any, processed: Any) -> list[list[list[int]]]:
        """The text around the frames of each video, given vLLM's items and what its own processor made of them."""
        raise NotImplementedError

    def kept(self, serving: Serving, given: Any) -> int:
        """How many tokens of a video are kept, given its inputs of the model."""
        raise NotImplementedError

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)  # type: ignore[misc]
        if self.serving is not None and "video" in mm_items:
            processed[TEXTS] = self.texts(mm_items, processed)
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**fields, TEXTS: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        serving = self.serving
        if serving is None:
            return updates  # type: ignore[no-any-return]

        def in_the_first_frame(item: int) -> Any:
            given = out_mm_kwargs["video"][item]
            first, *others = given[TEXTS].data
            placeholders = [self.video_placeholder] * self.kept(serving, given)
            return PromptUpdateDetails.from_seq([*first, *placeholders, *(one for text in others for one in text)])

        return [replace(one, replacement=in_the_first_frame) if one.modality == "video" else one for one in updates]


def texts_around(ids: Sequence[int], placeholder: int) -> list[list[int]]:
    """The text before, between and after runs of a placeholder in token ids."""
    texts: list[list[int]] = [[]]
    in_run = False
    for one in ids:
        if one != placeholder:
            texts[-1].append(one)
        elif not in_run:
            texts.append([])
        in_run = one == placeholder
    return texts


def check_placeholders(placeholders: AbstractSet[int], prompt: Any) -> None:
    """Refuse a processed prompt with a placeholder that stands for nothing, before an image or a video.

    Images and videos are found by their placeholders, so it would be taken for the next one's.

    Args:
        placeholders: ids of the placeholders of images and videos.
        prompt: the prompt.

    Raises:
        ValueError: it has such a placeholder.
    """
    ranges = [one for several in prompt["mm_placeholders"].values() for one in several]
    inside = {place for one in ranges for place in range(one.offset, one.offset + one.length)}
    before = range(max((one.offset for one in ranges), default=0))
    ids = prompt["prompt_token_ids"]
    stray = [place for place in before if ids[place] in placeholders and place not in inside]
    if stray:
        raise ValueError(
            "the text before an image or a video must not contain a placeholder of its own where videos are pruned, "
            f"got token {ids[stray[0]]} at {stray[0]}: write it in another way, for instance with a space in it"
        )


def check_text_behind(prompt: Any) -> None:
    """Refuse a processed prompt with a video that no text follows, if the video's last token may be dropped.

    What follows is placed by the last token before it.

    Raises:
        ValueError: it has such a video.
    """
    ranges = [one for several in prompt["mm_placeholders"].values() for one in several]
    starts = {one.offset for one in ranges} | {len(prompt["prompt_token_ids"])}
    if any(one.offset + one.length in starts for one in prompt["mm_placeholders"].get("video", ())):
        raise ValueError("a video in a prompt must be followed by text, such as the question about it")


def positions_for_dropped(model_config: Any) -> int:
    """How many tokens of a prompt may be dropped, of a model whose positions count all tokens.

    vLLM's rotary table holds `rotary_positions`, of which a prompt and its answer may need `--max-model-len`.
    """
    return rotary_positions(model_config) - int(model_config.max_model_len)


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
