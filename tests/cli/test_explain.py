"""`fastvid explain`: the page shows what `explain` returns, and works in a browser without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import fastvid_kernels
from fastvid_kernels.cli.app import app
from fastvid_kernels.cli.common.descriptors import GRID, TOKENS_PER_FRAME, describe
from fastvid_kernels.cli.explain import RETENTIONS, page
from fastvid_kernels.cli.videos.video import SampledVideo, sample_video
from tests.cli.clips import pan, static, write_clip

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FRAMES = 8


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shots = [static(1, 12), pan(2, 12), static(3, 12)]
    return write_clip(tmp_path_factory.mktemp("clip") / "shots.mp4", [frame for shot in shots for frame in shot])


@pytest.fixture(scope="module")
def written(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "page.html"
    result = run("--video", clip, "--frames", FRAMES, "--retention", 0.12, "--output", output)
    assert result.exit_code == 0, result.output
    assert "no vision model ran" in result.output
    return output


def data_of(content: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def why(clip: Path, ratio: float) -> fastvid_kernels.Explanation:
    described = describe(sample_video(clip, FRAMES).frames)
    return fastvid_kernels.explain(described.tokens, described.attn, described.frame_features, retention_ratio=ratio)


def test_the_page_holds_what_explain_says(clip: Path, written: Path) -> None:
    data = data_of(written.read_text())
    assert [one["ratio"] for one in data["ratios"]] == sorted([*RETENTIONS, 0.12])
    assert data["ratios"][data["first"]]["ratio"] == 0.12
    for one in data["ratios"]:
        expected = why(clip, one["ratio"])
        assert one["salient"] == expected.salient.tolist()
        assert one["anchors"] == expected.anchors.tolist()
        pairs = {(token, anchor) for token, anchor in zip(one["joined"], one["into"], strict=True)}
        assert pairs == {
            (token, anchor)
            for record in expected.anchor_frames
            for token, anchor in zip(record.joined.tolist(), record.joined_anchor.tolist(), strict=True)
        }
    assert len(data["frames"]) == FRAMES
    segments = why(clip, 0.1).segments.tolist()
    assert [frame["segment"] for frame in data["frames"]] == [
        number for number, (start, end) in enumerate(segments, start=1) for _ in range(start, end)
    ]


def test_the_page_needs_nothing_from_elsewhere(written: Path) -> None:
    content = written.read_text()
    assert not re.search(r"https?://|@import|url\(|<link|src=\"(?!data:)", content)


def test_a_name_cannot_break_out_of_its_place() -> None:
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    name = "</script><!--<script>alert(1)</script>.mp4"
    video = SampledVideo(Path(name.replace("/", "\N{DIVISION SLASH}")), frames, (0,), (None,), 1)
    object.__setattr__(video, "path", type("Named", (), {"name": name})())
    described = describe(frames)
    explanation = fastvid_kernels.explain(described.tokens, described.attn, described.frame_features)
    content = page(video, {0.1: explanation}, 0.1)
    assert data_of(content)["title"] == name
    assert content.count("</script>") == 2
    # After "<!--<script>" an element would not end where it should.
    assert "<!--" not in content.partition('id="data">')[2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "page.png"], "--output must be a .html file, got page.png"),
        (["--output", "no/page.html"], "there is no folder no for --output"),
        (["--frames", "0"], "--frames must be from 1 to 256, got 0"),
        (["--retention", "2"], "--retention must be above 0 and at most 1, got 2"),
        (["--video", "missing.mp4"], "there is no file missing.mp4"),
    ],
)
def test_mistakes_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.strip() == f"fastvid: {complaint}"
    assert list(tmp_path.iterdir()) == []


def after(page: Path, script: str, folder: Path, width: int = 1280) -> str:
    """The page's document in a browser, after it has run `script`."""
    copy = folder / "page.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    result = subprocess.run(
        [*map(str, command), copy.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout


def said(document: str) -> str:
    found = re.search(r'id="said"[^>]*>(.*?)</p>', document, re.DOTALL)
    assert found
    return html.unescape(found[1])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
class TestInABrowser:
    def sentence(self, clip: Path, ratio: float, which: int) -> tuple[int, str]:
        expected, video = why(clip, ratio), sample_video(clip, FRAMES)
        anchor = int(expected.anchors[which])
        record = next(one for one in expected.anchor_frames if anchor in one.anchors)
        joined = record.joined[record.joined_anchor == anchor] // TOKENS_PER_FRAME
        numbers, counts = torch.unique(joined, return_counts=True)
        at = anchor % TOKENS_PER_FRAME
        frame = video.source_indices[anchor // TOKENS_PER_FRAME]
        where = f"Anchor in frame {frame}, row {at // GRID + 1}, column {at % GRID + 1}: "
        if len(joined) == 0:
            return anchor, f"{where}no token was merged into it."
        parts = ", ".join(
            f"{video.source_indices[number]} ({count})"
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        )
        tokens = "1 token was" if len(joined) == 1 else f"{len(joined)} tokens were"
        return anchor, f"{where}{tokens} merged into it, from frame{'s' * (len(numbers) > 1)} {parts}."

    def test_it_starts_with_the_ratio_that_was_asked_for(self, clip: Path, written: Path, tmp_path: Path) -> None:
        document = after(written, "", tmp_path)
        expected = why(clip, 0.12)
        kept, total = len(expected.indices), FRAMES * TOKENS_PER_FRAME
        assert f"12 %: {kept:,} of {total:,} tokens" in document
        assert document.count('class="anchor"') == len(expected.anchors)
        assert said(document).startswith("Choose an anchor")

    @pytest.mark.parametrize("event", ["focus()", "click()"])
    def test_an_anchor_tells_what_joined_it(self, clip: Path, written: Path, tmp_path: Path, event: str) -> None:
        anchor, sentence = self.sentence(clip, 0.12, 3)
        document = after(written, f"document.querySelector('[data-token=\"{anchor}\"]').{event}", tmp_path)
        assert said(document) == sentence
        assert len(re.findall(r'<button[^>]*aria-pressed="true"', document)) == (event == "click()")

    def test_the_slider_shows_another_ratio(self, clip: Path, written: Path, tmp_path: Path) -> None:
        index = sorted([*RETENTIONS, 0.12]).index(0.3)
        script = (
            f"const slider = document.getElementById('ratio'); slider.value = {index};"
            "slider.dispatchEvent(new Event('input'));"
        )
        document = after(written, script, tmp_path)
        expected = why(clip, 0.3)
        assert f"30 %: {len(expected.indices):,} of" in document
        assert document.count('class="anchor"') == len(expected.anchors)

    def test_arrow_keys_and_escape(self, clip: Path, written: Path, tmp_path: Path) -> None:
        key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}', bubbles: true}}));"
        start = "document.querySelector('button.anchor').focus();"
        document = after(written, start + key.format("ArrowRight") * 2, tmp_path)
        assert said(document) == self.sentence(clip, 0.12, 2)[1]
        document = after(written, start + key.format("Escape"), tmp_path)
        assert said(document).startswith("Choose an anchor")

    @pytest.mark.parametrize("width", [390, 1280])
    def test_nothing_is_wider_than_the_window(self, written: Path, tmp_path: Path, width: int) -> None:
        script = "document.title = `${document.documentElement.scrollWidth <= innerWidth} ${innerWidth}`;"
        assert "<title>true " in after(written, script, tmp_path, width)
