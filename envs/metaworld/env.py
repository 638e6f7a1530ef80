"""Meta-World behind NeuralSim's spaces: a robot arm, two cameras, proprioception and an instruction in words.

The arm, a Sawyer held by its hand, moves over a table; fifty tasks by name. A frame is four of Meta-World's steps (20 Hz).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from neuralsim.envs.metaworld.instructions import INSTRUCTIONS, LONGEST, encode, task_name
from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from neuralsim.envs.metaworld.renderer import ArmRenderer
    from neuralsim.envs.metaworld.simulator import ArmSimulator, ArmState

FRAME_SKIP = 4
"""Steps of Meta-World to a frame."""
STEP_M = 0.01
"""Metres that the hand's target moves in one of Meta-World's steps at full scale."""
STEPS_HZ = 80.0
"""Steps of Meta-World a second."""
STATE_NAMES = (
    *("hand_x", "hand_y", "hand_z", "gripper"),
    *("object_x", "object_y", "object_z", "object_qx", "object_qy", "object_qz", "object_qw"),
    *("other_x", "other_y", "other_z", "other_qx", "other_qy", "other_qz", "other_qw"),
    *("goal_x", "goal_y", "goal_z"),
)
"""Metres, the gripper's opening (0 closed, 1 open), quaternions. A task without a second object has zeros there."""
FAR_M = 10.0
"""Largest coordinate of an observation; what lies farther is clipped."""
MOST_FORCE_N = 1000.0
"""Largest force of an observation; a stronger one is clipped."""
NUMBERS = ("near_object", "grasp_success", "grasp_reward", "in_place_reward", "obj_to_target", "unscaled_reward")
"""Meta-World's own figures in ``info``."""


def metaworld_spec(size: int = 64, context: int = 4, frame_skip: int = FRAME_SKIP) -> WorldSpec:
    """The WorldSpec of the front camera's frames."""
    step = STEP_M * frame_skip
    return WorldSpec(
        name="metaworld",
        height=size,
        width=size,
        action_names=("x", "y", "z", "grip"),
        action_units=("m", "m", "m", "of full closing"),
        action_scale=(step, step, step, 1.0),
        rate_hz=STEPS_HZ / frame_skip,
        context=context,
    )


