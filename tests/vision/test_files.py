"""Where a checkpoint is looked for: paths, and the hub, here a cache in a temporary directory without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from fastvid_kernels.vision import load_siglip_head
from tests.vision.models import full_model
from tests.vision.test_checkpoint import check_parity, head_shards

HUB_ID = "someone/siglip"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for files of `HUB_ID` in an offline cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--siglip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files requested from the hub from now on."""
    names: list[str] = []
    download = huggingface_hub.hf_hub_download

    def spy(repo_id: str, filename: str, **options: Any) -> str:
        assert repo_id == HUB_ID
        names.append(filename)
        return download(repo_id, filename, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", spy)
    return names


def test_one_file_on_the_hub(snapshot: Path, asked: list[str]) -> None:
    model = full_model()
    model.save_pretrained(snapshot)
    check_parity(HUB_ID, model.vision_model)
    assert asked == ["config.json", "model.safetensors"]


def test_only_the_needed_shards_are_asked_for(snapshot: Path, asked: list[str]) -> None:
    model = full_model()
    model.save_pretrained(snapshot, max_shard_size="12KB")
    check_parity(HUB_ID, model.vision_model)
    first, shards = asked[:3], asked[3:]
    assert first == ["config.json", "model.safetensors", "model.safetensors.index.json"]
    assert len(shards) == len(set(shards))
    assert set(shards) == head_shards(snapshot)


def test_a_revision_of_the_hub(snapshot: Path) -> None:
    model = full_model()
    model.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs" / "main").unlink()
    assert load_siglip_head(HUB_ID, revision=COMMIT).config.hidden_size == 32
    with pytest.raises(OSError, match=r"config\.json of someone/siglip is neither on this machine nor available"):
        load_siglip_head(HUB_ID)


def test_a_part_of_the_checkpoint_in_the_cache(snapshot: Path) -> None:
    full_model().save_pretrained(snapshot, max_shard_size="12KB")
    shard = sorted(head_shards(snapshot))[-1]
    (snapshot / shard).unlink()
    with pytest.raises(OSError, match=f"{re.escape(shard)} of someone/siglip is neither on this machine"):
        load_siglip_head(HUB_ID)


HUB_ERRORS: dict[str, tuple[Exception, type[Exception], str]] = {
    "unreachable": (
        errors.LocalEntryNotFoundError("no connection"),
        OSError,
        "config.json of someone/siglip is neither on this machine nor available from the hub "
        "(LocalEntryNotFoundError): set source to the checkpoint's directory",
    ),
    "broken off": (RuntimeError("client closed"), OSError, "nor available from the hub (RuntimeError)"),
    "a server's error": (
        errors.HfHubHTTPError("500", response=Mock()),
        OSError,
        "nor available from the hub (HfHubHTTPError)",
    ),
    "no such file": (
        errors.RemoteEntryNotFoundError("404", response=Mock()),
        FileNotFoundError,
        "someone/siglip on the hub must contain config.json, and it does not",
    ),
    "no such repository": (
        errors.RepositoryNotFoundError("404", response=Mock()),
        FileNotFoundError,
        "source must be a checkpoint's directory or a hub id, got 'someone/siglip', which is neither",
    ),
    "gated": (
        errors.GatedRepoError("403", response=Mock()),
        PermissionError,
        "someone/siglip is gated: accept its terms on the hub",
    ),
    "no such revision": (
        errors.RevisionNotFoundError("404", response=Mock()),
        FileNotFoundError,
        "someone/siglip on the hub has no revision 'old'",
    ),
}


@pytest.mark.parametrize("name", HUB_ERRORS)
def test_what_the_hub_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raised, error, message = HUB_ERRORS[name]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=raised))
    with pytest.raises(error, match=re.escape(message)) as refused:
        load_siglip_head(HUB_ID, revision="old")
    assert refused.value.__cause__ is raised or name == "no such file"


def test_no_safetensors_on_the_hub(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_model().save_pretrained(snapshot)

    def download(repo_id: str, filename: str, **options: Any) -> str:
        if filename != "config.json":
            raise errors.RemoteEntryNotFoundError("404", response=Mock())
        return str(snapshot / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"must contain model\.safetensors or model\.safetensors\.index\.json"):
        load_siglip_head(HUB_ID)


@pytest.mark.parametrize("source", ["/no/such/place", "./siglip", "no/such/place", "siglip", "", Path("some/place")])
def test_a_path_where_nothing_is(source: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"source must be .* hub id, found nothing at {str(source)!r}"):
        load_siglip_head(source)


def test_an_id_that_no_hub_accepts() -> None:
    with pytest.raises(FileNotFoundError, match="got 'some one/siglip', which is neither"):
        load_siglip_head("some one/siglip")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(NotADirectoryError, match=r"got a file: .*model\.safetensors"):
        load_siglip_head(tmp_path / "model.safetensors")


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must contain config\.json; it has no files"):
        load_siglip_head(tmp_path)


def test_a_revision_of_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="revision must be None for a directory, got 'main'"):
        load_siglip_head(tmp_path, revision="main")


def test_what_is_no_path() -> None:
    with pytest.raises(TypeError, match="source must be a directory or a hub id, got None"):
        load_siglip_head(None)  # type: ignore[arg-type]


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=re.escape('pip install "fastvid_kernels[transformers]"')):
        load_siglip_head(HUB_ID)


def test_a_directory_needs_neither_transformers_nor_a_hub(tmp_path: Path) -> None:
    """In a fresh process where neither can be imported; the package itself must not import `vision`."""
    full_model().save_pretrained(tmp_path)
    program = f"""
import sys
sys.modules["transformers"] = sys.modules["huggingface_hub"] = None
import fastvid_kernels
assert "fastvid_kernels.vision" not in sys.modules
import fastvid_kernels.vision
assert "safetensors" not in sys.modules
fastvid_kernels.vision.load_siglip_head({str(tmp_path)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
