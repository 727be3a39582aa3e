"""Errors that end a run, where lmms-eval would score an empty answer and exit with 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class RunFailed(BaseException):
    """An error that makes the results of a run worthless.

    It is not an `Exception`, because lmms-eval catches these: around `generate` it answers "" and goes on, and its
    command prints the error and exits with 0.
    """


@contextmanager
def ends_the_run(doing: str) -> Iterator[None]:
    """Turn an `Exception` of the block into `RunFailed`.

    Args:
        doing: what the block does, for the message.

    Raises:
        RunFailed: the block raised an `Exception`, which is its cause.
    """
    try:
        yield
    except Exception as error:
        raise RunFailed(f"{doing} failed: {type(error).__name__}: {error}") from error


class CountedGenerate:
    """`model.generate` that ends the run if it fails, and counts its answers.

    Args:
        original: the model's own `generate`.
        answers: the list to which each call appends the number of sequences that it generated.
    """

    def __init__(self, original: Callable[..., Any], answers: list[int]) -> None:
        self._original = original
        self._answers = answers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model generates."""
        with ends_the_run("generate"):
            generated = self._original(*args, **kwargs)
            self._answers.append(len(generated))
        return generated
