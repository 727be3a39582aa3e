"""Find the files of a checkpoint, in a directory or on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

INSTALL = 'is needed to load a SigLIP head: pip install "fastvid_kernels[transformers]"'


class CheckpointFiles(Protocol):
    """The files of one checkpoint; `name` is what the user called it."""

    @property
    def name(self) -> str:
        """The directory or hub id."""

    def find(self, *names: str) -> Path:
        """The first of these files that exists.

        Raises:
            FileNotFoundError: none of them exists.
            OSError: the hub cannot be reached, or does not give the file.
        """


def open_checkpoint(source: str | Path, revision: str | None = None) -> CheckpointFiles:
    """The files of a directory, or else of a hub id.

    Raises:
        TypeError: `source` is neither a string nor a path.
        FileNotFoundError: `source` is a path at which nothing exists.
        NotADirectoryError: `source` is a file.
        ValueError: `revision` is given with a directory.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a directory or a hub id, got {source!r}")
    path = Path(source).expanduser()
    if source != "" and path.is_dir():
        if revision is not None:
            raise ValueError(f"revision must be None for a directory, got {revision!r} with {path}")
        return _Directory(path)
    if path.is_file():
        raise NotADirectoryError(f"source must be a checkpoint's directory or a hub id, got a file: {path}")
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith(("/", ".", "~")):
        raise FileNotFoundError(
            f"source must be a checkpoint's directory or a hub id, found nothing at {str(source)!r}"
        )
    return _HubRepository(source, revision)


@dataclass(frozen=True)
class _Directory:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def find(self, *names: str) -> Path:
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
        raise FileNotFoundError(f"{self.path} must contain {_either(names)}; it has {_listing(self.path)}")


@dataclass(frozen=True)
class _HubRepository:
    name: str
    revision: str | None

    def find(self, *names: str) -> Path:
        try:
            from huggingface_hub import errors, hf_hub_download
        except ImportError as error:
            raise ImportError(f"huggingface_hub {INSTALL}") from error
        unreachable: Exception | None = None
        for name in names:
            try:
                return Path(hf_hub_download(self.name, name, revision=self.revision))
            except errors.LocalEntryNotFoundError as error:
                unreachable = error  # but another of the names may be in the cache
            except errors.EntryNotFoundError:
                continue
            except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
                raise self._refused(error) from error
            except Exception as error:  # the types of network errors depend on the client that the hub's library uses
                unreachable = error
                break
        if unreachable is None:
            raise FileNotFoundError(f"{self.name} on the hub must contain {_either(names)}, and it does not")
        raise OSError(
            f"{_either(names)} of {self.name} is neither on this machine nor available from the hub "
            f"({type(unreachable).__name__}): set source to the checkpoint's directory, or connect to the hub"
        ) from unreachable

    def _refused(self, error: Exception) -> OSError:
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            return PermissionError(f"{self.name} is gated: accept its terms on the hub, then run `hf auth login`")
        if isinstance(error, errors.RevisionNotFoundError):
            return FileNotFoundError(f"{self.name} on the hub has no revision {self.revision!r}")
        return FileNotFoundError(
            f"source must be a checkpoint's directory or a hub id, got {self.name!r}, which is neither "
            "(if it is private, run `hf auth login`)"
        )


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _listing(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return shown or "no files"
