"""Imagination: a batch of imagined rollouts on one model, and the only place with mutable state beneath the environments.

It never resets on its own, decodes pixels at most once per step and only on request, and returns all that changes as one
Snapshot: taking one is free, restoring one is exact, and a call that raises has changed nothing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded

from neuralsim.noise import Noise
from neuralsim.pretrained.starts import Starts
from neuralsim.runtime.device import inference, pick_dtype
from neuralsim.snapshot import ModelIdentity, Snapshot
from neuralsim.spec import WorldSpec
from neuralsim.state_view import View
from neuralsim.task import LearnedTask, Task, evaluate_task
from neuralsim.transition import Chunk, Transition, to_array
from neuralsim.world_model import State, WorldModel, check_denoise_steps

START_STREAM = -1
"""Stream of a row's Noise from which its start is drawn; models draw from 0 upwards."""


@dataclass(frozen=True)
class ImaginationConfig:
    """Settings of rollouts and of their truncation."""

    horizon: int | None = 300
    """Steps until an episode is truncated; None: never."""
    uncertainty_limit: float | None = None
    """Uncertainty beyond which it is truncated; None: the model's calibrated ``uncertainty_threshold``; infinity: never."""
    temperature: float = 1.0
    """Scale of the model's noise, at least 0."""
    denoise_steps: int | None = None
    """Denoising passes per frame, for models that denoise; None: the model's own number."""
    lean: bool = False
    """Roll out no more of the state than features need, of an ensemble one member; ``uncertainty`` is then meaningless."""
    precision: str = "auto"
    """"auto" (bfloat16 where the hardware multiplies in it), "float32" or "bfloat16"."""

    def __post_init__(self) -> None:
        if self.horizon is not None:
            _check_count(self.horizon, "horizon")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number of at least 0, got {self.temperature!r}")
        if self.uncertainty_limit is not None and not self.uncertainty_limit > 0:
            raise ValueError(f"uncertainty_limit: expected a number above 0, got {self.uncertainty_limit!r}")


@dataclass(eq=False)
class _Present:
    """The current state of all rows, read on demand, and the Snapshot of it once one was taken."""

    view: View
    noise: Noise
    elapsed: torch.Tensor
    ended: torch.Tensor
    start: torch.Tensor
    snapshot: Snapshot | None = None


