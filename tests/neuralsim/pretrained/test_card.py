"""The card of a world: every figure of its sources is on it, a miss is called a miss, a missing record is named, and the
folder it is written to stays whole."""

import json
import shutil
from pathlib import Path

import pytest

from neuralsim.evaluation.report import Metric, Report, Target
from neuralsim.pretrained.card import CardConfig, finish, write_card
from neuralsim.pretrained.world import open_world
from neuralsim.storage.manifest import Manifest

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


@pytest.fixture
def trained(tiny_world: Path, tmp_path: Path) -> Path:
    """A world with a record of its training."""
    folder = tmp_path / "trained"
    shutil.copytree(tiny_world, folder)
    (folder / "training.json").write_text(json.dumps(TRAINING))
    return folder


def test_the_card_tells_all_and_calls_a_miss_a_miss(trained: Path, tmp_path: Path) -> None:
    rows = (
        Metric(
            "iou", "block IoU", 0.8125, step=10, low=0.79, high=0.83, n=256, baseline=0.25, target=Target(least=0.8)
        ),
        Metric("pusher", "pusher off by", 12.5, "units", step=10, n=256, target=Target(most=10)),
    )
    measured = Report("pusht: 256 rollouts", rows, {"date": "2026-11-21"}).save(tmp_path / "measure.json")
    text = write_card(CardConfig(trained, measured, note="A sentence.")).read_text()
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
    assert open_world(trained, "cpu").card == text


def test_a_trained_folder_has_a_card_before_it_is_measured_and_a_manifest_of_all_that_counts(trained: Path) -> None:
    text = finish(trained).read_text()
    assert "abc1234" in text
    assert "Not measured yet" in text
    manifest = Manifest.read(trained)
    assert manifest is not None
    assert set(manifest.files) == {"config.json", "diffusion_pytorch_model.safetensors", "starts.npz", "training.json"}
    assert open_world(trained, "cpu").card == text


def test_a_card_can_be_written_by_hand_without_breaking_the_seal(trained: Path) -> None:
    finish(trained)
    (trained / "README.md").write_text("# Mine\n")
    assert open_world(trained, "cpu").card == "# Mine\n"


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.json"):
        write_card(CardConfig(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("training.json", "{", "not a JSON object"),
        ("training.json", "{}", "lacks recipe"),
        ("training.json", json.dumps(TRAINING | {"recipe": 3}), "make no card"),
        ("measure.json", "[]", "not a JSON object"),
        ("measure.json", '{"title": "x"}', "lacks circumstances"),
        ("measure.json", '{"title": "x", "circumstances": {}, "rows": [{}]}', "make no card"),
    ],
)
def test_a_record_that_is_none_is_named_and_the_old_card_stays(trained: Path, name: str, text: str, said: str) -> None:
    measured = Report("x", (), {}).save(trained / "measure.json")
    (trained / name).write_text(text)
    before = (trained / "README.md").read_text()
    with pytest.raises(ValueError, match=said):
        write_card(CardConfig(trained, measured))
    assert (trained / "README.md").read_text() == before
    assert not (trained / "world.json").exists()
