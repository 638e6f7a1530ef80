"""Answers: what a world action model says about moments, in every role. A question is asked when its answer is first looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from neuralsim.evaluation.moments import RoleQueries
from neuralsim.models.roles import FOLLOWING, PASSES, act, ask, dream, foresee, infer, value
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise
from neuralsim.runtime.device import pick_dtype
from neuralsim.task import inference

Question = Callable[[VideoState, Noise, slice], tuple[torch.Tensor, ...]]
"""Asks about some rows: their states, their noise, and which rows they are."""


@dataclass(frozen=True, eq=False)
class RolePredictions:
    """What ``model`` says about ``moments``. ``aim``: 1 for what a demonstrator would do, 0 for what anybody might; ``passes`` of
    denoising, but one where the answer follows from what is given. Moment i's noise follows ``seed`` and i alone. Frames are
    tokens ``(n, k, N, d)``, actions ``(n, k, a)``."""

    model: VideoWAM
    moments: RoleQueries
    aim: int
    passes: int = PASSES
    seed: int = 0
    precision: str = "auto"
    batch: int = 256

    def each(self, question: Question) -> tuple[torch.Tensor, ...]:
        """The answers to ``question``, a batch at a time; numbers in float32."""
        n, device, parts = len(self.moments), torch.device(self.model.device), []
        for i in range(0, n, self.batch):
            rows = slice(i, min(i + self.batch, n))
            rng = Noise.from_seeds([self.seed * 1_000_003 + j for j in range(rows.start, rows.stop)], device)
            with inference(device, pick_dtype(self.precision, device)):
                parts.append(question(self.moments.state.index(rows), rng, rows))
        whole = (torch.cat(column) for column in zip(*parts, strict=True))
        return tuple(x.float() if x.is_floating_point() else x for x in whole)

    # -- asked about something

    def simulate(self, actions: torch.Tensor) -> torch.Tensor:
        """The frames after each of ``actions``, step by step, as the environment dreams them."""

        def question(state: VideoState, rng: Noise, rows: slice) -> tuple[torch.Tensor, ...]:
            frames = []
            for i, action in enumerate(actions[rows].unbind(1)):
                state = self.model.step(state, action, rng.advance(i))
                frames.append(state.tokens)
            return (torch.stack(frames, 1),)

        return self.each(question)[0]

    def simulate_jointly(self, actions: torch.Tensor) -> torch.Tensor:
        """The same asked of the joint stream, the whole chunk at once."""

        def question(state: VideoState, rng: Noise, rows: slice) -> tuple[torch.Tensor, ...]:
            found = ask(self.model, state, rng, FOLLOWING, frames="asked", actions=actions[rows], aim=self.aim).frames
            assert found is not None
            return (found,)

        return self.each(question)[0]

    def infer(self, frames: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """The actions that led through ``frames``."""
        return self.each(
            lambda state, rng, rows: (
                infer(self.model, state, frames[rows], rng, aim=self.aim, prefix=_of(prefix, rows)),
            )
        )[0]

    def act(self, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """The next actions, from ``prefix`` on where one is given."""
        return self.each(
            lambda state, rng, rows: (act(self.model, state, rng, self.passes, _of(prefix, rows), self.aim),)
        )[0]

    def dream(self, prefix: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The next actions and frames, denoised together."""

        def question(state: VideoState, rng: Noise, rows: slice) -> tuple[torch.Tensor, ...]:
            found = dream(self.model, state, rng, self.passes, _of(prefix, rows), self.aim)
            assert found.actions is not None
            assert found.frames is not None
            return found.actions, found.frames

        actions, frames = self.each(question)
        return actions, frames

    # -- asked more than once, and answered once

    @cached_property
    def acted(self) -> torch.Tensor:
        """``act()``."""
        return self.act()

    @cached_property
    def inferred(self) -> torch.Tensor:
        """``infer`` of the true frames."""
        return self.infer(self.moments.tokens[:, 1:])

    @cached_property
    def foreseen(self) -> torch.Tensor:
        """The next frames, whatever the actions."""
        return self.each(lambda state, rng, rows: (foresee(self.model, state, rng, self.passes, self.aim),))[0]

    @cached_property
    def simulated(self) -> torch.Tensor:
        """``simulate`` of the true actions."""
        return self.simulate(self.moments.actions)

    @cached_property
    def simulated_jointly(self) -> torch.Tensor:
        """``simulate_jointly`` of the true actions."""
        return self.simulate_jointly(self.moments.actions)

    @cached_property
    def simulated_otherwise(self) -> torch.Tensor:
        """``simulate`` of the actions of ``moments.others``."""
        return self.simulate(self.moments.actions[self.moments.others])

    @cached_property
    def worth(self) -> torch.Tensor:
        """What each moment is worth, ``(n,)``."""
        return self.each(lambda state, rng, rows: (value(self.model, state),))[0]


def _of(prefix: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if prefix is None else prefix[rows]
