"""The tutorial in miniature: a world that nothing was trained on is collected, learned and planned in, from nothing."""

from pathlib import Path

from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.agents.planning.config import PlanConfig
from neuralsim.agents.planning.evaluate import plan
from neuralsim.training.config import TrainConfig
from neuralsim.training.trainer import train


def test_a_world_trained_from_nothing_is_good_enough_to_plan_in(tmp_path: Path) -> None:
    data = tmp_path / "tworoom"
    for _ in collect(CollectConfig(world="tworoom", out=data, episodes=60, steps=60, workers=1)):
        pass
    world = train(TrainConfig(recipe="tworoom-latent-mini", data=data, out=tmp_path / "run", threads=1))
    held_out = tmp_path / "held-out"
    for _ in collect(CollectConfig(world="tworoom", out=held_out, episodes=41, steps=40, seed=1, workers=1)):
        pass
    report, files = plan(
        PlanConfig("tworoom", episodes=8, model=str(world), rounds=4, data=held_out, out=tmp_path / "plan", video=1)
    )
    rows = {row.key: row.value for row in report.rows}
    reached, by_chance = rows["planner_success"], rows["random_success"]
    assert reached >= by_chance + 0.25, (
        f"the planner reached {reached:.2f} of its goals, random actions {by_chance:.2f}"
    )
    assert {path.suffix for path in files} == {".json", ".mp4", ".png"}
