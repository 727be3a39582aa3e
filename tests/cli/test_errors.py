"""A command reports any error in one line, and its output fits any terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvid_kernels.cli.common.errors import CommandError, named, one_line_errors
from tests.cli import checkpoints
from tests.cli.test_run import run

DEMO = (sys.executable, "-m", "fastvid_kernels.cli", "demo", "--frames", "2")


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments], cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def check_one_line(result: Any, *, says: str) -> None:
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert says in result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CommandError("mend\nthis"), "fastvid: mend this"),
        (OSError(28, "No space left on device", "a.png"), "fastvid: a.png: No space left on device"),
        (OSError(5, "Input/output error"), "fastvid: Input/output error"),
        (UnicodeEncodeError("ascii", "ä", 0, 1, "no"), "fastvid: UnicodeEncodeError: 'ascii' codec"),
        (KeyError("x"), "fastvid: KeyError: 'x' (an unexpected error: please report it"),
        (MemoryError(), "fastvid: out of memory"),
    ],
)
def test_every_error_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_a_traceback_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVID_TRACEBACK", "1")
    with pytest.raises(CommandError, match="KeyError"), one_line_errors():
        raise KeyError("x")


def test_what_failed_is_named() -> None:
    with pytest.raises(CommandError, match=r"^--model x cannot be loaded: two lines$"), named("--model x", "loaded"):
        raise TypeError("two\n lines")


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "no/such/folder/a.png", "locked/a.png"])
def test_outputs_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    if name.startswith("locked") and os.geteuid() == 0:
        pytest.skip("no folder is locked for root")
    result = command("--output", name, cwd=tmp_path)
    assert result.returncode == 2
    check_one_line(result, says="fastvid: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(DEMO, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr.splitlines()[0]


def test_a_name_that_stdout_cannot_hold(tmp_path: Path) -> None:
    strange = os.fsdecode(b"f\xff\xe2\x98\x83.mp4")
    (tmp_path / strange).write_bytes((Path(__file__).parent / "videos" / "plain.mp4").read_bytes())
    result = subprocess.run(
        [*DEMO, "--video", strange],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("columns", ["0", "20"])
def test_narrow_terminals_show_values(tmp_path: Path, columns: str) -> None:
    result = command(cwd=tmp_path, COLUMNS=columns)
    assert result.returncode == 0, result.stderr
    assert "tokens after" in result.stdout
    assert "median of 9 runs" in " ".join(result.stdout.split())


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link.png", tmp_path / "folder" / "picture.png"
    link.symlink_to(target)
    assert command("--output", str(link), cwd=tmp_path).returncode == 0
    assert link.is_symlink()
    assert target.read_bytes().startswith(b"\x89PNG")


def test_a_link_to_itself_is_refused_before_any_work(tmp_path: Path) -> None:
    link = tmp_path / "loop.png"
    link.symlink_to(link)
    result = command("--output", "loop.png", cwd=tmp_path)
    assert result.returncode == 2
    check_one_line(result, says="--output must be a file, but loop.png is a link to itself")
    assert result.stdout == ""


def test_a_closed_standard_output(tmp_path: Path) -> None:
    line = " ".join([*DEMO, "--output", "out.png", ">&-"])
    result = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--frames", "many"], "--frames"),
        (["demo", "--frmaes", "3"], "--frmaes"),
        (["dmeo"], "dmeo"),
        (["run", "--random-weights", "tiny"], "--random-weights"),
    ],
)
def test_mistakes_in_the_command_line_are_one_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    python = [sys.executable, "-m", "fastvid_kernels.cli"]
    result = subprocess.run([*python, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    check_one_line(result, says=says)
    assert result.stderr.startswith("fastvid: ")
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"]])
def test_help(arguments: list[str], tmp_path: Path) -> None:
    python = [sys.executable, "-m", "fastvid_kernels.cli"]
    result = subprocess.run([*python, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: fastvid" in result.stdout


def test_the_longest_name_there_can_be(tmp_path: Path) -> None:
    name = "n" * 250 + ".png"
    assert command("--output", name, cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def other_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 24
    (folder / "config.json").write_text(json.dumps(config))


def other_pictures(folder: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 80, "width": 80}}))


def a_list(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("[1, 2]")


def failing_template(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 1 / 0 }}"}))


def refusing_template(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ raise_exception('not this\nway') }}"}))


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


DAMAGES = [
    no_weights,
    cut_weights,
    empty_weights,
    other_size,
    other_pictures,
    a_list,
    failing_template,
    refusing_template,
    no_tokenizer,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    model, siglip = tmp_path / "model", tmp_path / "siglip"
    checkpoints.write_llava(model)
    checkpoints.write_siglip(siglip)
    damage(model)
    result = run("--model", model, "--siglip", siglip, "--video", "synthetic", "--frames", 2, "--repeats", 1)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("fastvid: ")]
    assert len(lines) == 1
    assert str(model) in lines[0]
    assert "an unexpected error" not in lines[0]
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "none", "./none", "a/b/c"):
        result = run("--model", source, "--video", "synthetic")
        assert result.exit_code == 2
        check_one_line(result, says=f"--model {source} cannot be loaded: there is no such folder")
