"""End a run at a video file that a class of lmms-eval would leave out of the prompt, and go on without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from fastvid_kernels.evaluation.failure import ends_the_run


class LoudFiles:
    """Mixin for classes for tasks with `doc_to_text`, which take files of some names only; name it after `Pruned`."""

    def generate_until(self, requests: list[Any]) -> Any:
        """Answer as lmms-eval's class does, but check every video file.

        Raises:
            RunFailed: a file would be left out, and videos are pruned.
        """
        generate = super().generate_until  # type: ignore[misc]
        if not self.prunes:  # type: ignore[attr-defined]
            return generate(requests)
        return generate([self._checked(one) for one in requests])

    def check_file(self, path: str) -> None:
        """Raise unless lmms-eval's class takes the file for a video.

        Raises:
            ValueError: its name ends otherwise.
        """
        if not path.endswith((".mp4", ".avi", ".mov")):
            raise ValueError("its name must end in .mp4, .avi or .mov: lmms-eval would leave it out of the prompt")

    def _checked(self, request: Any) -> Any:
        context, options, doc_to_visual, *rest = request.args
        return replace(request, arguments=(context, options, partial(self._visuals, doc_to_visual), *rest))

    def _visuals(self, doc_to_visual: Callable[[Any], Any], doc: Any) -> Any:
        visuals = doc_to_visual(doc)
        for path in _strings(visuals):
            with ends_the_run(f"reading {path}"):
                self.check_file(path)
        return visuals


def _strings(visuals: Any) -> Iterator[str]:
    if isinstance(visuals, str):
        yield visuals
    elif isinstance(visuals, list):
        for one in visuals:
            yield from _strings(one)