class Imagination:
    """``num_envs`` imagined rollouts on ``model``, rewarded by ``task`` (default: the model's own learned heads).

    starts: histories that ``reset`` draws from. config, or its fields as keywords: see ImaginationConfig.

    A row's start and noise come from that row's seed alone, so row i of a batch equals a rollout of its own with that seed, up
    to rounding. Not for use from several threads at once.
    """

    def __init__(
        self,
        model: WorldModel,
        task: Task | None = None,
        *,
        num_envs: int = 1,
        starts: Starts | None = None,
        config: ImaginationConfig | None = None,
        **settings: Any,
    ) -> None:
        _check_count(num_envs, "num_envs")
        config = replace(config or ImaginationConfig(), **settings)
        if task is None:
            missing = {"reward", "terminated"} - set(model.head_names)
            if missing:
                raise ValueError(
                    f"{type(model).__name__} has no learned {sorted(missing)}: pass a task, e.g. FunctionTask"
                )
            task = LearnedTask()
        limit = config.uncertainty_limit
        if limit is None:
            limit = float(getattr(model, "uncertainty_threshold", float("inf")))
        # A shallow copy shares the weights and owns its plain attributes: other users keep their denoise_steps.
        self.model: WorldModel = copy.copy(model)
        self.task = task
        self.num_envs = num_envs
        self.starts = starts
        self.horizon = config.horizon
        self.uncertainty_limit = limit
        self.temperature = float(config.temperature)
        self.device = torch.device(model.device)
        self.lean = config.lean
        self.dtype = pick_dtype(config.precision, self.device)
        self._now: _Present | None = None
        self._identity: tuple[int, ModelIdentity] | None = None
        if config.denoise_steps is not None:
            self.denoise_steps = config.denoise_steps

    # -- reading

    @property
    def view(self) -> View:
        """The present of all rows, read on demand."""
        return self._present().view

    def features(self) -> np.ndarray:
        """Return float32 ``(b, d)``; never decodes."""
        return to_array(self.view.features)

    def frames(self) -> np.ndarray:
        """Return uint8 ``(b, h, w, 3)``, a new array each time; decoded once per step however often it is called."""
        return to_array(self.view.frame)

    def uncertainty(self) -> np.ndarray:
        """Return float32 ``(b,)``."""
        return to_array(self.view.uncertainty)

    @property
    def elapsed(self) -> np.ndarray:
        """int64 ``(b,)``: steps since each row's reset."""
        return to_array(self._present().elapsed)

    @property
    def ended(self) -> np.ndarray:
        """bool ``(b,)``: each row's last step terminated or was truncated. Such a row may still be stepped."""
        return to_array(self._present().ended)

    @property
    def start(self) -> np.ndarray:
        """int64 ``(b,)``: the shipped start of each row, -1 for a history given by the caller."""
        return to_array(self._present().start)

    @property
    def denoise_steps(self) -> int:
        """Denoising passes per frame, changeable at any time; an AttributeError for models that do not denoise."""
        return int(self.model.denoise_steps)

    @denoise_steps.setter
    def denoise_steps(self, steps: int) -> None:
        check_denoise_steps(steps)
        if not hasattr(self.model, "denoise_steps"):
            raise ValueError(f"{type(self.model).__name__} does not denoise: leave denoise_steps out")
        model: Any = copy.copy(self.model)  # a fork may be using this one
        model.denoise_steps = steps
        self.model = model

    def _present(self) -> _Present:
        if self._now is None:
            raise ResetNeeded("no episode has begun: call reset first, e.g. reset(seed=0)")
        return self._now

    # -- beginning

    def reset(
        self,
        mask: np.ndarray | None = None,
        seeds: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Start new episodes in the rows where ``mask`` ``(b,)`` holds (default all); the others stay as they are, to the bit.

        seeds: an int s gives row i the seed s + i; a sequence has one entry per row. A row without a seed continues its own
        stream. options: ``{"start": index}`` picks a shipped start; ``{"frames": uint8 (t, h, w, 3), "actions": (t-1, a)}`` is
        any history, t at least 1. Both also with a leading axis of one entry per row (entries outside the mask are not used).
        By default a start is drawn. Raises ValueError for bad input.
        """
        chosen = self._check_mask(mask)
        if self._now is None and not chosen.all():
            raise ResetNeeded(f"the first reset must begin all {self.num_envs} rows; call reset() without a mask first")
        noise = self._noise_after_reset(chosen, self._check_seeds(seeds))
        rows = np.flatnonzero(chosen)
        frames, actions, start = self._initial_histories(rows, noise, options or {})
        if len(rows) == 0:
            return
        with inference(self.device, self.dtype):
            fresh = self.model.encode(
                torch.as_tensor(np.ascontiguousarray(frames), device=self.device),
                torch.as_tensor(actions, device=self.device),
            )
            fresh = self.model.without_ensemble(fresh) if self.lean else fresh
            fresh_start = torch.as_tensor(start, dtype=torch.int64, device=self.device)
            zeros = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
            if self._now is None or chosen.all():
                view = View(self.model, fresh, self.dtype)
                self._now = _Present(view, noise, zeros, zeros.bool(), fresh_start)
                return
            now, where = self._now, torch.as_tensor(chosen, device=self.device)
            position = torch.as_tensor(np.maximum(np.cumsum(chosen) - 1, 0), device=self.device)
            view = View(
                self.model,
                now.view.state.where(where, fresh.index(position)),
                self.dtype,
                self._decoder_after_reset(now.view, fresh, position, where),
            )
            self._now = _Present(
                view,
                noise,
                now.elapsed.masked_fill(where, 0),
                now.ended.masked_fill(where, False),
                torch.where(where, fresh_start[position], now.start),
            )

    def _decoder_after_reset(self, old: View, fresh: State, position: torch.Tensor, where: torch.Tensor) -> Any:
        """Return a decoder of the new rows alone where the others have been decoded already, else None."""
        if not old.decoded:
            return None
        frame, model = old.frame, self.model
        return lambda: torch.where(where.view(-1, 1, 1, 1), model.decode(fresh)[position], frame)

    # -- stepping

    def step(self, action: Any, mask: np.ndarray | None = None) -> Transition:
        """Step with ``action`` ``(b, a)`` in [-1, 1], or of choices; rows where ``mask`` is False stay as they are, reward 0."""
        self._present()
        checked = self.check_action(action, (self.num_envs, self.model.spec.action_size))
        return self._step_checked(checked, self._check_mask(mask))

    def step_unchecked(self, action: torch.Tensor, mask: np.ndarray | None = None) -> Transition:
        """``step`` for environments, which check input once: ``action`` as ``check_action`` returns it, ``mask`` bool ``(b,)``."""
        return self._step_checked(action, np.ones(self.num_envs, bool) if mask is None else mask)

    def step_chunk(self, actions: Any, mask: np.ndarray | None = None) -> Chunk:
        """Take k steps with ``actions`` ``(b, k, a)`` through the model's ``unroll``; each row stops at its first end."""
        self._present()
        checked = self.check_action(actions, (self.num_envs, None, self.model.spec.action_size))
        return self._step_chunk_checked(checked, self._check_mask(mask))

    def step_chunk_unchecked(self, actions: torch.Tensor, mask: np.ndarray | None = None) -> Chunk:
        """``step_chunk`` for environments, which check input once."""
        return self._step_chunk_checked(actions, np.ones(self.num_envs, bool) if mask is None else mask)

    def _step_checked(self, action: torch.Tensor, live: np.ndarray) -> Transition:
        now = self._present()
        with inference(self.device, self.dtype):
            state = self.model.step(now.view.state, action, now.noise) if live.any() else now.view.state
        following, transition = self._follow(now, [View(self.model, state, self.dtype)], action[:, None], live)
        self._now = following
        return Transition(**transition)

    def _step_chunk_checked(self, actions: torch.Tensor, live: np.ndarray) -> Chunk:
        now = self._present()
        with inference(self.device, self.dtype):
            states = self.model.unroll(now.view.state, actions, now.noise)
            views = [View(self.model, _at(states, j), self.dtype) for j in range(actions.shape[1])]
            whole = View(self.model, states.map(lambda x: x.flatten(0, 1)), self.dtype)
        following, transition = self._follow(now, views, actions, live, whole)
        chunk = Chunk(**transition, view=whole)
        self._now = following
        return chunk

    def _follow(
        self, now: _Present, views: list[View], actions: torch.Tensor, live: np.ndarray, whole: View | None = None
    ) -> tuple[_Present, dict[str, np.ndarray]]:
        """Evaluate the task on the k states of ``views``, stop each row at its first end; return the new present and outcome."""
        held = torch.as_tensor(~live, device=self.device)
        going = ~held
        b = self.num_envs
        reward = torch.zeros(b, dtype=torch.float32, device=self.device)
        played = torch.zeros(b, dtype=torch.int64, device=self.device)
        terminated, beyond, late = (torch.zeros(b, dtype=torch.bool, device=self.device) for _ in range(3))
        uncertainty = now.view.uncertainty
        before = now.view
        for j, after in enumerate(views):
            if not bool(going.any()):
                break
            outcome = evaluate_task(self.task, before, actions[:, j], after)
            reward = torch.where(going, reward + outcome.reward.detach().float(), reward)
            uncertainty = torch.where(going, after.uncertainty, uncertainty)
            played = played + going
            terminated = terminated | (going & outcome.terminated)
            # Not "greater": NaN is beyond every limit.
            beyond = beyond | (going & ~(uncertainty <= self.uncertainty_limit))
            if self.horizon is not None:
                late = late | (going & (now.elapsed + played >= self.horizon))
            going = going & ~(terminated | beyond | late)
            before = after
        ended = terminated | beyond | late
        following = _Present(
            self._last_played(now.view, views, played, held, whole),
            replace(now.noise, count=now.noise.count + played),
            now.elapsed + played,
            torch.where(held, now.ended, ended),
            now.start,
        )
        reason = np.full(b, None, dtype=object)
        reason[to_array(late)] = "horizon"
        reason[to_array(beyond)] = "uncertainty"
        transition = {
            "reward": to_array(reward),
            "terminated": to_array(terminated),
            "truncated": to_array(beyond | late),
            "truncated_by": reason,
            "uncertainty": to_array(uncertainty),
            "played": to_array(played),
        }
        return following, transition

    def _last_played(
        self, old: View, views: list[View], played: torch.Tensor, held: torch.Tensor, whole: View | None
    ) -> View:
        """Return the view where each row stopped: after its last played step, or the old one if held."""
        if whole is None:
            arrived = views[0]
        else:
            last = torch.arange(len(played), dtype=torch.int64, device=self.device) * len(views)
            last = last + (played - 1).clamp(min=0)
            with inference(self.device, self.dtype):
                state = whole.state.index(last)
            arrived = View(
                self.model,
                state,
                self.dtype,
                lambda: whole.frame[last] if whole.decoded else self.model.decode(state),
            )
        if not bool(held.any()):
            return arrived
        with inference(self.device, self.dtype):
            return View(self.model, arrived.state.where(held, old.state), self.dtype)

    # -- keeping and branching

    def snapshot(self) -> Snapshot:
        """Return all that changes as a value: free to take, valid for ever, restorable any number of times and elsewhere."""
        now = self._present()
        if now.snapshot is None:
            view = now.view
            frame = None if view.decoder is None else view.frame
            kept = (view.state, now.noise, now.elapsed, now.ended, now.start)
            now.snapshot = Snapshot(*kept, self.dtype, self._model_identity(), frame)
        return now.snapshot

    def restore(self, snap: Snapshot) -> None:
        """Return to ``snap``, taken here, in another Imagination or in another process, with the same weights and as many rows;
        what follows is bit-equal. Raises ValueError where weights, rows, precision or device differ."""
        if not isinstance(snap, Snapshot):
            raise TypeError(f"restore: expected what snapshot() returned, got {type(snap).__name__}")
        if len(snap) != self.num_envs:
            raise ValueError(
                f"restore: expected a snapshot of {self.num_envs} rows, got one of {len(snap)}; fork(n) makes more rows"
            )
        self._model_identity().check_same(snap.model)
        if snap.dtype is not self.dtype:
            raise ValueError(f"restore: this snapshot was computed in {snap.dtype}, this Imagination uses {self.dtype}")
        if snap.elapsed.device != self.device:
            raise ValueError(
                f"restore: this snapshot lies on {snap.elapsed.device}, this Imagination runs on {self.device}"
            )
        if snap.noise.temperature != self.temperature:
            snap = replace(snap, noise=replace(snap.noise, temperature=self.temperature))
        frame = snap.frame
        view = View(self.model, snap.state, self.dtype, None if frame is None else lambda: frame)
        self._now = _Present(view, snap.noise, snap.elapsed, snap.ended, snap.start, snap)

    def _model_identity(self) -> ModelIdentity:
        """Return the identity of the model, hashed again only after its weights were written to."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        version = sum(0 if t.is_inference() else t._version for t in tensors)
        if self._identity is None or self._identity[0] != version:
            self._identity = version, ModelIdentity.of(self.model)
        return self._identity[1]

    def fork(self, n: int, seeds: Sequence[int] | None = None) -> Imagination:
        """Return a new Imagination with every row n times: row ``i * n + j`` is copy j of row i. This one is untouched.

        The copies' noise continues as the row's own would, so copies given equal actions have equal futures and differences come
        from actions alone. With ``seeds`` ``(b * n,)`` every copy has noise of its own.
        """
        _check_count(n, "fork: n")
        now = self._present()
        b = n * self.num_envs
        noise = None
        if seeds is not None:
            if len(seeds) != b:
                raise ValueError(f"fork: expected one seed for each of the {b} new rows, got {len(seeds)}")
            noise = Noise.from_seeds([_check_seed(s) for s in seeds], self.device, self.temperature)
        fork = copy.copy(self)
        fork.num_envs = b
        with torch.inference_mode():
            rows = torch.arange(self.num_envs, dtype=torch.int64, device=self.device).repeat_interleave(n)
            decoder = None
            if now.view.decoded:
                frame = now.view.frame
                decoder = lambda: frame[rows]  # noqa: E731 (bound late: copied only on request)
            view = View(self.model, now.view.state.repeat(n), self.dtype, decoder)
            noise = now.noise.index(rows) if noise is None else noise
            fork._now = _Present(view, noise, now.elapsed[rows], now.ended[rows], now.start[rows])
        return fork

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Undo everything done inside if anything in it raises."""
        before = self._now
        try:
            yield
        except BaseException:
            self._now = before
            raise

    # -- input is checked here, before anything changes

    def check_action(self, action: Any, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Return ``action`` in the spec's dtype on the model's device; a ValueError unless it has ``shape`` (None: any length
        of at least 1)."""
        if isinstance(action, torch.Tensor):
            action = action.detach().cpu().numpy()
        array = self.model.spec.check_actions(action)
        if array.ndim != len(shape) or any(
            s != n if s is not None else n < 1 for s, n in zip(shape, array.shape, strict=True)
        ):
            wanted = tuple("k" if s is None else s for s in shape)
            raise ValueError(f"action: expected shape {wanted} for {self.num_envs} rows, got {array.shape}")
        return torch.as_tensor(array, device=self.device)

    def _check_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        array = np.array(mask.cpu() if isinstance(mask, torch.Tensor) else mask)
        if array.shape != (self.num_envs,) or array.dtype != bool:
            raise ValueError(f"mask: expected bool ({self.num_envs},), got {array.dtype} {array.shape}")
        return array

    def _check_seeds(self, seeds: Any) -> list[int | None]:
        if seeds is None:
            return [None] * self.num_envs
        if isinstance(seeds, int | np.integer):
            first = _check_seed(seeds)
            return [first + i for i in range(self.num_envs)]
        listed = list(seeds)
        if len(listed) != self.num_envs:
            raise ValueError(f"seeds: expected one for each of the {self.num_envs} rows, got {len(listed)}")
        return [None if s is None else _check_seed(s) for s in listed]

    def _noise_after_reset(self, chosen: np.ndarray, seeds: list[int | None]) -> Noise:
        """Return every row's stream after a reset of ``chosen``."""
        entropy = np.random.SeedSequence().generate_state(self.num_envs, np.uint64).tolist()
        fresh = Noise.from_seeds(
            [e if s is None else s for s, e in zip(seeds, entropy, strict=True)], self.device, self.temperature
        )
        if self._now is None:
            return fresh
        seeded = np.array([s is not None for s in seeds])
        noise = self._now.noise
        # One step on, so that a reset right after a reset draws another start.
        noise = noise.where(torch.as_tensor(chosen & ~seeded, device=self.device), noise.advance())
        return noise.where(torch.as_tensor(chosen & seeded, device=self.device), fresh)

    def _initial_histories(
        self, rows: np.ndarray, noise: Noise, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the histories of ``rows``: frames ``(m t h w 3)``, actions ``(m t-1 a)``, indices of shipped starts ``(m,)``."""
        if not isinstance(options, Mapping):
            raise TypeError(f"options: expected a dict, got {type(options).__name__}")
        unknown = sorted(set(options) - {"frames", "actions", "start"}, key=str)
        if unknown:
            raise ValueError(f"options: unknown {unknown}; reset takes 'start', or 'frames' and 'actions'")
        if "frames" in options or "actions" in options:
            if "start" in options:
                raise ValueError("options: 'start' and 'frames' exclude each other; got both")
            frames, actions = _given_history(self.model.spec, self.num_envs, options)
            return frames[rows], actions[rows], np.full(len(rows), -1)
        if self.starts is None:
            raise ValueError(
                "this world has no start states (starts.npz); begin from a history of your own: "
                "options={'frames': uint8 (t, h, w, 3), 'actions': (t-1, a)}"
            )
        count = len(self.starts)
        if options.get("start") is None:
            drawn = (noise.uniform(1, START_STREAM)[:, 0].double() * count).long().clamp(max=count - 1)
            index = to_array(drawn)[rows]
        else:
            given = np.asarray(options["start"])
            if given.dtype.kind not in "iu" or given.shape not in ((), (self.num_envs,)):
                raise ValueError(
                    f"options['start']: expected an int, or ints of shape ({self.num_envs},), got {options['start']!r}"
                )
            index = np.broadcast_to(given, (self.num_envs,))[rows]
            if (index < 0).any() or (index >= count).any():
                raise ValueError(f"options['start']: this world has starts 0..{count - 1}, got {options['start']!r}")
        return self.starts.frames[index], self.starts.actions[index], index


def _given_history(spec: WorldSpec, b: int, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the history in ``options`` for each of ``b`` rows, or raise a ValueError."""
    if options.get("frames") is None:
        raise ValueError("options: 'actions' came without 'frames'; expected uint8 frames (t, h, w, 3) beside them")
    frames = spec.check_frames(options["frames"], "options['frames']")
    if frames.ndim not in (4, 5) or (frames.ndim == 5 and len(frames) != b):
        raise ValueError(
            f"options['frames']: expected a history (t, {spec.height}, {spec.width}, 3), or one per row "
            f"({b}, t, {spec.height}, {spec.width}, 3), got {frames.shape}"
        )
    t = frames.shape[-4]
    if t < 1:
        raise ValueError(f"options['frames']: too short a history; expected at least 1 frame, got {frames.shape}")
    if options.get("actions") is None:
        if t > 1:
            raise ValueError(
                f"options['actions']: {t} frames need the {t - 1} actions between them, "
                f"shape {(t - 1, spec.action_size)}; got none"
            )
        actions = np.zeros((0, spec.action_size), spec.action_dtype)
    else:
        actions = spec.check_actions(options["actions"], "options['actions']")
    shapes = [(t - 1, spec.action_size), (b, t - 1, spec.action_size)]
    if actions.shape not in shapes:
        raise ValueError(
            f"options['actions']: {t} frames need {t - 1} actions, expected shape {shapes[0]} or {shapes[1]}, "
            f"got {actions.shape}"
        )
    return np.broadcast_to(frames, (b, *frames.shape[-4:])), np.broadcast_to(actions, (b, *actions.shape[-2:]))


def _at(states: State, j: int) -> State:
    """Return the j-th of the k states that ``unroll`` returned."""
    return states.map(lambda x: x[:, j])


def _check_count(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def _check_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed: expected a whole number, got {seed!r}")
    return int(seed)
