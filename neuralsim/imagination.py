"""Imagination: many dreams side by side on one model. The one place with mutable state; all else in NeuralSim is
values.

The heart beneath the environments. It never resets by itself, decodes pixels only when somebody looks and then once per
step, and keeps everything that changes in one Snapshot: taking one is free, putting one back exact, and a call that
raises has changed nothing.
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
from neuralsim.state_view import View
from neuralsim.task import LearnedTask, Task, evaluate_task
from neuralsim.world_model import State, WorldModel

START_STREAM = -1
"""The stream of a slot's Noise from which its start is drawn; models draw theirs from 0 upwards."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything of an Imagination that changes: what is seen, the noise to come, steps so far ``(b,)``, whether the
    last step ended the episode ``(b,)``, and which shipped start it began from ``(b,)``, -1 for a history of the
    caller's own.
    """

    view: View
    noise: Noise
    elapsed: torch.Tensor
    ended: torch.Tensor
    start: torch.Tensor

    def __len__(self) -> int:
        return len(self.elapsed)


@dataclass(frozen=True, eq=False)
class Transition:
    """What a step brought, per slot. reward float32, terminated and truncated bool, uncertainty float32, all ``(b,)``.

    ``truncated_by``: ``"uncertainty"``, ``"horizon"`` or None (the first where both hold: the frame is not to be
    trusted). ``played`` int64: steps taken, 0 for a slot that was held.
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    truncated_by: np.ndarray
    uncertainty: np.ndarray
    played: np.ndarray


@dataclass(frozen=True, eq=False)
class Chunk(Transition):
    """A Transition over k steps: rewards summed over the ``played`` ones. What was dreamt beyond never happened."""

    view: View
    """All k states, slots outermost: ``(b * k, ...)``."""

    def frames(self) -> np.ndarray:
        """uint8 ``(b, k, h, w, 3)``; slot i's are real up to ``played[i]``. Decoded at the first call."""
        return _array(self.view.frame).reshape(len(self.played), -1, *self.view.frame.shape[1:])

    def features(self) -> np.ndarray:
        """float32 ``(b, k, d)``, likewise."""
        return _array(self.view.features).reshape(len(self.played), -1, self.view.features.shape[-1])


