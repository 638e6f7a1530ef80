"""Video of a policy in the real environment and in imagination, from the same starts, side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from neuralsim.agents.evaluation.eval_envs import EvalEnv, ImaginedEvalEnv, RealEvalEnv
from neuralsim.agents.evaluation.rollout import evaluate
from neuralsim.agents.policies.policy import ObservationKind, Policy
from neuralsim.data.video_writer import VideoWriter
from neuralsim.envs.tasks.rl_task import RLTask
from neuralsim.pretrained.starts import Starts
from neuralsim.pretrained.world import World

SCALE = 4
"""Pixels of video per pixel of the world."""
GAP = 12
"""Pixels between pictures, and of the line of text."""
GREEN, GREY, WHITE = (60, 150, 60), (130, 130, 130), (255, 255, 255)
HOLD = 10
"""Frames for which the last picture is shown."""


def film_policy(
    path: Path, policy: Policy, world: World, rl_task: RLTask, starts: Starts, observation: ObservationKind = "features"
) -> Path:
    """Write ``path`` (mp4): one column per start, the real environment (where it is known) above, imagination below. A picture's
    border turns green on success, and grey when the episode ended without."""
    n = len(starts)
    eval_envs: dict[str, EvalEnv] = (
        {} if not rl_task.has_real_world else {"real": RealEvalEnv(world, rl_task, starts, n, observation)}
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


def _play(eval_env: EvalEnv, policy: Policy, succeeds: bool) -> list[list[np.ndarray]]:
    """Run the policy; returns one bordered picture per row, for the start and every step."""
    shots: list[list[np.ndarray]] = []

    def add_shot(live: np.ndarray, success: np.ndarray) -> None:
        colours = [GREEN if s and succeeds else WHITE if a else GREY for s, a in zip(success, live, strict=True)]
        shots.append([_with_border(f, c) for f, c in zip(eval_env.frames(), colours, strict=True)])

    evaluate(policy, eval_env, eval_env.n_envs, watch=add_shot)
    return shots


def _with_border(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
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
