"""ImaginedEnv and ImaginedVectorEnv: a learned world as Gymnasium environments, thin faces on Imagination.

Both show the same dreams: an ImaginedEnv reset with seed s and slot i of an ImaginedVectorEnv reset with seed s - i see
the same frames, up to rounding. The vector environment is one batched model, no processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, TypedDict, Unpack

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from neuralsim.imagination import Chunk, Imagination, Snapshot, Transition
from neuralsim.pretrained.world import World, open_world
from neuralsim.spec import WorldSpec
from neuralsim.task import Task

RENDER_MODES = ["rgb_array"]


class ImaginedEnvSettings(TypedDict, total=False):
    """What the batched faces take beside ``world`` and ``num_envs``; the meaning is ImaginedEnv's."""

    observation: Literal["pixels", "features"]
    task: Task | None
    horizon: int | None
    render_mode: str | None
    chunk: int | None
    denoise_steps: int | None
    temperature: float
    uncertainty_limit: float | None
    lean: bool
    device: str
    precision: str


@dataclass(frozen=True)
class ImaginedSession:
    """What all faces share: an Imagination, what of it is shown, and how many steps one action plays (None: one,
    without a chunk axis).
    """

    imagination: Imagination
    observation: Literal["pixels", "features"] = "pixels"
    chunk: int | None = None
    render_mode: str | None = None

    def __post_init__(self) -> None:
        if self.observation not in ("pixels", "features"):
            raise ValueError(f"observation: expected 'pixels' or 'features', got {self.observation!r}")
        if self.render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"render_mode: expected None or one of {RENDER_MODES}, got {self.render_mode!r}")
        if self.chunk is not None and (
            isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1
        ):
            raise ValueError(f"chunk: expected None or a whole number of at least 1, got {self.chunk!r}")

    @classmethod
    def open(
        cls,
        num_envs: int,
        world: str | os.PathLike[str] | World = "pusht",
        observation: Literal["pixels", "features"] = "pixels",
        task: Task | None = None,
        horizon: int | None = 300,
        render_mode: str | None = None,
        chunk: int | None = None,
        denoise_steps: int | None = None,
        temperature: float = 1.0,
        uncertainty_limit: float | None = None,
        lean: bool = False,
        device: str = "auto",
        precision: str = "auto",
    ) -> Self:
        """A face on ``num_envs`` new dreams of ``world``."""
        opened = open_world(world, device)
        imagination = Imagination(
            opened.model,
            task,
            num_envs=num_envs,
            starts=opened.starts,
            horizon=horizon,
            uncertainty_limit=uncertainty_limit,
            temperature=temperature,
            denoise_steps=denoise_steps,
            lean=lean,
            precision=precision,
        )
        return cls(imagination, observation, chunk, render_mode)

    @property
    def observation_space(self) -> spaces.Box:
        """Of one slot."""
        model = self.imagination.model
        if self.observation == "pixels":
            return spaces.Box(0, 255, model.spec.frame_shape, np.uint8)
        return spaces.Box(-np.inf, np.inf, (model.feature_size,), np.float32)

    @property
    def spec(self) -> WorldSpec:
        """What the world looks like from outside."""
        return self.imagination.model.spec

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Of one slot: ``(a,)``, or ``(chunk, a)``; see WorldSpec for choices."""
        return self.spec.action_space(self.chunk)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one slot, as the world has it: ``(a,)``, or ``(chunk, a)``."""
        lead = () if self.chunk is None else (self.chunk,)
        return (*lead, self.spec.action_size)

    def observe(self) -> np.ndarray:
        """``(b, h, w, 3)`` uint8 or ``(b, d)`` float32."""
        return self.imagination.frames() if self.observation == "pixels" else self.imagination.features()

    def play(self, action: Any, mask: np.ndarray | None = None) -> Transition:
        """One action ``(b, *action_shape)`` in every slot where ``mask`` holds, be it a step or a chunk."""
        if self.chunk is None:
            return self.imagination.step(action, mask)
        self.imagination.check_action(action, (self.imagination.num_envs, *self.action_shape))
        return self.imagination.step_chunk(action, mask)

    def played(self, transition: Transition) -> dict[str, np.ndarray]:
        """What a chunk showed on the way: ``frames`` ``(b, k, h, w, 3)`` or ``features`` ``(b, k, d)`` as observed, and
        ``played`` ``(b,)``.
        """
        if not isinstance(transition, Chunk):
            return {}
        if self.observation == "pixels":
            return {"frames": transition.frames(), "played": transition.played}
        return {"features": transition.features(), "played": transition.played}

    def beginnings(self) -> dict[str, np.ndarray]:
        """Where the slots began: ``start`` ``(b,)`` (-1: the caller's own history) and, if known, ``state`` ``(b, s)``:
        the true simulator's.
        """
        start = self.imagination.start
        starts = self.imagination.starts
        if starts is None or starts.states is None:
            return {"start": start}
        state = np.array(starts.states[start, -1])
        state[start < 0] = np.nan
        return {"start": start, "state": state}

    def fork(self, n: int) -> ImaginedSession:
        """The same face on a fork."""
        return ImaginedSession(self.imagination.fork(n), self.observation, self.chunk, self.render_mode)


