"""ActionQueue: maps each step of the robot to an action of the current chunk.

Real-time chunking (Black, Galliker and Levine 2025, arXiv 2506.07339): while the robot carries out one chunk, the next is inferred
from the newest frame. The actions that will be done in the meantime are given to the policy as a prefix, so that its chunk
continues them whenever it arrives. Where nothing is left to do the robot rests, and the new chunk is delayed by as many steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralsim.agents.robot.trajectory import TrajectoryBuffer
from neuralsim.agents.safety.monitor import ImaginedChunk


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """Chunk of actions inferred from the frame of one step."""

    number: int
    start: int
    """Step of the frame: ``actions[i]`` belongs to step ``start + i``."""
    prefix_length: int
    """Leading actions that were settled when the chunk was requested."""
    actions: np.ndarray
    """``(k, a)``."""
    imagined: ImaginedChunk | None
    """Imagined future of the chunk; None where nothing is imagined."""
    frame_time: float
    """Seconds of the loop's clock when the frame arrived."""
    seconds: float
    """Time that inference took."""

    @property
    def end(self) -> int:
        """First step after its last action."""
        return self.start + len(self.actions)


class ActionQueue:
    """The current chunk, and the steps at which the robot rested for want of one."""

    def __init__(self) -> None:
        self.chunk: ActionChunk | None = None
        self.begun_at = 0
        """Step at which the chunk took over."""
        self.late = 0
        """Chunks that arrived after their prefix had run out, with other actions done since."""
        self._delay = 0
        self._diverged = False
        self._stop_at: int | None = None
        self._rests: set[int] = set()

    @property
    def end(self) -> int | None:
        """First step without an action; None without a chunk."""
        if self.chunk is None:
            return None
        end = self.chunk.end + self._delay
        return end if self._stop_at is None else min(end, self._stop_at)

    def index(self, step: int) -> int | None:
        """Return the index in the chunk of the action at ``step``; None without one."""
        if self.chunk is None or self.end is None or step >= self.end:
            return None
        index = step - self.chunk.start - self._delay
        return index if index >= 0 else None

    def index_of_frame(self, step: int) -> int | None:
        """Return the number of the chunk's actions (1 to k) that lead to the frame of ``step``; None for a frame from before
        they began, or after other actions."""
        if self.chunk is None or self._diverged or (self._delay and step <= self.begun_at):
            return None
        index = step - self.chunk.start - self._delay
        return index if 1 <= index <= len(self.chunk.actions) else None

    def action(self, step: int) -> np.ndarray | None:
        """Return the action ``(a,)`` of ``step``; None where the robot is to rest."""
        index = self.index(step)
        return None if index is None or self.chunk is None else self.chunk.actions[index]

    def add_rest(self, step: int) -> None:
        """Note that the robot rested at ``step``."""
        self._rests.add(step)

    def settled(self, first: int, step: int, until: int, trajectory: TrajectoryBuffer) -> np.ndarray:
        """Return the actions from ``first`` on that cannot change any more, ``(p, a)``: those sent before ``step``, then those
        queued before ``until``."""
        sent = trajectory.actions(first, step)
        queued = [action for i in range(step, until) if (action := self.action(i)) is not None]
        return np.concatenate([sent, np.stack(queued)]) if queued else sent

    def stop_at(self, step: int) -> None:
        """End the current chunk before ``step``: the next cannot arrive in time, and begins there."""
        self._stop_at = step

    def replace(self, chunk: ActionChunk, step: int) -> bool:
        """Use ``chunk`` for the actions from ``step`` on; False if it has none left by then."""
        settled = chunk.start + chunk.prefix_length
        delay = sum(settled <= i < step for i in self._rests)
        if step - chunk.start - delay >= len(chunk.actions):
            return False
        self._diverged = step - delay > settled
        self.late += self._diverged
        self.chunk, self.begun_at, self._delay, self._stop_at = chunk, step, delay, None
        self._rests = {i for i in self._rests if i >= step}
        return True

    def drop(self) -> None:
        """Drop the rest of the current chunk."""
        self.chunk = self._stop_at = None
