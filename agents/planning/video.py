"""Film: attempts at pairs as a video for people, and one picture of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from neuralsim.agents.planning.actors import OracleActor, PlanActor, imagine
from neuralsim.agents.planning.goal_trial import play
from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.overlay import PANEL, ImaginedPaths, PlanPainter, PlanScene
from neuralsim.agents.teleop.recorder import VideoWriter
from neuralsim.envs.oracle import Oracle
from neuralsim.envs.real_env import RealEnv
from neuralsim.envs.tasks.goal_task import GoalTask

SLOWER = 2
"""The film plays this many times slower than the world, so that people can follow."""
HOLD = 6
"""Frames for which the end of an attempt stands still."""


class TrialVideo:
    """Films one attempt: an Actor that does what ``actor`` does, and looks into what it imagines whenever it has decided
    anew. ``still``: the picture of its second decision (of its first where there is no other)."""

    def __init__(
        self,
        course: GoalTask,
        pair: StartGoal,
        actor: PlanActor | OracleActor,
        oracle: Oracle,
        budget: int,
        add: Callable[[np.ndarray], None],
    ) -> None:
        self.course, self.pair, self.actor, self.oracle, self.budget, self.add = (
            course,
            pair,
            actor,
            oracle,
            budget,
            add,
        )
        self.still: np.ndarray | None = None
        self._painter = PlanPainter(course)
        self._thought: ImaginedPaths | None = None
        self._looked = 0

    def __call__(self, env: RealEnv, step: int) -> np.ndarray:
        """See Actor."""
        action = self.actor(env, step)
        decided = len(self.actor.decisions)
        if decided > self._looked:
            actor = self.actor
            self._thought = imagine(actor.planner.model, self.oracle, actor.seen, actor.fan)
        picture = self.picture(env, step, False)
        if self._looked < decided <= 2:
            self.still = picture
        self._looked = decided
        self.add(picture)
        return action

    def hold(self, env: RealEnv, step: int, reached: bool) -> None:
        """Show how it ended for a while."""
        last = self.picture(env, step, reached)
        for _ in range(HOLD):
            self.add(last)

    def picture(self, env: RealEnv, step: int, reached: bool) -> np.ndarray:
        """What there is to see after ``step`` steps."""
        assert self._thought is not None
        decision = self.actor.decisions[-1]
        off = self.course.measure(env.state(), self.pair.goal)
        said = ", ".join(f"{name} {off[name]:.0f} {unit}" for name, (unit, _) in self.course.distances.items())
        said = said.replace(" °", "°")
        scene = PlanScene(
            truth=env.frame(PANEL),
            goal_frame=self.pair.frame,
            goal=self.pair.goal,
            thought=self._thought,
            reached=reached,
            words=(
                f"step {step} of {self.budget}{', reached' if reached else ''}",
                f"off by: {said}",
                f"pair {self.pair.index}: {self.pair.origin}",
                f"{decision.evaluations} plans in {decision.ms:.0f} ms, cost {decision.cost:.3g}",
            ),
        )
        return self._painter.draw(scene)


def film(
    path: Path,
    course: GoalTask,
    pairs: Sequence[StartGoal],
    actor_for: Callable[[StartGoal], PlanActor | OracleActor],
    oracle: Oracle,
    budget: int,
) -> tuple[Path, Path]:
    """Write the attempts at ``pairs``, one after the other, to ``path`` (mp4), and the first one's still beside it (PNG);
    returns both paths."""
    env = course.make(oracle.spec.height)
    video = VideoWriter(path, oracle.spec.rate_hz / SLOWER)
    stills = []
    try:
        for pair in pairs:
            camera = TrialVideo(course, pair, actor_for(pair), oracle, budget, video.add)
            steps, solved = play(env, course, pair, camera, budget)
            camera.hold(env, steps, any(step is not None for step in solved.values()))
            stills.append(camera.still)
    finally:
        video.close()
    picture = path.with_suffix(".png")
    iio.imwrite(picture, np.asarray(stills[0]))
    return path, picture
