"""Score the patches of a frame: attention from a SigLIP head, or from a substitute chosen by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from fastvid_kernels.adapters.pruner import Video
from fastvid_kernels.adapters.settings import Settings
from fastvid_kernels.adapters.stopwatch import part_of_pruning
from fastvid_kernels.vision import ATTENTION_SUBSTITUTES, SiglipHead, load_siglip_head

Scorer = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Maps patches `[F, P, H]` to their attention `[F, P]` and the frames' global features `[F, G]`, or None for these."""


DEFAULT_SIGLIP = "google/siglip-so400m-patch14-384"


def scorer(settings: Settings, hidden_size: int) -> Scorer:
    """The scorer for patches of `hidden_size` channels.

    Args:
        settings: with neither `siglip` nor `attention`, the head of `DEFAULT_SIGLIP` is used if the method needs
            attention, and "uniform" otherwise.
        hidden_size: channels of the vision tower.

    Raises:
        ValueError: there is no such attention, it reads no head but one was given, or the head has another number of
            channels.
        OSError: the SigLIP checkpoint could not be read.
    """
    siglip = DEFAULT_SIGLIP if settings.siglip is None else settings.siglip
    attention = settings.attention
    if attention is None:
        # If a head is given, at least its frame features are wanted.
        attention = "siglip" if settings.use_attention or settings.siglip is not None else "uniform"
    if attention != "siglip":
        if attention not in ATTENTION_SUBSTITUTES:
            known = ", ".join(repr(name) for name in ["siglip", *ATTENTION_SUBSTITUTES])
            raise ValueError(f"attention must be one of {known}, got {attention!r}")
        if settings.siglip is not None:
            raise ValueError(f"siglip must be left out with attention {attention!r}, which reads no head")
        return SubstituteScorer(attention)
    head = siglip if isinstance(siglip, SiglipHead) else load_siglip_head(siglip)
    if head.config.hidden_size != hidden_size:
        raise ValueError(
            f"siglip must be the SigLIP that the model's vision tower was made from, with {hidden_size} channels, got "
            f"one with {head.config.hidden_size}: give that checkpoint, or choose a substitute with attention=..., one "
            f"of {', '.join(ATTENTION_SUBSTITUTES)}"
        )
    return HeadScorer(head)


class PatchScorer:
    """Computes attention and features of frames from the patches that entered the model's projector.

    Args:
        score: computes attention and global features of patches.
        pool: pools attention `[F, P]` to the token grid `[F, N]`, as the model pools its tokens.
    """

    def __init__(self, score: Scorer, pool: Callable[[Tensor], Tensor]) -> None:
        self._score = score
        self._pool = pool

    def __call__(self, patches: Tensor, tokens: Tensor) -> Video:
        """Score the patches, and return what the pruner needs.

        Args:
            patches: `[F, P, H]`, the vision tower's features that entered the projector.
            tokens: `[F, N, D]`, the same after projection and pooling.
        """
        # `prune` has no gradient for attention, so a training step need not store the scorer's activations.
        with part_of_pruning(patches.device), torch.no_grad():
            attention, features = self._score(patches)
            attention = self._pool(attention).to(tokens.device)
            return Video(tokens, attention, None if features is None else features.to(tokens.device))


class HeadScorer:
    """Scores with a SigLIP head, copied to the patches' device and dtype if needed; the given head does not change."""

    def __init__(self, head: SiglipHead) -> None:
        self._given = head
        self._head = head

    def __call__(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Attention `[F, P]` and pooled features `[F, H]` of patches `[F, P, H]`."""
        if not _is_like(self._head, patches):
            # Copy the given head, since an earlier copy may be rounded to bfloat16. Inference mode is off so that the
            # copy can be used in calls with gradients too.
            with torch.inference_mode(False):
                self._head = copy.deepcopy(self._given).to(patches.device, patches.dtype)
        attention, features = self._head(patches)
        return attention, features


def _is_like(head: SiglipHead, patches: Tensor) -> bool:
    return head.probe.device == patches.device and head.probe.dtype == patches.dtype


class SubstituteScorer:
    """Scores with an attention substitute; the global feature of a frame is then its mean token."""

    def __init__(self, name: str) -> None:
        self._substitute = ATTENTION_SUBSTITUTES[name]

    def __call__(self, patches: Tensor) -> tuple[Tensor, None]:
        """Attention `[F, P]` of patches `[F, P, H]`."""
        return self._substitute(patches), None
