"""Base classes of all models: they split the arguments, patch the model, count, and end the run on errors."""

from __future__ import annotations

import logging
from typing import Any

from fastvid_kernels.adapters import apply_fastvid
from fastvid_kernels.adapters.tally import counted_videos
from fastvid_kernels.evaluation.arguments import of_apply_fastvid, split
from fastvid_kernels.evaluation.counts import Counts
from fastvid_kernels.evaluation.failure import CountedGenerate, RunFailed, ends_the_run
from fastvid_kernels.evaluation.naming import name_folders_by_settings

logger = logging.getLogger(__name__)


class Pruned:
    """Mixin that makes a class of lmms-eval prune its videos; name it before that class among the bases.

    Without any of our arguments, that class works unchanged. `retention_ratio=1.0` keeps every token, but counts too.

    Args:
        **arguments: our arguments (`arguments.OURS`), and those of lmms-eval's class.

    Attributes:
        files: how many video files the requests of the last run gave, where that is known.

    Raises:
        RunFailed: the model could not be loaded or patched.
    """

    files = 0
    _answers: list[int] | None = None

    def __init__(self, **arguments: Any) -> None:
        ours, theirs = split(arguments)
        if not ours:
            super().__init__(**theirs)
            return
        with ends_the_run("loading the model"):
            super().__init__(**self._adjusted(theirs))
            # lmms-eval frees the model after the last answer, so nothing outside the model may keep a reference to it.
            model: Any = self.model  # type: ignore[attr-defined]
            apply_fastvid(model, **of_apply_fastvid(ours))
            self._answers = []
            model.generate = CountedGenerate(model.generate, self._answers)
            self._finish()
            name_folders_by_settings()

    @property
    def prunes(self) -> bool:
        """Whether videos are pruned at all."""
        return self._answers is not None

    def _adjusted(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of lmms-eval's class, changed where its defaults do not work."""
        return theirs

    def _finish(self) -> None:
        """Do whatever else a model needs once it is loaded."""

    def generate_until(self, requests: list[Any]) -> Any:
        """Answer as lmms-eval's class does, and log how much was pruned among the results.

        Raises:
            RunFailed: something failed, no video was pruned, or answers did not come from the model.
        """
        generate = super().generate_until  # type: ignore[misc]
        if self._answers is None or not requests:
            return generate(requests)
        self._answers.clear()
        with ends_the_run("answering"), counted_videos() as videos:
            responses = generate(requests)
        _report(Counts.of(len(requests), sum(self._answers), videos), self.files)
        return responses

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        """Refused where videos are pruned.

        Raises:
            RunFailed: videos are pruned.
        """
        self._refuse("generate_until_multi_round")
        return super().generate_until_multi_round(requests)  # type: ignore[misc]

    def loglikelihood(self, requests: list[Any]) -> Any:
        """Refused where videos are pruned: lmms-eval finds logits by the positions of an unpruned prompt.

        Raises:
            RunFailed: videos are pruned.
        """
        self._refuse("loglikelihood")
        return super().loglikelihood(requests)  # type: ignore[misc]

    def _refuse(self, kind: str) -> None:
        if self.prunes:
            raise RunFailed(f"output_type of the task must be generate_until where videos are pruned, got {kind}")


class LoudVideos:
    """Mixin for classes of lmms-eval that hide errors in reading a video; name it after `Pruned` among the bases."""

    def load_video(self, *args: Any, **kwargs: Any) -> Any:
        """Read frames as lmms-eval's class does.

        Raises:
            RunFailed: the video could not be read, and videos are pruned.
        """
        load = super().load_video  # type: ignore[misc]
        if not self.prunes:  # type: ignore[attr-defined]
            return load(*args, **kwargs)
        with ends_the_run(f"reading {args[0] if args else kwargs}"):
            return load(*args, **kwargs)


def _report(counts: Counts, files: int) -> None:
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    counts.check(files)
    if counts.videos < counts.requests:
        logger.warning("%d requests had %d pruned videos: the rest was not pruned", counts.requests, counts.videos)
    # lmms-eval itself adds up time and generated tokens, so these are 0 here.
    log_metrics(total_elapsed_time=0.0, total_gen_tokens=0, avg_speed=0.0, additional_metrics=counts.metrics())
