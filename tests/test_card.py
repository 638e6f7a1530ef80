"""Promises of the card: every figure of its sources is on it, a miss is called a miss, and a missing record is named."""

import json
from pathlib import Path

import pytest

from neuralsim.card import Card, write_card
from neuralsim.report import Bar, Report, Row

TRAINING = {
    "recipe": {"name": "pusht-video", "codec_stage": {"steps": 7}, "dynamics_stage": {"steps": 11}},
    "seed": 5,
    "episodes": 40,
    "training_frames": 3800,
    "collection_seeds": [0],
    "hours": 1.25,
    "precision": "bfloat16",
    "commit": "abc1234",
    "hardware": "a processor, 2 cores",
}


def test_the_card_tells_all_and_calls_a_miss_a_miss(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(TRAINING))
    rows = (
        Row("iou", "block IoU", 0.8125, step=10, low=0.79, high=0.83, n=256, baseline=0.25, bar=Bar(least=0.8)),
        Row("pusher", "pusher off by", 12.5, "units", step=10, n=256, bar=Bar(most=10)),
    )
    measured = Report("pusht: 256 rollouts", rows, {"date": "2026-11-21"}).save(tmp_path / "measure.json")
    text = write_card(Card(tmp_path, measured, note="A sentence.")).read_text()
    for word in (
        "pusht-video",
        "abc1234",
        "codec 7, dynamics 11",
        "1.25 hours",
        "2 cores",
        "2026-11-21",
        "A sentence.",
    ):
        assert word in text
    lines = text.splitlines()
    assert any("block IoU" in x and "0.812" in x and "0.79 to 0.83" in x and "≥ 0.8 met" in x for x in lines)
    assert any("pusher off by" in x and "12.5 units" in x and "≤ 10 missed" in x for x in lines)


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.json"):
        write_card(Card(tmp_path))