class Imagination:
    """``num_envs`` dreams on ``model``, judged by ``task`` (default: the model's own learned heads).

    starts: histories that ``reset`` draws from. horizon: steps after which an episode is truncated (None: never).
    uncertainty_limit: truncated beyond it (default: the model's calibrated ``uncertainty_threshold``; infinity: never).
    temperature: scale of the model's noise. denoise_steps: passed to models that have it. lean: dream with no more than the
    features need, of an ensemble one member; its doubt is then no measure of anything. precision: "auto" (bfloat16
    where the hardware multiplies in it), "float32" or "bfloat16".

    A slot's start and its noise come from that slot's seed alone, so row i of a batch dreams what its seed dreams
    alone, up to rounding. Not for use from several threads at once.
    """

    def __init__(
        self,
        model: WorldModel,
        task: Task | None = None,
        *,
        num_envs: int = 1,
        starts: Starts | None = None,
        horizon: int | None = 300,
        uncertainty_limit: float | None = None,
        temperature: float = 1.0,
        denoise_steps: int | None = None,
        lean: bool = False,
        precision: str = "auto",
    ) -> None:
        _check_count(num_envs, "num_envs")
        if horizon is not None:
            _check_count(horizon, "horizon")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature: expected a number of at least 0, got {temperature!r}")
        if task is None:
            missing = {"reward", "terminated"} - set(model.head_names)
            if missing:
                raise ValueError(
                    f"{type(model).__name__} has no learned {sorted(missing)}: pass a task, e.g. FunctionTask"
                )
            task = LearnedTask()
        if uncertainty_limit is None:
            uncertainty_limit = float(getattr(model, "uncertainty_threshold", float("inf")))
        if not uncertainty_limit > 0:
            raise ValueError(f"uncertainty_limit: expected a number above 0, got {uncertainty_limit!r}")
        # A shallow copy shares the weights and owns its plain attributes: denoise_steps here is nobody else's.
        self.model: WorldModel = copy.copy(model)
        self.task = task
        self.num_envs = num_envs
        self.starts = starts
        self.horizon = horizon
        self.uncertainty_limit = uncertainty_limit
        self.temperature = float(temperature)
        self.device = torch.device(model.device)
        self.lean = lean
        self.dtype = pick_dtype(precision, self.device)
        self._now: Snapshot | None = None
        if denoise_steps is not None:
            self.denoise_steps = denoise_steps

    # -- looking -------------------------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The present of all slots, read on demand."""
        return self.snapshot().view

    def features(self) -> np.ndarray:
        """float32 ``(b, d)``; never decodes."""
        return _array(self.view.features)

    def frames(self) -> np.ndarray:
        """uint8 ``(b, h, w, 3)``; decoded once per step however often it is called, a fresh array each time."""
        return _array(self.view.frame)

    def uncertainty(self) -> np.ndarray:
        """float32 ``(b,)``."""
        return _array(self.view.uncertainty)

    @property
    def elapsed(self) -> np.ndarray:
        """int64 ``(b,)``: steps since each slot's reset."""
        return _array(self.snapshot().elapsed)

    @property
    def ended(self) -> np.ndarray:
        """bool ``(b,)``: whether each slot's last step terminated or was truncated. A slot may be stepped on all the
        same.
        """
        return _array(self.snapshot().ended)

    @property
    def start(self) -> np.ndarray:
        """int64 ``(b,)``: the shipped start each slot began from, -1 for a history of the caller's own."""
        return _array(self.snapshot().start)

    @property
    def denoise_steps(self) -> int:
        """Denoising steps per frame, changeable at any time; an AttributeError for models that know no such thing."""
        return int(self.model.denoise_steps)

    @denoise_steps.setter
    def denoise_steps(self, steps: int) -> None:
        _check_count(steps, "denoise_steps")
        if not hasattr(self.model, "denoise_steps"):
            raise ValueError(f"{type(self.model).__name__} does not denoise: leave denoise_steps out")
        model: Any = copy.copy(self.model)  # a fork may be using this one
        model.denoise_steps = steps
        self.model = model

    # -- beginning -----------------------------------------------------------------------------------------------------

    def reset(
        self,
        mask: np.ndarray | None = None,
        seeds: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin anew in the slots where ``mask`` ``(b,)`` holds (default all); the others are untouched, to the bit.

        seeds: an int s gives slot i the seed s + i; a sequence has one entry per slot. A slot without a seed goes on in
        its own stream. options: ``{"start": index}`` picks a shipped start; ``{"frames": uint8 (t, h, w, 3), "actions":
        (t-1, a)}`` is any history, t at least 1. Both also with a leading axis of one entry per slot (entries outside
        the mask are not used). By default a start is drawn. Raises ValueError for bad input.
        """
        chosen = self._check_mask(mask)
        if self._now is None and not chosen.all():
            raise ResetNeeded(
                f"the first reset must begin all {self.num_envs} slots; call reset() without a mask first"
            )
        noise = self._noise_for(chosen, self._check_seeds(seeds))
        rows = np.flatnonzero(chosen)
        frames, actions, start = self._history(rows, noise, options or {})
        if len(rows) == 0:
            return
        with inference(self.device, self.dtype):
            fresh = self.model.encode(
                torch.as_tensor(np.ascontiguousarray(frames)).to(self.device), torch.as_tensor(actions).to(self.device)
            )
            fresh = self.model.without_ensemble(fresh) if self.lean else fresh
            began = torch.as_tensor(start, dtype=torch.int64, device=self.device)
            zeros = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
            if self._now is None or chosen.all():
                view = View(self.model, fresh, self.dtype)
                self._now = Snapshot(view, noise, zeros, zeros.bool(), began)
                return
            now, where = self._now, torch.as_tensor(chosen, device=self.device)
            position = torch.as_tensor(np.maximum(np.cumsum(chosen) - 1, 0), device=self.device)
            view = View(
                self.model,
                now.view.state.where(where, fresh.index(position)),
                self.dtype,
                self._partly(now.view, fresh, position, where),
            )
            self._now = Snapshot(
                view,
                noise,
                now.elapsed.masked_fill(where, 0),
                now.ended.masked_fill(where, False),
                torch.where(where, began[position], now.start),
            )

    def _partly(self, old: View, fresh: State, position: torch.Tensor, where: torch.Tensor) -> Any:
        """How to decode after a masked reset: only the new rows, where the others have been decoded already; None: all
        of them.
        """
        if not old.decoded:
            return None
        frame, model = old.frame, self.model
        return lambda: torch.where(where.view(-1, 1, 1, 1), model.decode(fresh)[position], frame)

    # -- stepping ------------------------------------------------------------------------------------------------------

    def step(self, action: Any, mask: np.ndarray | None = None) -> Transition:
        """One step with ``action`` ``(b, a)`` in [-1, 1], or of choices; slots where ``mask`` does not hold stand still, reward 0."""
        now = self.snapshot()
        plan = self.check_action(action, (self.num_envs, self.model.spec.action_size))[:, None]
        live = self._check_mask(mask)
        with inference(self.device, self.dtype):
            state = self.model.step(now.view.state, plan[:, 0], now.noise) if live.any() else now.view.state
        following, transition = self._follow(now, [View(self.model, state, self.dtype)], plan, live)
        self._now = following
        return Transition(**transition)

    def step_chunk(self, actions: Any, mask: np.ndarray | None = None) -> Chunk:
        """k steps with ``actions`` ``(b, k, a)`` through the model's ``unroll``; each slot stops at its first end
        within the chunk.
        """
        now = self.snapshot()
        plan = self.check_action(actions, (self.num_envs, None, self.model.spec.action_size))
        live = self._check_mask(mask)
        with inference(self.device, self.dtype):
            states = self.model.unroll(now.view.state, plan, now.noise)
            views = [View(self.model, _at(states, j), self.dtype) for j in range(plan.shape[1])]
            whole = View(self.model, states.map(lambda x: x.flatten(0, 1)), self.dtype)
        following, transition = self._follow(now, views, plan, live, whole)
        chunk = Chunk(**transition, view=whole)
        self._now = following
        return chunk

    def _follow(
        self, now: Snapshot, views: list[View], plan: torch.Tensor, live: np.ndarray, whole: View | None = None
    ) -> tuple[Snapshot, dict[str, np.ndarray]]:
        """Judge the k states of ``views``, stop each slot at its first end, and say where that leaves everything."""
        held = torch.as_tensor(~live, device=self.device)
        going = ~held
        b = self.num_envs
        reward = torch.zeros(b, device=self.device)
        played = torch.zeros(b, dtype=torch.int64, device=self.device)
        terminated, beyond, late = (torch.zeros(b, dtype=torch.bool, device=self.device) for _ in range(3))
        uncertainty = now.view.uncertainty
        before = now.view
        for j, after in enumerate(views):
            if not bool(going.any()):
                break
            outcome = evaluate_task(self.task, before, plan[:, j], after)
            reward = torch.where(going, reward + outcome.reward.detach().float(), reward)
            uncertainty = torch.where(going, after.uncertainty, uncertainty)
            played = played + going
            terminated = terminated | (going & outcome.terminated)
            # Not "greater": a model gone to NaN is beyond every limit.
            beyond = beyond | (going & ~(uncertainty <= self.uncertainty_limit))
            if self.horizon is not None:
                late = late | (going & (now.elapsed + played >= self.horizon))
            going = going & ~(terminated | beyond | late)
            before = after
        ended = terminated | beyond | late
        following = Snapshot(
            self._arrive(now.view, views, played, held, whole),
            replace(now.noise, count=now.noise.count + played),
            now.elapsed + played,
            torch.where(held, now.ended, ended),
            now.start,
        )
        reason = np.full(b, None, dtype=object)
        reason[_array(late)] = "horizon"
        reason[_array(beyond)] = "uncertainty"
        transition = {
            "reward": _array(reward),
            "terminated": _array(terminated),
            "truncated": _array(beyond | late),
            "truncated_by": reason,
            "uncertainty": _array(uncertainty),
            "played": _array(played),
        }
        return following, transition

    def _arrive(
        self, old: View, views: list[View], played: torch.Tensor, held: torch.Tensor, whole: View | None
    ) -> View:
        """The view where each slot stopped: after its last played step, or where it was if held."""
        if whole is None:
            arrived = views[0]
        else:
            last = torch.arange(len(played), device=self.device) * len(views) + (played - 1).clamp(min=0)
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

    # -- keeping and branching -----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """All that changes, as a value: free to take, valid for ever, and to be put back any number of times."""
        if self._now is None:
            raise ResetNeeded("nothing is being dreamt yet: call reset first, e.g. reset(seed=0)")
        return self._now

    def restore(self, snap: Snapshot) -> None:
        """Go back to ``snap``, taken here or from another Imagination on the same weights with as many slots; what
        follows is bit-equal.
        """
        if not isinstance(snap, Snapshot):
            raise TypeError(f"restore: expected what snapshot() returned, got {type(snap).__name__}")
        if len(snap) != self.num_envs:
            raise ValueError(
                f"restore: expected a snapshot of {self.num_envs} slots, got one of {len(snap)}; "
                "fork(n) makes more slots"
            )
        if not _same_weights(snap.view.model, self.model):
            raise ValueError("restore: this snapshot was dreamt by a model with other weights, or on another device")
        if snap.view.dtype is not self.dtype:
            raise ValueError(
                f"restore: this snapshot was dreamt in {snap.view.dtype}, this Imagination in {self.dtype}"
            )
        if snap.noise.temperature != self.temperature:
            snap = replace(snap, noise=replace(snap.noise, temperature=self.temperature))
        self._now = snap

    def fork(self, n: int, seeds: Sequence[int] | None = None) -> Imagination:
        """A new Imagination where every slot is there n times: its row ``i * n + j`` is copy j of slot i. This one is
        untouched.

        The copies' noise goes on as the slot's own would, so copies given equal actions dream equal futures and
        differences come from actions alone. With ``seeds`` ``(b * n,)`` every copy has luck of its own.
        """
        _check_count(n, "fork: n")
        now = self.snapshot()
        b = n * self.num_envs
        noise = None
        if seeds is not None:
            if len(seeds) != b:
                raise ValueError(f"fork: expected one seed for each of the {b} new slots, got {len(seeds)}")
            noise = Noise.from_seeds([_check_seed(s) for s in seeds], self.device, self.temperature)
        twin = copy.copy(self)
        twin.num_envs = b
        with torch.inference_mode():
            rows = torch.arange(self.num_envs, device=self.device).repeat_interleave(n)
            decoder = None
            if now.view.decoded:
                frame = now.view.frame
                decoder = lambda: frame[rows]  # noqa: E731 (bound late: the copies are made only if looked at)
            view = View(self.model, now.view.state.repeat(n), self.dtype, decoder)
            noise = now.noise.index(rows) if noise is None else noise
            twin._now = Snapshot(view, noise, now.elapsed[rows], now.ended[rows], now.start[rows])
        return twin

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """What is done inside is undone if anything in it raises."""
        before = self._now
        try:
            yield
        except BaseException:
            self._now = before
            raise

    # -- the border: what comes in is checked here, before anything changes --------------------------------------------

    def check_action(self, action: Any, shape: tuple[int | None, ...]) -> torch.Tensor:
        """``action`` as the spec's dtype has it, of ``shape`` (None: any length from 1 on) on the model's device, or a ValueError."""
        if isinstance(action, torch.Tensor):
            action = action.detach().cpu().numpy()
        array = self.model.spec.check_actions(action)
        if array.ndim != len(shape) or any(
            s != n if s is not None else n < 1 for s, n in zip(shape, array.shape, strict=True)
        ):
            wanted = tuple("k" if s is None else s for s in shape)
            raise ValueError(f"action: expected shape {wanted} for {self.num_envs} slots, got {array.shape}")
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
            raise ValueError(f"seeds: expected one for each of the {self.num_envs} slots, got {len(listed)}")
        return [None if s is None else _check_seed(s) for s in listed]

    def _noise_for(self, chosen: np.ndarray, seeds: list[int | None]) -> Noise:
        """Every slot's stream after a reset of ``chosen``."""
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

    def _history(
        self, rows: np.ndarray, noise: Noise, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What ``rows`` begin from: frames ``(m t h w 3)``, actions ``(m t-1 a)`` and the numbers of the shipped starts
        ``(m,)``.
        """
        if not isinstance(options, Mapping):
            raise TypeError(f"options: expected a dict, got {type(options).__name__}")
        unknown = sorted(set(options) - {"frames", "actions", "start"}, key=str)
        if unknown:
            raise ValueError(f"options: unknown {unknown}; reset takes 'start', or 'frames' and 'actions'")
        if "frames" in options or "actions" in options:
            if "start" in options:
                raise ValueError("options: 'start' and 'frames' exclude each other; got both")
            frames, actions = self._own_history(rows, options)
            return frames, actions, np.full(len(rows), -1)
        if self.starts is None:
            raise ValueError(
                "this world has no start states (starts.npz); begin from a history of your own: "
                "options={'frames': uint8 (t, h, w, 3), 'actions': (t-1, a)}"
            )
        count = len(self.starts)
        if options.get("start") is None:
            drawn = (noise.uniform(1, START_STREAM)[:, 0].double() * count).long().clamp(max=count - 1)
            index = _array(drawn)[rows]
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

    def _own_history(self, rows: np.ndarray, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        spec, b = self.model.spec, self.num_envs
        if options.get("frames") is None:
            raise ValueError("options: 'actions' came without 'frames'; expected uint8 frames (t, h, w, 3) beside them")
        frames = spec.check_frames(options["frames"], "options['frames']")
        if frames.ndim not in (4, 5) or (frames.ndim == 5 and len(frames) != b):
            raise ValueError(
                f"options['frames']: expected a history (t, {spec.height}, {spec.width}, 3), or one per slot "
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
        every = [np.broadcast_to(x, (b, *x.shape[-n:]))[rows] for x, n in ((frames, 4), (actions, 2))]
        return every[0], every[1]


def _at(states: State, j: int) -> State:
    """The j-th of the k states that ``unroll`` returned."""
    return states.map(lambda x: x[:, j])


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A numpy copy: what callers do to it reaches nothing here."""
    return np.array(tensor.detach().cpu().numpy())


def _check_count(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{what}: expected a whole number of at least 1, got {value!r}")


def _check_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed: expected a whole number, got {seed!r}")
    return int(seed)


def _same_weights(one: WorldModel, other: WorldModel) -> bool:
    """Whether two models are views of one: the same class and spec, and the very same tensors."""
    if type(one) is not type(other) or one.spec != other.spec:
        return False
    pairs = zip(one.state_dict(keep_vars=True).values(), other.state_dict(keep_vars=True).values(), strict=False)
    return all(x is y for x, y in pairs)
