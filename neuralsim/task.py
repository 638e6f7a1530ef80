"""Task: what is wished for (reward, end), kept apart from what happens.

A task judges one step of a batch of dreams through two Views, before and after. A View reads a state only as far as it
is asked: features without pixels, pixels decoded at most once. A new wish never needs a new model: use the learned
heads, the distance to a goal image, a function of your own, or a weighted sum of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from neuralsim.state_view import View
from neuralsim.world_model import WorldModel


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a task says of one step: reward float ``(b,)`` and terminated bool ``(b,)``."""

    reward: torch.Tensor
    terminated: torch.Tensor


class Task(Protocol):
    """Anything that judges a step: called with ``action`` ``(b, a)`` and the views before and after it."""

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """The outcome of ``action``."""


@dataclass(frozen=True)
class LearnedTask:
    """The true task as the model learned it: its ``reward`` head, and the end where its ``terminated`` head passes
    ``threshold``.
    """

    threshold: float = 0.5

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """See Task."""
        return Outcome(after.read("reward"), after.read("terminated") > self.threshold)


@dataclass(frozen=True, eq=False)
class GoalImage:
    """Make the world look like ``frame`` (uint8 ``(h, w, 3)``).

    Reward: minus the root-mean-square distance between the model's features of the dream and of the frame (for VideoWAM
    in standard deviations of its data). Ends where that distance falls under ``tolerance``.
    """

    frame: np.ndarray
    tolerance: float = 0.1
    _goals: weakref.WeakKeyDictionary[WorldModel, torch.Tensor] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False, init=False
    )

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"GoalImage: tolerance must be a distance of at least 0, got {self.tolerance!r}")

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """See Task."""
        distance = (after.features - self._goal(after)).square().mean(-1).sqrt()
        return Outcome(-distance, distance < self.tolerance)

    def _goal(self, view: View) -> torch.Tensor:
        """Features ``(1, d)`` of the goal as ``view``'s model sees it, computed once per model."""
        model = view.model
        if model not in self._goals:
            frame = model.spec.check_frames(self.frame, "GoalImage.frame")
            if frame.ndim != 3:
                raise ValueError(f"GoalImage.frame: expected one frame (h, w, 3), got shape {frame.shape}")
            pixels = torch.as_tensor(np.ascontiguousarray(frame), device=model.device)[None, None]
            with view.inference():
                state = model.encode(pixels, torch.zeros(1, 0, model.spec.action_size, device=model.device))
                self._goals[model] = model.features(state)
        return self._goals[model]


@dataclass(frozen=True)
class FunctionTask:
    """Your own rl_task: ``function(before, action, after)`` returns the reward ``(b,)``, or reward and terminated, each
    ``(b,)``.

    ``before`` and ``after`` are Views: ``after.features`` costs nothing, ``after.frame`` decodes. Arrays, tensors and
    lists will do.
    """

    function: Callable[[View, torch.Tensor, View], Any]

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """See Task."""
        said = self.function(before, action, after)
        if isinstance(said, Outcome):
            return said
        reward, terminated = said if isinstance(said, tuple) and len(said) == 2 else (said, None)
        device = after.features.device
        try:
            reward = torch.as_tensor(reward, dtype=torch.float32, device=device)
            if terminated is None:
                terminated = torch.zeros(len(after), dtype=torch.bool)
            terminated = torch.as_tensor(terminated, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            name = getattr(self.function, "__name__", repr(self.function))
            raise ValueError(
                f"FunctionTask {name}: expected a reward ({len(after)},), or (reward, terminated) of that shape, "
                f"got {said!r}"
            ) from error
        return Outcome(reward, terminated)


@dataclass(frozen=True)
class StateTask:
    """A wish told in true states: ``evaluate_task(before, actions, after)`` of float64 ``(b, s)``, float32 ``(b, a)`` and ``(b, s)``
    returns the reward ``(b,)`` and bool terminated ``(b,)``.

    In imagination the states are what the model reads off its dream; the very same function judges the true world.
    """

    judge: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """See Task."""
        arrays = (before.world_state.double(), action, after.world_state.double())
        reward, terminated = self.judge(*(x.cpu().numpy() for x in arrays))
        device = after.world_state.device
        return Outcome(torch.as_tensor(reward, device=device), torch.as_tensor(terminated, device=device))


@dataclass(frozen=True)
class UncertaintyPenaltyTask:
    """``task``, and a penalty of ``weight`` per unit of the model's ``uncertainty`` beyond ``free``: what the model does not
    know is not worth going for (MOPO, Yu et al. 2020, arXiv 2005.13239)."""

    task: Task
    weight: float
    free: float = 0.0

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """See Task."""
        outcome = evaluate_task(self.task, before, action, after)
        doubt = (after.uncertainty - self.free).clamp(min=0)
        return Outcome(outcome.reward - self.weight * doubt, outcome.terminated)


@dataclass(frozen=True)
class SumTask:
    """Several wishes at once: rewards add up by weight, and the end of any is the end: ``SumTask(((1, LearnedTask()),
    (0.1, mine)))``.
    """

    parts: Sequence[tuple[float, Task]]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("SumTask: expected at least one (weight, task), got none")
        for part in self.parts:
            if not (isinstance(part, tuple) and len(part) == 2 and callable(part[1])):
                raise ValueError(f"SumTask: expected pairs (weight, task), got {part!r}")

    def __call__(self, before: View, action: torch.Tensor, after: View) -> Outcome:
        """See Task."""
        outcomes = [(weight, evaluate_task(task, before, action, after)) for weight, task in self.parts]
        reward = sum((weight * o.reward for weight, o in outcomes[1:]), outcomes[0][0] * outcomes[0][1].reward)
        terminated = torch.stack([o.terminated for _, o in outcomes]).any(0)
        return Outcome(reward, terminated)


def evaluate_task(task: Task, before: View, action: torch.Tensor, after: View) -> Outcome:
    """``task``'s outcome, with its shapes checked: what it says goes to learners unseen, so a wrong shape must not
    broadcast.
    """
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
