"""TrialVideo: planning trials as a video for people, and one picture of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch

from neuralsim.agents.planning.actors import OraclePolicy, PlanRecorder, imagine_paths
from neuralsim.agents.planning.diagnostics import encode_frames
from neuralsim.agents.planning.goal_trial import run_to_goal
from neuralsim.agents.planning.goals import StartGoal
from neuralsim.agents.planning.overlay import PANEL, ImaginedPaths, PlanPainter, PlanScene
from neuralsim.agents.planning.planner import Memory
from neuralsim.agents.planning.setup import PLANNER, PlanningSetup
from neuralsim.agents.policies.policy import NamedPolicy
from neuralsim.data.video_writer import VideoWriter
from neuralsim.envs.real_env import RealEnv
from neuralsim.world_model import State

SLOWER = 2
"""The video plays this many times slower than the world, so that people can follow."""
HOLD = 6
"""Frames for which the end of a trial stands still."""


class TrialVideo:
    """Policy that acts as the setup's planner does and draws every step of one trial, with the plans imagined.

    ``still``: the picture of its second decision (of its first where there is no other). ``add`` takes each frame.
    """

    def __init__(
        self, setup: PlanningSetup, env: RealEnv, pair: StartGoal, add: Callable[[np.ndarray], object]
    ) -> None:
        self.setup, self.env, self.pair, self.add = setup, env, pair, add
        self.recorder = PlanRecorder()
        self.named = setup.policy(PLANNER, env, pair, self.recorder)
        self.still: np.ndarray | None = None
        self._painter = PlanPainter(setup.goal_task)
        self._imagined: ImaginedPaths | None = None
        self._step = 0

    def predict(
        self,
        observation: Any,
        state: tuple[Memory, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[Memory, ...]]:
        """Return the planner's action and memory, after drawing the step."""
        before = len(self.recorder.decisions)
        action, state = self.named.policy.predict(observation, state, episode_start, deterministic)
        assert state is not None
        decided, plan = len(self.recorder.decisions), state[0].plan
        if decided > before and plan is not None:
            model, start = self._encode(observation)
            self._imagined = imagine_paths(model, self.setup.oracle, start, self.recorder.candidates(plan))
        picture = self._draw(self._step, reached=False)
        if before < decided <= 2:
            self.still = picture
        self._step += 1
        self.add(picture)
        return action, state

    def hold_end(self, steps: int, reached: bool) -> None:
        """Show the end, after ``steps`` steps, for a while."""
        last = self._draw(steps, reached)
        for _ in range(HOLD):
            self.add(last)

    def _encode(self, observation: Any) -> tuple[Any, State]:
        """The planner's model, and its state of the observation that the last decision was made on."""
        policy = self.named.policy
        if isinstance(policy, OraclePolicy):
            return policy.oracle, policy.oracle.at(self.env.state())
        model = self.setup.world.model
        return model, encode_frames(model, torch.from_numpy(np.asarray(observation))[None])

    def _draw(self, step: int, reached: bool) -> np.ndarray:
        assert self._imagined is not None
        decision = self.recorder.decisions[-1]
        goal_task = self.setup.goal_task
        off = goal_task.measure(self.env.state(), self.pair.goal)
        distances = ", ".join(f"{name} {off[name]:.0f} {unit}" for name, (unit, _) in goal_task.distances.items())
        scene = PlanScene(
            frame=self.env.frame(PANEL),
            goal_frame=self.pair.frame,
            goal=self.pair.goal,
            imagined=self._imagined,
            reached=reached,
            captions=(
                f"step {step} of {self.setup.config.budget}{', reached' if reached else ''}",
                f"off by: {distances.replace(' °', '°')}",
                f"pair {self.pair.index}: {self.pair.origin}",
                f"{decision.evaluations} plans in {decision.total_ms:.0f} ms, cost {decision.cost:.3g}",
            ),
        )
        return self._painter.draw(scene)


def record_trials(path: Path, setup: PlanningSetup, pairs: Sequence[StartGoal]) -> tuple[Path, Path]:
    """Write the trials at ``pairs``, one after the other, to ``path`` (mp4), and the first one's still beside it (PNG).

    Returns both paths.
    """
    env = setup.goal_task.make_env(setup.oracle.spec.height)
    video = VideoWriter(path, setup.oracle.spec.rate_hz / SLOWER)
    stills = []
    try:
        for pair in pairs:
            trial = TrialVideo(setup, env, pair, video.add)
            policy = NamedPolicy(PLANNER, trial, trial.named.observation)
            steps, solved = run_to_goal(env, setup.goal_task, pair, policy, setup.config.budget)
            trial.hold_end(steps, any(step is not None for step in solved.values()))
            stills.append(trial.still)
    finally:
        video.close()
    picture = path.with_suffix(".png")
    iio.imwrite(picture, np.asarray(stills[0]))
    return path, picture
