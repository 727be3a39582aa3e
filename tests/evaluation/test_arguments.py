"""Which arguments of lmms-eval are ours, and how they are parsed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from fastvid_kernels import apply_fastvid, methods
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.evaluation.arguments import OURS, of_apply_fastvid, split
from fastvid_kernels.evaluation.naming import label, name_folders_by_settings
from tests.evaluation import stand_in


def test_ours_are_those_of_apply_fastvid() -> None:
    named = set(inspect.signature(apply_fastvid).parameters) - {"model", "config", "hyperparameters"}
    assert set(OURS) == named | set(PruneConfig.__dataclass_fields__)


def test_split() -> None:
    given = {"pretrained": "x", "tau": 0.8, "max_frames_num": 32, "method": "evs", "sink": True, "siglip": "y"}
    ours, theirs = split(given)
    assert ours == {"tau": 0.8, "method": "evs", "sink": True, "siglip": "y"}
    assert theirs == {"pretrained": "x", "max_frames_num": 32}


def test_a_method_has_its_options_after_colons() -> None:
    asked = of_apply_fastvid({"method": "fastvid:segmentation=fixed:merging=uniform", "retention_ratio": 0.2})
    assert asked["method"].name == "fastvid"
    assert asked["method"].chosen == {"segmentation": "fixed", "merging": "uniform"}
    assert asked["retention_ratio"] == 0.2
    assert of_apply_fastvid({"tau": 0.5}) == {"tau": 0.5, "method": None}


@pytest.mark.parametrize(("text", "error"), [("nothing", ValueError), ("evs:merging=uniform", TypeError)])
def test_an_unknown_method_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        of_apply_fastvid({"method": text})


def test_options_are_numbers_where_they_look_like_them() -> None:
    assert methods.parse("prunevid:threshold=0.5").chosen == {"threshold": 0.5}


def test_folders_hold_all_settings_and_no_separator() -> None:
    ours = {"retention_ratio": 0.1, "method": "fastvid:merging=uniform", "siglip": "google/siglip"}
    assert label(ours) == "method=fastvid-merging=uniform,retention_ratio=0.1,siglip=google-siglip"


def test_lmms_eval_names_folders_by_settings(monkeypatch: Any) -> None:
    stand_in.install(monkeypatch)
    from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker

    for _ in range(2):
        name_folders_by_settings()
    named = GeneralConfigTracker._get_model_name
    assert named("pretrained=a/b,tau=0.5,retention_ratio=0.2") == "a/b,retention_ratio=0.2,tau=0.5"
    assert named("pretrained=a/b,max_frames_num=32") == "a/b"
