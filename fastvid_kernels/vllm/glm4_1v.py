"""GLM-4.1V, GLM-4.5V and GLM-4.6V in vLLM: timestamps between the frames, and one placeholder for images and frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import glm4_1v as upstream
from vllm.model_executor.models.interfaces import SupportsMultiModalPruning
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptUpdateDetails

from fastvid_kernels.api import Pruned
from fastvid_kernels.vllm.model import TextBetweenFrames, places_of
from fastvid_kernels.vllm.placement import between_texts, with_positions
from fastvid_kernels.vllm.processing import PrunedProcessor, kept_of_grid
from fastvid_kernels.vllm.settings import METHOD

TEXTS = "fastvid_texts"
"""Name of an input of the model: for each video F + 1 lists of token ids, the text around its F frames."""


class Processor(PrunedProcessor, upstream.Glm4vMultiModalProcessor):
    """Counts the kept tokens of a video, and gives the model the text around its frames."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if self.serving is not None and "video" in mm_items:
            grids = processed["video_grid_thw"]
            processed[TEXTS] = [self._texts(*one) for one in zip(mm_items["video"], grids, strict=True)]
        return processed

    def _texts(self, video: Any, grid: Tensor) -> list[list[int]]:
        config = self.info.get_hf_config()
        frames, merge = int(grid[0]), config.vision_config.spatial_merge_size
        # The video's prompt as vLLM makes it, for frames of one token.
        ids = self.info._construct_video_placeholder(*video, torch.tensor([frames, merge, merge]))
        texts: list[list[int]] = [[]]
        for one in ids:
            if one == config.image_token_id:
                texts.append([])
            else:
                texts[-1].append(one)
        if len(texts) != frames + 1:
            raise ValueError(
                f"a video must have one timestamp for each of its {frames} temporal patches, got {len(texts) - 1}: its "
                "metadata, or mm_processor_kwargs such as fps, do not fit its frames"
            )
        return texts

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, TEXTS: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        serving = self.serving
        if serving is None:
            return updates  # type: ignore[no-any-return]
        config = self.info.get_hf_config()

        def in_the_first_frame(item: int) -> Any:
            given = out_mm_kwargs["video"][item]
            kept = kept_of_grid(serving, given["video_grid_thw"].data, config.vision_config.spatial_merge_size)
            first, *others = given[TEXTS].data
            ids = [*first, *[config.image_token_id] * kept, *(one for text in others for one in text)]
            # The model fills all of it, so that it can put text where a video's kept tokens leave room for it.
            return PromptUpdateDetails.from_seq(ids)

        return [replace(one, replacement=in_the_first_frame) if one.modality == "video" else one for one in updates]


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Glm4vProcessingInfo, dummy_inputs=upstream.Glm4vDummyInputsBuilder
)
class Glm4vForConditionalGeneration(
    TextBetweenFrames, upstream.Glm4vForConditionalGeneration, SupportsMultiModalPruning
):
    """vLLM's model; its videos are pruned if the server was started with this method."""

    supported_video_pruning_methods = (METHOD,)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        if self.prepare_pruning(vllm_config, config.vision_config.out_hidden_size, [config.image_token_id]):
            self.prepare_tower()

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        texts = kwargs.pop(TEXTS, None)
        video_input = super()._parse_and_validate_video_input(**kwargs)
        if video_input is not None:
            setattr(video_input, TEXTS, texts)
        return video_input

    def _process_video_input(self, video_input: Any) -> Any:
        run = super()._process_video_input
        if self.serving is None:
            return run(video_input)
        pruned = self.pruned_videos(run, video_input, self.embedding_width)
        grids, texts = video_input["video_grid_thw"].tolist(), getattr(video_input, TEXTS)
        return tuple(self._with_texts(kept, *one) for (_, kept), *one in zip(pruned, grids, texts, strict=True))

    def _with_texts(self, kept: Pruned, grid: list[int], texts: Sequence[Sequence[int]]) -> Tensor:
        """A video as in the prompt: the text around its frames, its kept tokens, and their positions."""
        placeholder, merge = self.config.image_token_id, self.visual.spatial_merge_size
        frames, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
        places, counts = places_of(kept, frames, rows * columns)
        parts = [[*text, *[placeholder] * count] for text, count in zip(texts, [*counts, 0], strict=True)]
        ids = torch.tensor([one for part in parts for one in part], device=kept.tokens.device)
        embeddings = self.language_model.embed_input_ids(ids)
        embeddings[ids == placeholder] = kept.tokens.to(embeddings)
        positions = between_texts([len(text) for text in texts], rows, columns, places)
        return with_positions(embeddings, positions.to(ids.device), lead=len(texts[0]))


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Glm4vProcessingInfo, dummy_inputs=upstream.Glm4vDummyInputsBuilder
)
class Glm4vMoeForConditionalGeneration(Glm4vForConditionalGeneration, upstream.Glm4vMoeForConditionalGeneration):
    """vLLM's mixture of experts, with the changes of `Glm4vForConditionalGeneration`."""
