"""ActionQueue: which action is due at which step of the robot, and what of a chunk is settled already.

Real-time chunking (Black, Galliker and Levine 2025, arXiv 2506.07339): while the robot goes on with one chunk, the next is thought
from what is seen now. What will be done in the meantime is given to it as its prefix, so that it goes on from there, whichever
moment it arrives at. Where nothing is left to do the robot rests, and the new chunk waits for as long as that took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralsim.agents.robot.trajectory import TrajectoryBuffer


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """A chunk ``(k, a)`` thought from the frame of step ``start``: ``actions[i]`` belongs to step ``start + i``. The first ``given``
    of them were settled when it was asked for. ``foresight`` is what was imagined of it, None where nobody did; ``asked``: when the
    frame came, in seconds of the loop's clock; ``seconds``: how long it took."""

    number: int
    start: int
    given: int
    actions: np.ndarray
    foresight: Any
    asked: float
    seconds: float

    @property
    def end(self) -> int:
        """The first step it says nothing of."""
        return self.start + len(self.actions)


class ActionQueue:
    """The plan in force, and the steps at which the robot rested for want of one."""

    def __init__(self) -> None:
        self.plan: ActionChunk | None = None
        self.force = 0
        """The step at which the plan came into force."""
        self.late = 0
        """Plans that came after the actions they were given had run out, with other actions done since."""
        self._waited = 0
        self._strayed = False
        self._until: int | None = None
        self._rests: set[int] = set()

    @property
    def end(self) -> int | None:
        """The first step that the plan has no action for; None without a plan."""
        if self.plan is None:
            return None
        end = self.plan.end + self._waited
        return end if self._until is None else min(end, self._until)

    def index(self, step: int) -> int | None:
        """Which of the plan's actions is due at ``step``, or was; None where it says nothing."""
        if self.plan is None or self.end is None or step >= self.end:
            return None
        index = step - self.plan.start - self._waited
        return index if index >= 0 else None

    def index_of_frame(self, step: int) -> int | None:
        """How many of the plan's actions lead to the frame of ``step``: 1 to k; None where it was seen before they began, or other
        actions led to it."""
        if self.plan is None or self._strayed or (self._waited and step <= self.force):
            return None
        index = step - self.plan.start - self._waited
        return index if 1 <= index <= len(self.plan.actions) else None

    def action(self, step: int) -> np.ndarray | None:
        """What is due at ``step``, ``(a,)``; None: nothing, so that the robot rests."""
        index = self.index(step)
        return None if index is None or self.plan is None else self.plan.actions[index]

    def rested(self, step: int) -> None:
        """There was nothing due at ``step``."""
        self._rests.add(step)

    def settled(self, first: int, step: int, until: int, tape: TrajectoryBuffer) -> np.ndarray:
        """What is done from step ``first`` on, as far as it can no longer be changed, ``(p, a)``: what was sent up to ``step``, then
        what the plan has before ``until``."""
        sent = tape.done(first, step)
        planned = [action for i in range(step, until) if (action := self.action(i)) is not None]
        return np.concatenate([sent, np.stack(planned)]) if planned else sent

    def stop_at(self, step: int) -> None:
        """The plan in force ends before ``step``: the next cannot be there in time, and goes on from there."""
        self._until = step

    def swap(self, plan: ActionChunk, step: int) -> bool:
        """Put ``plan`` in force for what is sent from ``step`` on; False if it has nothing left to say then."""
        settled = plan.start + plan.given
        waited = sum(settled <= i < step for i in self._rests)
        if step - plan.start - waited >= len(plan.actions):
            return False
        self._strayed = step - waited > settled
        self.late += self._strayed
        self.plan, self.force, self._waited, self._until = plan, step, waited, None
        self._rests = {i for i in self._rests if i >= step}
        return True

    def drop(self) -> None:
        """Do nothing more of the plan in force."""
        self.plan = self._until = None
