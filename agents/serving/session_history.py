"""SessionHistory: what a policy server remembers of one client. A value: what a request changes comes back anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.spec import WorldSpec

STRIDE = 1_000_003
"""Between the seeds of successive chunks, as ChunkRunner counts them."""


@dataclass(frozen=True, eq=False)
class SessionHistory:
    """``seen``, one row, of the episode under way (None before its first frame), under the client's ``session``; ``made`` chunks
    of it were asked for, and it is the client's ``episode``-th."""

    seen: ObservationHistory | None = None
    session: str | None = None
    made: int = 0
    episode: int = 0

    def begun(self, session: str | None = None) -> SessionHistory:
        """Ready for a new episode: nothing has been seen. It counts from its first frame on."""
        return SessionHistory(None, session, 0, self.episode)

    def then(self, frames: np.ndarray, done: np.ndarray | None, spec: WorldSpec) -> SessionHistory:
        """After ``frames`` ``(n, h, w, 3)`` came in, the newest last, and ``done`` ``(k, a)``, what was carried out of late.

        As many actions as frames: each led to one of them, from the last that was seen before. Else the last action led to
        the newest frame, the one before it to the frame before, and so on: the frames are a history of their own, as long as
        the actions between them are known. None: nothing is known but the newest frame.
        """
        if done is None:
            seen = ObservationHistory.first(frames[-1:], spec)
        elif self.seen is not None and len(done) == len(frames):
            seen = self.seen
            for action, frame in zip(done, frames, strict=True):
                seen = seen.then(action[None], frame[None], spec.context)
        else:
            length = min(len(frames), len(done) + 1, spec.context)
            seen = ObservationHistory(frames[None, -length:], done[None, len(done) - (length - 1) :])
        return SessionHistory(seen, self.session, self.made + 1, self.episode + (self.made == 0))

    def seed(self, first: int) -> int:
        """The seed of the newest chunk where the client gave none: ChunkRunner's, for a server that begins at ``first``."""
        return first + STRIDE * (self.made - 1)