class ImaginedEnv(gym.Env[np.ndarray, np.ndarray]):
    """A learned world to act in: every frame is dreamt.

    world: a shipped world's name, a folder, or a World. observation: "pixels", uint8 ``(h, w, 3)``, or "features",
    float32 ``(d,)``, the model's own; pixels are then never decoded unless rendered. Action: float32 ``(a,)`` in [-1,
    1] as ``neuralsim.spec`` says (a Discrete or MultiDiscrete where it says choices), or with ``chunk=k`` float32 ``(k,
    a)``: the step plays k frames, sums their rewards and stops at the first end. task: what reward and termination mean
    (default: as the model learned them). horizon:
    steps until truncation (None: never). uncertainty_limit: truncation beyond it (default: the world's calibrated
    threshold). temperature: scale of the model's noise. lean, device, precision: see
    Imagination.

    ``info`` of a step: ``uncertainty``, ``truncated_by`` (None, "horizon" or "uncertainty"), ``elapsed``; with a chunk
    also ``played`` and ``frames`` ``(played, h, w, 3)`` (or ``features``). ``info`` of a reset: ``start`` and
    ``state``, the true simulator's state there, where known. ``reset(options=...)`` takes ``{"start": index}`` or any
    history, ``{"frames": uint8 (t, h, w, 3), "actions": (t-1, a)}``.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 10}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        world: str | os.PathLike[str] | World = "pusht",
        observation: Literal["pixels", "features"] = "pixels",
        task: Task | None = None,
        horizon: int | None = 300,
        render_mode: str | None = None,
        chunk: int | None = None,
        denoise_steps: int | None = None,
        temperature: float = 1.0,
        uncertainty_limit: float | None = None,
        lean: bool = False,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        face = ImaginedSession.open(
            num_envs=1,
            world=world,
            observation=observation,
            task=task,
            horizon=horizon,
            render_mode=render_mode,
            chunk=chunk,
            denoise_steps=denoise_steps,
            temperature=temperature,
            uncertainty_limit=uncertainty_limit,
            lean=lean,
            device=device,
            precision=precision,
        )
        self._wear(face)

    @classmethod
    def on(cls, face: ImaginedSession) -> Self:
        """An environment on a Face of one slot."""
        if face.imagination.num_envs != 1:
            raise ValueError(f"ImaginedEnv shows one slot, got an Imagination of {face.imagination.num_envs}")
        env = cls.__new__(cls)
        env._wear(face)
        return env

    def _wear(self, face: ImaginedSession) -> None:
        self.face = face
        self.imagination = face.imagination
        self.render_mode = face.render_mode
        self.observation_space = face.observation_space
        self.action_space = face.action_space
        self.metadata = _metadata(face, self.metadata)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a dream; the seed settles the start and all noise to come."""
        if seed is not None:
            seeding.np_random(seed)  # raises for a bad seed before anything has changed
        self.imagination.reset(seeds=None if seed is None else [seed], options=options)
        super().reset(seed=seed)
        info: dict[str, Any] = {"uncertainty": float(self.imagination.uncertainty()[0])}
        for name, value in self.face.beginnings().items():
            if name == "start":
                info["start"] = int(value[0])
            elif info["start"] >= 0:
                info[name] = value[0]
        return self.face.observe()[0], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Dream on under ``action``."""
        array = self.face.spec.check_actions(self.face.spec.from_space(action))
        if array.shape != self.face.action_shape:
            raise ValueError(f"action: expected shape {self.action_space.shape}, got {np.shape(action)}")
        transition = self.face.play(array[None])
        info: dict[str, Any] = {
            "uncertainty": float(transition.uncertainty[0]),
            "truncated_by": transition.truncated_by[0],
            "elapsed": int(self.imagination.elapsed[0]),
        }
        for name, value in self.face.played(transition).items():
            info[name] = int(value[0]) if name == "played" else value[0, : transition.played[0]]
        reward, terminated, truncated = transition.reward[0], transition.terminated[0], transition.truncated[0]
        return self.face.observe()[0], float(reward), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray | None:
        """The present frame, uint8 ``(h, w, 3)``; None without a render mode."""
        return self.imagination.frames()[0] if self.render_mode == "rgb_array" else None

    def snapshot(self) -> Snapshot:
        """The dream as it is, a value; see Imagination."""
        return self.imagination.snapshot()

    def restore(self, snap: Snapshot) -> None:
        """Go back to ``snap``; the same actions then give the same frames to the bit."""
        self.imagination.restore(snap)

    def fork(self, n: int) -> ImaginedVectorEnv:
        """n copies of this dream as a vector environment, ready to step; see Imagination.fork."""
        return ImaginedVectorEnv.on(self.face.fork(n))


class ImaginedVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` dreams side by side on one batched model; arguments as ImaginedEnv's.

    Autoreset is NEXT_STEP: the step after a slot's end ignores its action, begins anew and gives reward 0.
    ``reset(seed=s)`` gives slot i the seed s + i; ``options`` as ImaginedEnv's, also with a leading axis of
    ``num_envs``, and ``{"reset_mask": bool (num_envs,)}``. ``infos`` are arrays ``(num_envs, ...)``, each ``key`` with
    a mask ``_key`` of the slots it speaks of.
    """

    metadata = {  # noqa: RUF012 (Gymnasium's own form)
        "render_modes": RENDER_MODES,
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        world: str | os.PathLike[str] | World = "pusht",
        **settings: Unpack[ImaginedEnvSettings],
    ) -> None:
        self._wear(ImaginedSession.open(num_envs, world, **settings))

    @classmethod
    def on(cls, face: ImaginedSession) -> Self:
        """A vector environment on a Face."""
        env = cls.__new__(cls)
        env._wear(face)
        return env

    def _wear(self, face: ImaginedSession) -> None:
        self.face = face
        self.imagination = face.imagination
        self.num_envs = face.imagination.num_envs
        self.render_mode = face.render_mode
        self.single_observation_space = face.observation_space
        self.single_action_space = face.action_space
        self.metadata = _metadata(face, self.metadata)

    @cached_property
    def observation_space(self) -> spaces.Space[np.ndarray]:  # type: ignore[override]
        """Of all slots. Made on demand: for 32 slots of pixels it costs more than the fork it belongs to."""
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> spaces.Space[np.ndarray]:  # type: ignore[override]
        """Of all slots."""
        return batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all dreams, or those of ``options["reset_mask"]``."""
        if isinstance(seed, int | np.integer):
            seeding.np_random(int(seed))
        chosen = dict(options or {})
        mask = chosen.pop("reset_mask", None)
        self.imagination.reset(mask, seed, chosen)
        if isinstance(seed, int | np.integer):
            self._np_random, self._np_random_seed = seeding.np_random(int(seed))
        return self.face.observe(), self._infos(np.ones(self.num_envs, bool) if mask is None else np.asarray(mask))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Dream on where the last step ended nothing; begin anew where it did."""
        pending = self.imagination.ended
        with self.imagination.all_or_nothing():
            transition = self.face.play(self.face.spec.from_space(actions), ~pending)
            extra = self.face.played(transition)
            if pending.any():
                self.imagination.reset(pending)
            observation = self.face.observe()
        infos = self._infos(pending)
        infos["truncated_by"], infos["_truncated_by"] = transition.truncated_by, transition.truncated
        for name, value in extra.items():
            infos[name], infos[f"_{name}"] = value, ~pending
        reward = transition.reward.astype(np.float64)
        return observation, reward, transition.terminated, transition.truncated, infos

    def _infos(self, began: np.ndarray) -> dict[str, Any]:
        """What is said of every slot, and the beginnings of those that ``began`` ``(b,)``."""
        everyone = np.ones(self.num_envs, bool)
        infos: dict[str, Any] = {"uncertainty": self.imagination.uncertainty(), "_uncertainty": everyone}
        infos["elapsed"], infos["_elapsed"] = self.imagination.elapsed, everyone.copy()
        if began.any():
            for name, value in self.face.beginnings().items():
                infos[name] = value
                infos[f"_{name}"] = began & (self.imagination.start >= 0) if name == "state" else began.copy()
        return infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The present frames, one per slot; None without a render mode."""
        return tuple(self.imagination.frames()) if self.render_mode == "rgb_array" else None

    def snapshot(self) -> Snapshot:
        """All dreams as they are, a value; see Imagination."""
        return self.imagination.snapshot()

    def restore(self, snap: Snapshot) -> None:
        """Go back to ``snap``, pending autoresets included."""
        self.imagination.restore(snap)

    def fork(self, n: int) -> ImaginedVectorEnv:
        """Every dream n times, row ``i * n + j`` being copy j of slot i; see Imagination.fork."""
        return type(self).on(self.face.fork(n))


def _metadata(face: ImaginedSession, metadata: dict[str, Any]) -> dict[str, Any]:
    """The class's metadata at the world's own rate."""
    return {**metadata, "render_fps": face.imagination.model.spec.rate_hz}