class MetaWorldRealEnv(gym.Env[Any, np.ndarray]):
    """Do one of Meta-World's fifty tasks with a robot arm.

    Args:
        size: side of the frames in pixels, a multiple of 8.
        observation: "pixels", the front camera's frame, uint8 ``(size, size, 3)``; "dict": ``front``, ``wrist``, ``proprio`` float32
            ``(4,)`` (hand x, y, z in metres, gripper opening) and ``instruction`` uint8 ``(120,)``, UTF-8 with zeros after it;
            "state": float32 ``(21,)``, see STATE_NAMES.
        render_mode: "rgb_array" or None.
        task: its name, with or without "-v3".
        frame_skip: steps of Meta-World (80 a second) to a frame.
        contact_force: add ``force`` to "dict": newtons on the left and the right finger, float32 ``(2,)``.
        instruction: the words; by default the task's sentence in INSTRUCTIONS.
        terminate_on_success: end the episode at success. Meta-World's own episodes go on.

    Action: float32 ``(4,)`` in [-1, 1]: the move of the hand's target along x (the robot's right), y (away from it) and z
    (up), 4 cm a frame at full scale, and the gripper (1 closes).
    Reward: Meta-World's, 0..10, the mean over the steps of a frame. ``info``: ``success`` (at any of them), ``task``,
    ``instruction``, and Meta-World's own figures.

    ``snapshot()`` returns the exact state, and ``reset(options={"state": ...})`` goes on from it to the bit, in this process or
    another; copies and pickles of the environment do so too. ``reset(options={"instruction": ...})`` gives an episode other words.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": STEPS_HZ / FRAME_SKIP}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        size: int = 64,
        observation: Literal["pixels", "dict", "state"] = "pixels",
        render_mode: str | None = None,
        task: str = "door-open",
        frame_skip: int = FRAME_SKIP,
        contact_force: bool = False,
        instruction: str | None = None,
        terminate_on_success: bool = False,
    ) -> None:
        if observation not in ("pixels", "dict", "state"):
            raise ValueError(f"observation: expected 'pixels', 'dict' or 'state', got {observation!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        if isinstance(frame_skip, bool) or not isinstance(frame_skip, int) or not 1 <= frame_skip <= 80:
            raise ValueError(f"frame_skip: expected a whole number from 1 to 80, got {frame_skip!r}")
        if contact_force and observation != "dict":
            raise ValueError(f"contact_force: is a part of observation='dict', got observation={observation!r}")
        self.task = task_name(task)
        self.spec_world = metaworld_spec(size, frame_skip=frame_skip)
        self.observation_kind = observation
        self.render_mode = render_mode
        self.frame_skip = frame_skip
        self.contact_force = contact_force
        self.terminate_on_success = terminate_on_success
        self.metadata = self.metadata | {"render_fps": self.spec_world.rate_hz}
        self.action_space = self.spec_world.action_space()
        self.observation_space = self._make_space()
        self._default_instruction = INSTRUCTIONS[self.task] if instruction is None else instruction
        self._instruction, self._tokens = self._default_instruction, encode(self._default_instruction)
        self._started = False
        self._simulator = self._make_simulator()
        self._renderer: ArmRenderer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the simulator and the renderer, which hold C objects; the exact state stands for them."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_simulator", "_renderer")}
        return kept | {"_saved": self._simulator.state()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        state = saved.pop("_saved")
        self.__dict__.update(saved)
        self._simulator, self._renderer = self._make_simulator(), None
        self._simulator.restore(state)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Lay out a scene by ``seed``, or go to ``options["state"]``, a ``snapshot()``; ``options["instruction"]`` holds for the
        episode."""
        super().reset(seed=seed)
        given = {k: v for k, v in (options or {}).items() if v is not None}
        if unknown := set(options or {}) - {"state", "instruction"}:
            raise ValueError(
                f"options: unknown {sorted(unknown)}; MetaWorldRealEnv.reset takes {{'state': env.snapshot(), 'instruction': text}}"
            )
        words = given.get("instruction", self._default_instruction)
        tokens = encode(words)
        if "state" in given:
            self._simulator.restore(_check_state(given["state"]))
        else:
            self._simulator.reset(int(self.np_random.integers(2**31)))
        self._instruction, self._tokens, self._started = words, tokens, True
        _, figures = self._simulator.evaluate()
        return self._observe(), self._info(bool(figures["success"]), figures)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take ``frame_skip`` steps of Meta-World under ``action``."""
        self._check_started("step")
        action = self.spec_world.check_actions(action)
        if action.ndim != 1:
            raise ValueError(f"action: expected shape (4,), got {action.shape}")
        total, success = 0.0, False
        figures: dict[str, Any] = {}
        for _ in range(self.frame_skip):
            reward, figures = self._simulator.step(action)
            total, success = total + reward, success or bool(figures["success"])
        ended = success and self.terminate_on_success
        return self._observe(), total / self.frame_skip, ended, False, self._info(success, figures)

    def state(self) -> np.ndarray:
        """Return the numbers of STATE_NAMES, float64 ``(21,)``; for the exact state see ``snapshot``."""
        self._check_started("state")
        return self._simulator.reading()

    def snapshot(self) -> ArmState:
        """Return the exact state of the simulator."""
        self._check_started("snapshot")
        return self._simulator.state()

    def observation39(self) -> np.ndarray:
        """Return Meta-World's own observation, float64 ``(39,)``, which its scripted experts read."""
        self._check_started("observation39")
        return self._simulator.observation()

    def render(self) -> np.ndarray:
        """Return the front camera's frame, uint8 ``(size, size, 3)``."""
        return self.frame(self.spec_world.height)

    def frame(self, size: int, camera: str = "front") -> np.ndarray:
        """Draw the scene as ``camera``, "front" or "wrist", sees it: uint8 ``(size, size, 3)``."""
        from neuralsim.envs.metaworld.renderer import CAMERAS, ArmRenderer

        self._check_started("frame")
        if camera not in CAMERAS:
            raise ValueError(f"camera: expected 'front' or 'wrist', got {camera!r}")
        if self._renderer is not None and self._renderer.side < 2 * size:
            self._renderer.close()
            self._renderer = None
        if self._renderer is None:
            self._renderer = ArmRenderer(self._simulator.model, size)
        return self._renderer.draw(self._simulator.data, camera, size)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _make_space(self) -> spaces.Space[Any]:
        frame = spaces.Box(0, 255, self.spec_world.frame_shape, np.uint8)
        if self.observation_kind == "pixels":
            return frame
        if self.observation_kind == "state":
            return spaces.Box(-FAR_M, FAR_M, (len(STATE_NAMES),), np.float32)
        parts: dict[str, spaces.Space[Any]] = {
            "front": frame,
            "wrist": frame,
            "proprio": spaces.Box(-FAR_M, FAR_M, (4,), np.float32),
            "instruction": spaces.Box(0, 255, (LONGEST,), np.uint8),
        }
        if self.contact_force:
            parts["force"] = spaces.Box(0, MOST_FORCE_N, (2,), np.float32)
        return spaces.Dict(parts)

    def _make_simulator(self) -> ArmSimulator:
        from neuralsim.envs.metaworld.simulator import ArmSimulator

        return ArmSimulator(self.task)

    def _observe(self) -> Any:
        size = self.spec_world.height
        if self.observation_kind == "pixels":
            return self.frame(size)
        reading = np.clip(self._simulator.reading(), -FAR_M, FAR_M).astype(np.float32)
        if self.observation_kind == "state":
            return reading
        seen = {"front": self.frame(size), "wrist": self.frame(size, "wrist"), "proprio": reading[:4].copy()}
        seen |= {"instruction": self._tokens.copy()}
        if self.contact_force:
            seen["force"] = np.clip(self._simulator.contact_forces(), 0, MOST_FORCE_N).astype(np.float32)
        return seen

    def _info(self, success: bool, figures: dict[str, Any]) -> dict[str, Any]:
        numbers = {name: float(figures[name]) for name in NUMBERS}
        return {"success": success, "task": self.task, "instruction": self._instruction} | numbers

    def _check_started(self, method: str) -> None:
        if not self._started:
            raise gym.error.ResetNeeded(f"MetaWorldRealEnv.{method} before reset: call env.reset(seed=...) first")


def _check_state(state: object) -> ArmState:
    from neuralsim.envs.metaworld.simulator import ArmState

    if not isinstance(state, ArmState):
        raise ValueError(f"options['state']: expected what snapshot() returned, got {type(state).__name__}")  # noqa: TRY004
    return state
