"""What a run pruned: numbers for its results, and the refusal of a run that pruned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fastvid_kernels.adapters.tally import VideoCount
from fastvid_kernels.evaluation.failure import RunFailed


@dataclass(frozen=True)
class Counts:
    """What was asked and pruned.

    Attributes:
        requests: how many answers lmms-eval asked for.
        answers: how many the model generated.
        videos: how many videos were pruned.
        tokens_in: their tokens before.
        tokens_kept: their tokens after.
    """

    requests: int
    answers: int
    videos: int
    tokens_in: int
    tokens_kept: int

    @classmethod
    def of(cls, requests: int, answers: int, videos: Sequence[VideoCount]) -> Counts:
        """Sums over the videos of a run."""
        return cls(requests, answers, len(videos), sum(one.tokens for one in videos), sum(one.kept for one in videos))

    def check(self) -> None:
        """Refuse a run whose score would not be that of a pruned model.

        Raises:
            RunFailed: no video was pruned, or answers did not come from the model.
        """
        if self.answers < self.requests:
            raise RunFailed(
                f"the model answered {self.answers} of {self.requests} requests: lmms-eval made up the others, as it "
                "does where a video cannot be read"
            )
        if not self.videos:
            raise RunFailed(
                f"no video was pruned in {self.requests} requests: the score would be the unpruned model's. Is this a "
                "task of videos, and does the model get them as videos, not as images?"
            )

    def metrics(self) -> dict[str, int]:
        """By the names that they have in lmms-eval's results."""
        return {f"fastvid_{name}": value for name, value in asdict(self).items()}
