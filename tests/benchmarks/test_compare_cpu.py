import json

import pytest
import torch

from benchmarks import compare_cpu
from benchmarks.agreement import agreement

SMALL = ["--size", "12x36x32", "--dtype", "float32", "--video", "few cuts", "--rounds", "2", "--inputs", "2"]


def test_a_small_comparison_reports_every_arm(tmp_path, capsys):
    output = tmp_path / "comparison.json"
    assert compare_cpu.main([*SMALL, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert report["failed"] == []
    (configuration,) = report["configurations"]
    arms = {arm["name"]: arm for arm in configuration["arms"]}
    assert set(arms) == {*compare_cpu.PRUNING_ARMS, *compare_cpu.LOWER_BOUNDS}
    assert arms["eager"]["times_eager"] == 1
    assert arms["eager"]["overlap"] == 1
    for arm in arms.values():
        spread = arm["milliseconds"]
        assert 0 < spread["p20"] <= spread["p50"] <= spread["p80"]
    printed = capsys.readouterr().out
    assert "12x36x32" in printed
    assert "OneVision" in printed


def wrong_indices(video):
    tokens, indices = compare_cpu.reference_result(video)
    return tokens, indices ^ 1


def wrong_tokens(video):
    tokens, indices = compare_cpu.reference_result(video)
    return tokens * 1.01, indices


@pytest.mark.parametrize("broken", [wrong_indices, wrong_tokens])
def test_no_figure_is_printed_for_a_backend_that_is_wrong(tmp_path, capsys, monkeypatch, broken):
    monkeypatch.setitem(compare_cpu.PRUNING_ARMS, "eager", broken)
    monkeypatch.setattr(compare_cpu, "measure", lambda *_, **__: pytest.fail("timed a wrong backend"))
    output = tmp_path / "comparison.json"
    assert compare_cpu.main([*SMALL, "--output", str(output)]) == 1
    report = json.loads(output.read_text())
    assert report["configurations"] == []
    assert [failure["size"] for failure in report["failed"]] == ["12x36x32"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "not timed" in printed.err


def test_reference_settles_equal_attention_by_index():
    video = compare_cpu.Configuration("12x36x32", "float32", "few cuts").make_inputs(1)[0]
    level = video._replace(attn=torch.full_like(video.attn, 1 / 36))
    _, indices = compare_cpu.reference_result(level)
    # K = 3 tokens a frame; every frame has at least one salient token, which is its first.
    assert torch.isin(torch.arange(12) * 36, indices).all()


def test_agreement_of_two_overlapping_results():
    reference = torch.eye(4), torch.tensor([0, 2, 5, 7])
    result = torch.eye(4) * torch.tensor([[1.0], [1.1], [1.0], [1.0]]), torch.tensor([0, 2, 6, 7])
    found = agreement(result, reference, relative_tolerance=0.05)
    assert found.overlap == 0.75
    assert not found.same_indices
    assert found.close_rows == pytest.approx(2 / 3)
