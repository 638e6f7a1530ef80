"""One episode loop: what it records, when it ends, and what it shows to policies."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from neuralsim.agents.policies.policy import NamedPolicy, ObservationKind
from neuralsim.agents.policies.rollout import RolloutConfig, SingleEnv, StepResult, rollout, run
from neuralsim.spec import WorldSpec

SPEC = WorldSpec("counter", 8, 8, ("push",), ("unit",), (1.0,), 10.0, 1)


class Counter(gym.Env):
    """Counts its steps; terminates after ``end`` and truncates after ``cut``."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = SPEC.action_space()
    spec_world = SPEC
    own_observation = "own"

    def __init__(self, end: int = 99, cut: int = 99) -> None:
        self.end, self.cut, self.count = end, cut, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0 if options is None else int(options["state"][0])
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return (
            self._observe(),
            0.1 * self.count,
            self.count == self.end,
            self.count == self.cut,
            {"success": self.count == 2},
        )

    def render(self) -> np.ndarray:
        return np.full(SPEC.frame_shape, self.count, np.uint8)

    def state(self) -> np.ndarray:
        return np.array([self.count], np.float64)

    def _observe(self) -> np.ndarray:
        return np.array([-self.count], np.float32)


class Notes:
    """A policy that notes what it was shown, and counts in its state."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.starts: list[bool] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        self.seen.append(observation)
        self.starts.append(bool(episode_start[0]))
        step = state or 0
        return np.array([step / 10], np.float32), step + 1


def episode(env: Counter, kind: ObservationKind = "env", **settings: Any):
    notes = Notes()
    return rollout(NamedPolicy("notes", notes, kind), env, RolloutConfig(**settings), {"seed": 3}), notes


def test_an_episode_holds_all_that_passed() -> None:
    found, notes = episode(Counter(end=3), states=True)
    assert len(found) == 3
    assert found.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.states is not None
    assert found.states[:, 0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.actions[:, 0], [0, 0.1, 0.2])
    np.testing.assert_allclose(found.rewards, [0.1, 0.2, 0.3])
    assert found.terminated.tolist() == [False, False, True]
    assert not found.truncated.any()
    assert found.provenance == {"seed": 3}
    assert notes.starts == [True, False, False]


@pytest.mark.parametrize(
    ("env", "settings", "terminated", "truncated"),
    [
        (Counter(cut=2), {}, [0, 0], [0, 1]),
        (Counter(), {"steps": 3}, [0, 0, 0], [0, 0, 1]),
        (Counter(end=2), {"steps": 4, "stop_at_end": False}, [0, 1, 0, 0], [0, 0, 0, 1]),
        (Counter(end=3), {"steps": 3, "stop_at_end": False}, [0, 0, 1], [0, 0, 1]),
        (Counter(end=3), {"steps": 3}, [0, 0, 1], [0, 0, 0]),
    ],
)
def test_where_an_episode_ends(env: Counter, settings: dict, terminated: list[int], truncated: list[int]) -> None:
    found, _ = episode(env, **settings)
    assert found.terminated.tolist() == [bool(x) for x in terminated]
    assert found.truncated.tolist() == [bool(x) for x in truncated]


def test_a_policy_sees_the_kind_of_observation_that_it_asks_for() -> None:
    for kind, first in (("env", [0.0]), ("state", [5.0]), ("own", "own"), ("nothing", None)):
        _, notes = episode(Counter(), kind, steps=1, reset={"options": {"state": [5]}})
        if kind == "env":
            assert notes.seen[0].tolist() == [-5.0]
        elif kind == "state":
            assert notes.seen[0].tolist() == first
            assert notes.seen[0].dtype == np.float32
        else:
            assert notes.seen[0] == first if first is not None else notes.seen[0] is None
    _, notes = episode(Counter(), "pixels", steps=1)
    assert notes.seen[0].shape == SPEC.frame_shape


def test_single_and_many_share_the_loop() -> None:
    class Rows:
        def __init__(self) -> None:
            self.steps: list[list[bool]] = []

        def observe(self) -> np.ndarray:
            return np.zeros((3, 1))

        def step(self, actions: np.ndarray, live: np.ndarray) -> StepResult:
            self.steps.append(live.tolist())
            ends = np.array([len(self.steps) == n for n in (1, 3, 2)])
            none = np.zeros(3, bool)
            return StepResult(np.zeros(3), ends, none, none, none)

    rows = Rows()
    lives = [live.tolist() for _, live in run(Notes(), rows, np.array([True, True, False]))]
    assert rows.steps == [[True, True, False], [False, True, False], [False, True, False]]
    assert lives == [[False, True, False], [False, True, False], [False, False, False]]
    single = SingleEnv(Counter(), steps=2)
    results = [result for result, _ in run(Notes(), single, np.ones(1, bool))]
    assert [bool(r.success[0]) for r in results] == [False, True]
    assert single.taken == 2
    assert single.ended == (False, False)
