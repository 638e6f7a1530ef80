"""CarRacing: Gymnasium's CarRacing-v3 behind NeuralSim's spaces: small frames, normalised actions, three ticks a step.

The car's camera turns and moves with it, and every reset draws another track, so nothing in a frame stands still. A frame
does not show the whole state, and the simulator cannot be put at a given state: episodes begin at resets.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, Literal

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from neuralsim.envs.real_env import check_views
from neuralsim.spec import WorldSpec

with contextlib.redirect_stdout(io.StringIO()):
    try:
        from gymnasium.envs.box2d.car_racing import FPS, CarRacing
    except gym.error.DependencyNotInstalled as error:
        raise ModuleNotFoundError(
            "CarRacing needs Box2D: pip install 'neuralsim[car]' (or box2d itself; not gymnasium[box2d], which brings "
            "pygame-ce in beside pygame)"
        ) from error

TICKS = 3
"""The simulator's ticks (50 a second) to a step."""
SETTLE = 50
"""Ticks before the first frame: for the first second the camera is still coming down."""
STATE_NAMES = ("speed", "slip", "turn_rate", "steering", "off_road")
"""Figures of the dashboard at the foot of the frame, in units a second, radians a second and radians, and the share of the wheels
that stand on grass."""


def car_racing_spec(size: int = 64, context: int = 4) -> WorldSpec:
    """The WorldSpec that the real and the learned CarRacing share."""
    return WorldSpec(
        name="carracing",
        height=size,
        width=size,
        action_names=("steer", "gas", "brake"),
        action_units=("of full lock", "of full gas", "of full brake"),
        action_scale=(1.0, 0.5, 0.5),
        action_offset=(0.0, 0.5, 0.5),
        rate_hz=FPS / TICKS,
        context=context,
    )


class CarRacingRealEnv(gym.Env[np.ndarray, np.ndarray]):
    """Drive a car round a track, seen from above.

    Observation: the frame, uint8 ``(size, size, 3)``, or with ``observation="state"`` float32 ``(5,)``: see STATE_NAMES.
    Action: float32 ``(3,)`` in [-1, 1]: steer (-1 full left), gas and brake (-1 none, 1 full). Reward: CarRacing's own,
    summed over the ticks, in tenths: a new tile of the road is some 0.3, a step costs 0.03. Terminates off the map (-10) and at
    the end of a lap. ``info``: ``off_road``, ``speed``, ``lap_finished``. A copy or an unpickled environment replays the episode so far.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS / TICKS}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        size: int = 64,
        observation: Literal["pixels", "state"] = "pixels",
        render_mode: str | None = None,
    ) -> None:
        check_views(observation, render_mode)
        self.spec_world = car_racing_spec(size)
        self.observation_kind = observation
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        seen = spaces.Box(0, 255, self.spec_world.frame_shape, np.uint8)
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32) if observation == "state" else seen
        self._game = _Game()
        self._track: int | None = None
        """Seed of the track; None before the first reset."""
        self._driven: list[np.ndarray] = []
        """Controls of each step so far."""

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the simulator, which holds C objects: track and controls make it again."""
        return {k: v for k, v in self.__dict__.items() if k != "_game"} | {"_driven": list(self._driven)}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        self._game = _Game()
        if self._track is not None:
            self._begin()
            for controls in self._driven:
                self._drive(controls)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new track, the car standing at its beginning."""
        super().reset(seed=seed)
        if unknown := set(options or {}):
            raise ValueError(f"options: unknown {sorted(unknown)}; CarRacingRealEnv.reset takes none")
        self._track, self._driven = int(self.np_random.integers(2**31)), []
        self._begin()
        return self._observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Three ticks of the simulator under ``action``."""
        if self._game.car is None:
            raise gym.error.ResetNeeded("CarRacingRealEnv.step before reset: call env.reset(seed=...) first")
        action = self.spec_world.check_actions(action)
        if action.ndim != 1:
            raise ValueError(f"action: expected shape (3,), got {action.shape}")
        controls = np.array(self.spec_world.action_offset) + np.array(self.spec_world.action_scale) * action
        self._driven.append(controls)
        reward, terminated, lap_finished = self._drive(controls)
        return self._observe(), reward, terminated, False, self._info(lap_finished)

    def render(self) -> np.ndarray:
        """Return the current frame, uint8 ``(size, size, 3)``."""
        return self.frame(self.spec_world.height)

    def frame(self, size: int) -> np.ndarray:
        """Draw the scene, uint8 ``(size, size, 3)``."""
        return cv2.resize(self._game.picture(), (size, size), interpolation=cv2.INTER_AREA)

    def state(self) -> np.ndarray:
        """Return the figures of STATE_NAMES, float64 ``(5,)``."""
        car = self._game.car
        if car is None:
            raise gym.error.ResetNeeded("CarRacingRealEnv.state before reset: call env.reset(seed=...) first")
        speed, slip = (float(np.dot(car.hull.linearVelocity, car.hull.GetWorldVector(way))) for way in ((0, 1), (1, 0)))
        steering = sum(wheel.joint.angle for wheel in car.wheels[:2]) / 2
        return np.array([speed, slip, -car.hull.angularVelocity, -steering, np.mean([not w.tiles for w in car.wheels])])

    def road_ahead(self, distance: float) -> tuple[float, float]:
        """Return the middle of the road ``distance`` units ahead, as the car sees it: units to the right, and to the front."""
        game = self._game
        if game.car is None:
            raise gym.error.ResetNeeded("CarRacingRealEnv.road_ahead before reset: call env.reset(seed=...) first")
        track = np.array([point[2:] for point in game.track])
        position = np.array(game.car.hull.position)
        nearest = int(np.linalg.norm(track - position, axis=1).argmin())
        ahead = track[(nearest + max(1, round(distance / 3.5))) % len(track)] - position
        return float(np.dot(ahead, game.car.hull.GetWorldVector((1, 0)))), float(
            np.dot(ahead, game.car.hull.GetWorldVector((0, 1)))
        )

    def close(self) -> None:
        self._game.close()

    def _observe(self) -> np.ndarray:
        return self.render() if self.observation_kind == "pixels" else self.state().astype(np.float32)

    def _begin(self) -> None:
        self._game.reset(seed=self._track)
        for _ in range(SETTLE):
            self._game.step(np.zeros(3))

    def _drive(self, controls: np.ndarray) -> tuple[float, bool, bool]:
        """Three ticks under ``controls`` ``(3,)``: reward, terminated, lap finished."""
        reward, terminated, ending = 0.0, False, {}
        for _ in range(TICKS):
            _, gained, terminated, _, ending = self._game.step(controls)
            reward += gained / 10
            if terminated:
                break
        return reward, terminated, bool(ending.get("lap_finished", False))

    def _info(self, lap_finished: bool) -> dict[str, Any]:
        state = self.state()
        return {"speed": float(state[0]), "off_road": float(state[4]), "lap_finished": lap_finished}


class _Game(CarRacing):
    """CarRacing that draws only when asked for a picture: drawing is four fifths of a tick."""

    def picture(self) -> np.ndarray:
        """Draw the scene, uint8 ``(96, 96, 3)``."""
        return super()._render("state_pixels")

    def _render(self, mode: str) -> None:
        pass
