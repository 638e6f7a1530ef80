"""Task: reward and termination, kept apart from the dynamics.

A task evaluates one step of a batch of rollouts through two Views, before and after. A new task never needs a new model: use
the learned heads, the distance to a goal image, a function of your own, or a weighted sum of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from neuralsim.models.action_encoding import no_actions
from neuralsim.state_view import View
from neuralsim.world_model import WorldModel


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a task for one step: reward float ``(b,)`` and terminated bool ``(b,)``."""

    reward: torch.Tensor
    terminated: torch.Tensor


class Task(Protocol):
    """A callable that evaluates a step, given ``action`` ``(b, a)`` and the views before and after it."""

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """Return the outcome of ``action``."""


@dataclass(frozen=True)
class LearnedTask:
    """The real task as the model learned it: its ``reward`` head; terminated where its ``terminated`` head exceeds ``threshold``."""

    threshold: float = 0.5

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        return Outcome(after.read("reward"), after.read("terminated") > self.threshold)


@dataclass(frozen=True, eq=False)
class GoalImage:
    """Reach the image ``frame`` (uint8 ``(h, w, 3)``).

    Reward: minus the root-mean-square distance between the model's features of the state and of the frame (for VideoWAM
    in standard deviations of its data). Terminates where that distance falls under ``tolerance``.
    """

    frame: np.ndarray
    tolerance: float = 0.1
    _goals: weakref.WeakKeyDictionary[WorldModel, torch.Tensor] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False, init=False
    )

    def __getstate__(self) -> dict[str, Any]:
        return {"frame": self.frame, "tolerance": self.tolerance}  # the cache is of this process's models

    def __setstate__(self, values: dict[str, Any]) -> None:
        for name, value in {**values, "_goals": weakref.WeakKeyDictionary()}.items():
            object.__setattr__(self, name, value)

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"GoalImage: tolerance must be a distance of at least 0, got {self.tolerance!r}")

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        distance = (after.features - self._goal(after)).square().mean(-1).sqrt()
        return Outcome(-distance, distance < self.tolerance)

    def _goal(self, view: View) -> torch.Tensor:
        """Return features ``(1, d)`` of the goal by ``view``'s model, computed once per model."""
        model = view.model
        if model not in self._goals:
            frame = model.spec.check_frames(self.frame, "GoalImage.frame")
            if frame.ndim != 3:
                raise ValueError(f"GoalImage.frame: expected one frame (h, w, 3), got shape {frame.shape}")
            pixels = torch.as_tensor(np.ascontiguousarray(frame), device=model.device)[None, None]
            with view.inference():
                state = model.encode(pixels, no_actions(model.spec, 1, 0, model.device))
                self._goals[model] = model.features(state)
        return self._goals[model]


@dataclass(frozen=True)
class FunctionTask:
    """A task of your own: ``function(before, action, after)`` returns the reward ``(b,)``, or reward and terminated, each
    ``(b,)``.

    ``before`` and ``after`` are Views: ``after.features`` costs nothing, ``after.frame`` decodes. Arrays, tensors and
    lists will do.
    """

    function: Callable[[View, torch.Tensor, View], Any]

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        result = self.function(before, action, after)
        if isinstance(result, Outcome):
            return result
        reward, terminated = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        device = after.features.device
        try:
            reward = torch.as_tensor(reward, dtype=torch.float32, device=device)
            if terminated is None:
                terminated = torch.zeros(len(after), dtype=torch.bool, device=device)
            terminated = torch.as_tensor(terminated, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            name = getattr(self.function, "__name__", repr(self.function))
            raise ValueError(
                f"FunctionTask {name}: expected a reward ({len(after)},), or (reward, terminated) of that shape, "
                f"got {result!r}"
            ) from error
        return Outcome(reward, terminated)


@dataclass(frozen=True)
class StateTask:
    """A task on simulator states: ``function(before, actions, after)`` of float64 ``(b, s)``, float32 ``(b, a)`` and ``(b, s)``
    returns the reward ``(b,)`` and bool terminated ``(b,)``.

    In imagination the states are the model's estimates; the same function serves the real environment.
    """

    function: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        arrays = (before.world_state.double(), action, after.world_state.double())
        reward, terminated = self.function(*(x.cpu().numpy() for x in arrays))
        device = after.world_state.device
        return Outcome(torch.as_tensor(reward, device=device), torch.as_tensor(terminated, device=device))


@dataclass(frozen=True)
class UncertaintyPenaltyTask:
    """``task`` with a penalty of ``weight`` per unit of the model's ``uncertainty`` beyond ``free``, so that agents avoid states
    the model does not know (MOPO, Yu et al. 2020, arXiv 2005.13239)."""

    task: Task
    weight: float
    free: float = 0.0

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        outcome = evaluate_task(self.task, before, action, after)
        excess = (after.uncertainty - self.free).clamp(min=0)
        return Outcome(outcome.reward - self.weight * excess, outcome.terminated)


@dataclass(frozen=True)
class SumTask:
    """A weighted sum of tasks, ``SumTask(((1, LearnedTask()), (0.1, mine)))``; it terminates where any of them does."""

    parts: Sequence[tuple[float, Task]]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("SumTask: expected at least one (weight, task), got none")
        for part in self.parts:
            if not (isinstance(part, tuple) and len(part) == 2 and callable(part[1])):
                raise ValueError(f"SumTask: expected pairs (weight, task), got {part!r}")

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        outcomes = [(weight, evaluate_task(task, before, action, after)) for weight, task in self.parts]
        reward = sum((weight * o.reward for weight, o in outcomes[1:]), outcomes[0][0] * outcomes[0][1].reward)
        terminated = torch.stack([o.terminated for _, o in outcomes]).any(0)
        return Outcome(reward, terminated)


def evaluate_task(task: Task, before: View, action: torch.Tensor, after: View) -> Outcome:
    """Return the outcome of ``task`` with its shapes checked: it goes straight to learners, so a wrong shape must not broadcast."""
    outcome = task(before, action, after)
    if not isinstance(outcome, Outcome):
        raise TypeError(
            f"task {task!r}: expected an Outcome, got {type(outcome).__name__}; wrap a plain function in FunctionTask"
        )
    shape = (len(after),)
    if tuple(outcome.reward.shape) != shape or tuple(outcome.terminated.shape) != shape:
        raise ValueError(
            f"task {task!r}: expected reward and terminated of shape {shape}, "
            f"got {tuple(outcome.reward.shape)} and {tuple(outcome.terminated.shape)}"
        )
    if outcome.terminated.dtype != torch.bool:
        raise ValueError(f"task {task!r}: expected terminated to be bool, got {outcome.terminated.dtype}")
    return outcome
