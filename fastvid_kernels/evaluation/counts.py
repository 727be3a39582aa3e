"""Count what a run pruned, for its results, and refuse a run that pruned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fastvid_kernels.adapters.tally import VideoCount
from fastvid_kernels.evaluation.failure import RunFailed


@dataclass(frozen=True)
class Counts:
    """Counts of one run.

    Attributes:
        requests: how many answers lmms-eval asked for.
        answers: how many the model generated.
        videos: how many videos were pruned.
        tokens_in: tokens of these videos before pruning.
        tokens_kept: tokens of these videos after pruning.
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

    def check(self, files: int = 0) -> None:
        """Refuse a run whose score would not be that of a pruned model.

        Args:
            files: how many video files the requests are known to have given, at least.

        Raises:
            RunFailed: no video was pruned, a video was left out, or answers did not come from the model.
        """
        if self.answers < self.requests:
            raise RunFailed(
                f"the model answered {self.answers} of {self.requests} requests: lmms-eval made up the others, as it "
                "does where a video cannot be read"
            )
        if not self.videos:
            raise RunFailed(
                f"no video was pruned in {self.requests} requests: the score would be the unpruned model's; check that "
                "the task has videos, and that the model gets them as videos, not as images"
            )
        if self.videos < files:
            raise RunFailed(
                f"{self.videos} of {files} videos were pruned: lmms-eval left the others out of their prompts, as it "
                "does with interleave_visuals where a prompt has no <image 1>"
            )

    def metrics(self) -> dict[str, int]:
        """The counts, under their names in lmms-eval's results."""
        return {f"fastvid_{name}": value for name, value in asdict(self).items()}
