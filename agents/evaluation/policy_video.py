"""PolicyFilm: a policy in truth and in the dream, from the same starts, side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from neuralsim.agents.evaluation.eval_envs import EvalEnv, ImaginedEvalEnv, Observation, RealEvalEnv
from neuralsim.agents.evaluation.rollout import evaluate
from neuralsim.agents.policies.policy import Policy
from neuralsim.agents.teleop.recorder import VideoWriter
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.pretrained.world import Starts, World

SCALE = 4
"""Pixels of film to a pixel of the world."""
GAP = 12
"""Pixels between pictures, and of the line of words."""
GREEN, GREY, WHITE = (60, 150, 60), (130, 130, 130), (255, 255, 255)
HOLD = 10
"""Frames for which the end stands still."""


def film_policy(
    path: Path, policy: Policy, world: World, rl_task: RLTask, starts: Starts, observation: Observation = "features"
) -> Path:
    """Write ``path`` (mp4): one column per start, truth (where it is known) above, dream below; a picture's frame turns green when
    the wish came true there, and grey when the episode ended otherwise."""
    n = len(starts)
    eval_envs: dict[str, EvalEnv] = (
        {} if rl_task.truth is None else {"truth": RealEvalEnv(world, rl_task, starts, n, observation)}
    )
    eval_envs["dream"] = ImaginedEvalEnv(world, rl_task, starts, n, observation, float("inf"))
    shots = {name: _play(eval_env, policy, rl_task.outcome == "success") for name, eval_env in eval_envs.items()}
    video = VideoWriter(path, world.spec.rate_hz)
    try:
        length = max(len(shot) for shot in shots.values())
        for t in [*range(length), *[length - 1] * HOLD]:
            rows = {name: shot[min(t, len(shot) - 1)] for name, shot in shots.items()}
            video.add(_page(rows, min(t, length - 1)))
    finally:
        video.close()
    return path


def _play(eval_env: EvalEnv, policy: Policy, wins: bool) -> list[list[np.ndarray]]:
    """The arena's pictures after each step, framed by what became of them."""
    shots: list[list[np.ndarray]] = []

    def look(live: np.ndarray, won: np.ndarray) -> None:
        colours = [GREEN if w and wins else WHITE if alive else GREY for w, alive in zip(won, live, strict=True)]
        shots.append([_framed(f, c) for f, c in zip(eval_env.frames(), colours, strict=True)])

    evaluate(policy, eval_env, eval_env.n_envs, watch=look)
    return shots


def _framed(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    large = cv2.resize(frame, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    edge = GAP // 2
    return cv2.copyMakeBorder(large, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=colour)


def _page(rows: dict[str, list[np.ndarray]], step: int) -> np.ndarray:
    lines = []
    for name, pictures in rows.items():
        strip = np.concatenate(pictures, 1)
        head = np.full((2 * GAP, strip.shape[1], 3), 255, np.uint8)
        words = f"{name}, step {step}"
        cv2.putText(head, words, (GAP, int(1.5 * GAP)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
        lines += [head, strip]
    page = np.concatenate(lines)
    return page[: len(page) // 2 * 2, : page.shape[1] // 2 * 2]
