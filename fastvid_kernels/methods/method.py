"""The class of a method, and the types of its inputs and outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Like `torch.compiler.disable`, but importing it does not import the compiler.
from torch._compile import _disable_dynamo
from typing_extensions import Unpack

from fastvid_kernels.api import Pruned
from fastvid_kernels.config import Hyperparameters, PruneConfig, resolve_config
from fastvid_kernels.validation import check_inputs, check_is_tensor, read_cu_frames

_DEFAULTS = PruneConfig()


class Kept(NamedTuple):
    """The tokens that a method keeps of one video.

    Attributes:
        tokens: `[M, D]`, in the dtype of the input.
        indices: int64 `[M]`, ascending: `frame * N + position` of each.
    """

    tokens: Tensor
    indices: Tensor


@dataclass(frozen=True)
class VideoTokens:
    """One video as a method gets it.

    Attributes:
        tokens: `[F, N, D]`.
        attn: `[F, N]`, None where the caller has none.
        given_features: `[F, G]`, None where the caller has none.
    """

    tokens: Tensor
    attn: Tensor | None = None
    given_features: Tensor | None = None

    @cached_property
    def exact(self) -> Tensor:
        """The tokens in float32, or in float64 if they are float64."""
        return self.tokens.to(torch.promote_types(self.tokens.dtype, torch.float32))

    @cached_property
    def features(self) -> Tensor:
        """Global features of the frames, `[F, G]`: the given ones, or the frames' mean tokens."""
        if self.given_features is not None:
            return self.given_features.to(torch.promote_types(self.given_features.dtype, torch.float32))
        return self.exact.mean(1)

    def kept(self, mask: Tensor) -> Kept:
        """Keep the tokens of a mask, bool `[F, N]`, unchanged."""
        indices = mask.flatten().nonzero().squeeze(1)
        return Kept(self.tokens.flatten(0, 1)[indices], indices)


Function = Callable[..., Kept]
"""Maps a video, a `PruneConfig` and keyword options to the kept tokens."""

Rows = Callable[[int, int, PruneConfig], int]
"""Maps F, N and a `PruneConfig` to the number of tokens kept of F frames with N tokens each."""


def same_of_each_frame(frames: int, tokens_per_frame: int, config: PruneConfig) -> int:
    """F * K tokens, as FastVID keeps."""
    return frames * config.kept_per_frame(tokens_per_frame)


@dataclass(frozen=True)
class Method:
    """A method to prune video tokens; call it like `fastvid_kernels.prune`.

    Attributes:
        name: the name that `get` finds it by.
        function: prunes one video.
        source: where it was published.
        deviations: text that says where and why it differs from what was published.
        rows: gives the number of kept tokens; None if that number depends on the data.
        needs_attention: whether `attn` is required.
        reads: the hyperparameters that it reads.
        check: raises `TypeError` or `ValueError` for invalid options, which are passed by name.
        chosen: the options that were given.
    """

    name: str
    function: Function
    source: str
    deviations: str = ""
    rows: Rows | None = same_of_each_frame
    needs_attention: bool = False
    reads: tuple[str, ...] = ("retention_ratio",)
    check: Callable[..., None] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def static(self) -> bool:
        """Whether the number of kept tokens does not depend on the data."""
        return self.rows is not None

    @property
    def options(self) -> dict[str, Any]:
        """The options that it takes beside FastVID's arguments, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}

    def with_options(self, **options: Any) -> Method:
        """The same method with these options.

        Raises:
            TypeError: the method has no such option, or an option has the wrong type.
            ValueError: an option is out of range.
        """
        for option in options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise TypeError(f"{self.name} must be given only options that it has ({known}), got {option}")
        if self.check is not None:
            self.check(**options)
        return replace(self, chosen={**self.chosen, **options})

    # Not traced: most methods read data to decide how many tokens to keep where.
    @_disable_dynamo
    def __call__(
        self,
        tokens: Tensor,
        attn: Tensor | None = None,
        frame_features: Tensor | None = None,
        cu_frames: Tensor | None = None,
        *,
        config: PruneConfig = _DEFAULTS,
        **hyperparameters: Unpack[Hyperparameters],
    ) -> Pruned:
        """Prune one video, or several with their frames concatenated.

        Args:
            tokens: `[F, N, D]`, float32, bfloat16, float16 or float64.
            attn: `[F, N]`, how much each token matters; required if `needs_attention`.
            frame_features: `[F, G]`, global features of the frames; default: their mean tokens.
            cu_frames: int32 `[B + 1]`, where each video starts, from 0 to F; None for one video.
            config: the hyperparameters, of which it reads `reads`.
            **hyperparameters: see `PruneConfig`; they override those of `config`.

        Returns:
            `(tokens, indices)` as from `prune`, except that their number is given by `rows`, or depends on the data.

        Raises:
            TypeError: an argument has the wrong dtype.
            ValueError: an argument has the wrong shape, device or range, or attention is needed and missing.
            NotImplementedError: in a backward pass, because methods have no gradient.
        """
        config = resolve_config(config, hyperparameters)
        check_is_tensor("tokens", tokens)
        if attn is None and self.needs_attention:
            raise ValueError(
                f"attn must be given for the method {self.name}, which ranks tokens by attention, got None"
            )
        stand_in = tokens.new_empty(tokens.shape[:2]) if attn is None else attn
        check_inputs(tokens, stand_in, frame_features, cu_frames, config)
        with torch.no_grad():
            pruned = self._each(tokens, attn, frame_features, read_cu_frames(cu_frames, len(tokens)), config)
        kept: Tensor = _NoGradient.apply(tokens, pruned.tokens, self.name)  # type: ignore[no-untyped-call]
        return Pruned(kept, pruned.indices)

    def _each(
        self,
        tokens: Tensor,
        attn: Tensor | None,
        frame_features: Tensor | None,
        starts: list[int],
        config: PruneConfig,
    ) -> Pruned:
        kept: list[Kept] = []
        for start, end in pairwise(starts):
            parts = (None if part is None else part[start:end] for part in (attn, frame_features))
            of_one = self.function(VideoTokens(tokens[start:end], *parts), config, **self.chosen)
            kept.append(Kept(of_one.tokens, of_one.indices + start * tokens.shape[1]))
        rows, indices = zip(*kept, strict=True)
        return Pruned(torch.cat(rows), torch.cat(indices))


class _NoGradient(torch.autograd.Function):
    """Returns the kept tokens unchanged; a backward pass raises an error instead of giving zeros."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, kept: Tensor, name: str) -> Tensor:
        ctx.name = name
        return kept.view_as(kept)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"the method {ctx.name} has no gradient: prune with FastVID itself, which has one, or freeze what comes "
            "before the video tokens"
        )
