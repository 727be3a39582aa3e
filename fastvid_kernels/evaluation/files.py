"""End a run at a video that a class of lmms-eval would leave out of the prompt, and go on without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from fastvid_kernels.evaluation.failure import RunFailed, ends_the_run


class LoudFiles:
    """Mixin for classes for tasks with `doc_to_text`, which may leave out a video; name it after `Pruned`."""

    files: int

    def generate_until(self, requests: list[Any]) -> Any:
        """Answer as lmms-eval's class does, but check every video.

        Raises:
            RunFailed: a video would be left out, and videos are pruned.
        """
        generate = super().generate_until  # type: ignore[misc]
        if not self.prunes:  # type: ignore[attr-defined]
            return generate(requests)
        self.files = 0
        return generate([self._checked(one) for one in requests])

    def as_list(self, visuals: Any) -> Sequence[Any]:
        """What a task gave for a document, one by one, as lmms-eval's class takes it.

        Raises:
            RunFailed: it would take it for something else.
        """
        if not isinstance(visuals, list | tuple | None):
            raise RunFailed(f"doc_to_visual must give a list, got {visuals!r}: lmms-eval would leave it out")
        return visuals or ()

    def check_file(self, path: str) -> None:
        """Raise unless lmms-eval's class takes the file for a video; here it takes every file.

        Raises:
            ValueError: it would leave it out.
        """

    def _checked(self, request: Any) -> Any:
        context, options, doc_to_visual, *rest = request.args
        return replace(request, arguments=(context, options, partial(self._visuals, doc_to_visual), *rest))

    def _visuals(self, doc_to_visual: Callable[[Any], Any], doc: Any) -> Any:
        visuals = doc_to_visual(doc)
        for one in self.as_list(visuals):
            if isinstance(one, str):
                with ends_the_run(f"reading {one}"):
                    self.check_file(one)
                self.files += 1
            elif not isinstance(one, Image.Image):
                raise RunFailed(
                    f"doc_to_visual must give pictures and paths of videos, got {one!r}: lmms-eval would leave it out"
                )
        return visuals


class LoudNames(LoudFiles):
    """`LoudFiles` for classes that take only files of some names."""

    def check_file(self, path: str) -> None:
        """See `LoudFiles`.

        Raises:
            ValueError: the name of the file ends otherwise.
        """
        if not path.endswith((".mp4", ".avi", ".mov")):
            raise ValueError("its name must end in .mp4, .avi or .mov: lmms-eval would leave it out of the prompt")
