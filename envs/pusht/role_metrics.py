"""Metrics of a world action model's roles beside Push-T's simulator: poses in predicted frames, response to actions, executability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from neuralsim.envs.pusht.env import PushTRealEnv
from neuralsim.envs.pusht.executability import (
    Execution,
    decode_tokens,
    executability_rows,
    execute,
    had_full_effect,
    pose_error,
    render_states,
    replay,
)
from neuralsim.envs.pusht.scene_metrics import MOVED, beyond
from neuralsim.envs.pusht.state_estimator import PushTStateEstimate, PushTStateEstimator
from neuralsim.evaluation.plots import draw_videos
from neuralsim.evaluation.report import Metric, Target, metric_of
from neuralsim.evaluation.role_metrics import (
    RoleMetrics,
    act_rows,
    closure_rows,
    dream_rows,
    foresee_rows,
    infer_rows,
    prefix_rows,
    reported_steps,
    simulate_rows,
    value_rows,
)
from neuralsim.evaluation.role_predictions import RolePredictions
from neuralsim.evaluation.statistics import Bootstrap, median, turn

SHOWN = 4
"""Scenes in the picture."""


class PushTRoleMetrics(RoleMetrics):
    """All roles of a Push-T model in frames of ``size`` pixels."""

    def __init__(self, size: int) -> None:
        self.real_env, self.estimator = PushTRealEnv(size=size), PushTStateEstimator(size)

    def rows(
        self, play: RolePredictions, demos: RolePredictions, tick: Callable[[str, int, int], None]
    ) -> list[Metric]:
        on_play, on_demos = (Bootstrap(x.queries.episodes, seed=x.seed) for x in (play, demos))
        foreseen = self._execute_foreseen(demos)
        actions, states = play.queries.actions.cpu().numpy(), play.queries.states
        assert states is not None
        others = actions[play.queries.others]
        own, other = (replay(self.real_env, states[:, 0], x) for x in (actions, others))
        counts, counts_others = had_full_effect(own, actions), had_full_effect(other, others)
        roles: Sequence[tuple[str, Callable[[], Iterator[Metric]]]] = (
            ("simulate", lambda: simulate_rows(play, on_play)),
            ("simulate", lambda: spread_rows(play, own[:, -1], other[:, -1], self.estimator, on_play)),
            ("act", lambda: act_rows(demos, on_demos)),
            ("infer", lambda: infer_rows(play, counts, on_play)),
            ("infer", lambda: closure_rows(play, counts, counts_others, on_play)),
            ("foresee", lambda: foresee_rows(demos, on_demos)),
            ("foresee", lambda: pose_rows(demos, foreseen.frames, self.estimator, on_demos)),
            ("dream", lambda: dream_rows(demos, on_demos)),
            ("prefixes", lambda: prefix_rows(demos, on_demos)),
            ("value", lambda: value_rows(demos, on_demos)),
            (
                "executability",
                lambda: executability_rows(demos, foreseen, self.real_env, self.estimator, on_demos),
            ),
        )
        rows = []
        for i, (role, measure) in enumerate(roles):
            tick(role, i, len(roles))
            rows += list(measure())
        return rows

    def draw(self, path: Path, demos: RolePredictions) -> Path:
        queries, k, foreseen = demos.queries, demos.queries.steps, self._execute_foreseen(demos)
        assert queries.states is not None
        moved = beyond(queries.states[:, -1, 2:5], queries.states[:, 0, 2:5], MOVED)
        _, first = np.unique(queries.episodes, return_index=True)
        first_of_episode = np.isin(np.arange(len(queries)), first)
        rows = np.argsort(-(2 * moved + first_of_episode.astype(int)), kind="stable")[:SHOWN]
        steps = sorted({round(x) for x in np.linspace(0, k, 7)})
        true = queries.frames[rows][:, steps]
        predicted = np.concatenate([queries.frames[rows, :1], foreseen.frames[rows]], 1)[:, steps]
        replayed = render_states(self.real_env, foreseen.states[rows][:, steps])
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_videos(path, {"true": true, "foreseen": predicted, "replayed": replayed}, steps)
        return path

    def close(self) -> None:
        self.real_env.close()

    def _execute_foreseen(self, demos: RolePredictions) -> Execution:
        """Execute the predicted video of ``demos``, once."""
        if self._foreseen is None or self._foreseen[0] is not demos:
            self._foreseen = (demos, execute(demos, self.real_env, demos.foreseen))
        return self._foreseen[1]

    _foreseen: tuple[RolePredictions, Execution] | None = None


def pose_rows(
    demos: RolePredictions, foreseen: np.ndarray, estimator: PushTStateEstimator, boot: Bootstrap
) -> Iterator[Metric]:
    """Locate pusher and block in predicted frames uint8 ``(n, k, h, w, 3)``, beside the last true frame, and beside the frames simulated
    from the true actions (the floor)."""
    states = demos.queries.states
    assert states is not None
    last_seen, steps = estimator(demos.queries.frames[:, 0]), reported_steps(demos.queries.steps)
    simulated = decode_tokens(demos, demos.simulated[:, [step - 1 for step in steps]])
    for i, step in enumerate(steps):
        ours, copied, floor = (
            pose_error(estimator, estimate, states[:, step])
            for estimate in (estimator(foreseen[:, step - 1]), last_seen, estimator(simulated[:, i]))
        )
        for field, unit in (("pusher", "units"), ("block", "units"), ("angle", "°")):
            yield metric_of(
                boot(median, getattr(ours, field)),
                f"foresee/{field}",
                f"foresee: error of the {field} (median; floor: simulated from the true actions)",
                boot(median, getattr(copied, field)),
                unit=unit,
                step=step,
                floor=median(getattr(floor, field)),
                better="low",
            )


def spread_rows(
    play: RolePredictions,
    ends: np.ndarray,
    ends_others: np.ndarray,
    estimator: PushTStateEstimator,
    boot: Bootstrap,
) -> Iterator[Metric]:
    """Compare how far another query's actions lead from where the own ones do, imagined over true.

    ``ends`` and ``ends_others`` ``(n, 5)``: where the simulator ends under the own and under the other actions, from the same state.
    """
    queries = play.queries
    assert queries.states is not None
    starts, others = queries.states[:, 0], queries.actions[queries.others]
    whole = np.logical_and.reduce([estimator.of_state(x)[2] for x in (ends, ends_others)])
    true = _spread(_poses_of(ends), _poses_of(ends_others))
    for key, label, own, other in (
        ("spread", "simulate", play.simulated, play.simulated_otherwise),
        ("spread-jointly", "simulate, joint stream", play.simulated_jointly, play.simulate_jointly(others)),
    ):
        imagined = _spread(*(_poses(estimator(_last_frames(play, tokens)), starts) for tokens in (own, other)))
        for i, (field, target) in enumerate((("pusher", Target(0.8, 1.25)), ("block", None), ("angle", None))):
            pairs = np.stack([imagined[i], true[i]], 1)
            pairs[~whole] = np.nan
            text = f"{label}: spread of the {field} under other actions, as a share of the true one"
            yield metric_of(boot(_ratio, pairs), f"{key}/{field}", text, step=queries.steps, target=target)


def _last_frames(predictions: RolePredictions, tokens: torch.Tensor) -> np.ndarray:
    return decode_tokens(predictions, tokens[:, -1:])[:, 0]


def _poses(estimate: PushTStateEstimate, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pusher ``(n, 2)`` and block ``(n, 3)``; a thing that is not found counts as not having moved."""
    return (
        np.where(estimate.pusher_found[:, None], estimate.pusher, starts[:, :2]),
        np.where(estimate.block_found[:, None], estimate.block, starts[:, 2:5]),
    )


def _poses_of(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return states[:, :2], states[:, 2:5]


def _spread(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances between two scenes: pusher, block, angle, ``(n,)`` each."""
    return (
        np.linalg.norm(one[0] - other[0], axis=-1),
        np.linalg.norm(one[1][:, :2] - other[1][:, :2], axis=-1),
        turn(one[1][:, 2], other[1][:, 2]),
    )


def _ratio(pairs: np.ndarray) -> float:
    """Sum of the imagined spreads over the sum of the true ones."""
    total = pairs[:, 1].sum()
    return float(pairs[:, 0].sum() / total) if total > 0 else float("nan")
