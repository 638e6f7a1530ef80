"""Heads: policies that act by a world action model. All propose chunks, and all go by a name.

``joint``: the model's own ``act``. ``dream``: actions and their future denoised together. ``best``: of several proposals, each of
them imagined, the one that is worth most (as Cosmos Policy chooses, arXiv 2601.16163). ``cascade``: foresee, then infer.
``post``: a flow-matching head that reads a foreseen future. ``bc``: the same head without any future, the control. ``head`` is the
best of them, as measured (see 'neuralsim heads').
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.heads.training import KINDS
from neuralsim.models.flow_head import FlowHead
from neuralsim.models.roles import (
    DISCOUNT,
    PASSES,
    infer_actions,
    joint_of,
    predict_actions,
    predict_jointly,
    predict_value,
    predict_video,
)
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise
from neuralsim.pretrained.world import World
from neuralsim.runtime.device import inference, pick_dtype
from neuralsim.spec import WorldSpec

TRIES = 24
"""Proposals that the best is taken of."""
FEW = 2
"""Denoising passes of each of them: many rough ones are worth more than a few fine ones."""
EXECUTE = 2
"""Actions done before looking again. Of a chunk of 12, the first are the surest."""
Way = Literal["joint", "dream", "best", "cascade"]
WAYS: tuple[str, ...] = get_args(Way)
NAMES = ("head", *WAYS, *KINDS)
BEST = "best"
"""What ``head`` means."""


@dataclass(frozen=True, eq=False)
class WAMPolicy:
    """The model's own answer. ``way``: which role acts; ``passes``: of denoising; ``n_action_steps``: actions to do of a chunk."""

    model: VideoWAM
    way: Way = "joint"
    passes: int = PASSES
    n_action_steps: int = EXECUTE
    precision: str = "auto"
    tries: int = TRIES

    @property
    def spec(self) -> WorldSpec:
        """See ActionChunkPolicy."""
        return self.model.spec

    @property
    def chunk(self) -> int:
        """See ActionChunkPolicy."""
        return joint_of(self.model)[1].chunk

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """See ActionChunkPolicy."""
        return _proposed(self.model, self.precision, seen, seeds, prefix, self._chunk)

    def _chunk(self, state: VideoState, rng: Noise, prefix: torch.Tensor | None) -> torch.Tensor:
        if self.way == "joint":
            return predict_actions(self.model, state, rng, self.passes, prefix)
        if self.way == "dream":
            found = predict_jointly(self.model, state, rng, self.passes, prefix).actions
            assert found is not None
            return found
        if self.way == "best":
            return self._best(state, rng, prefix)
        future = predict_video(self.model, state, rng, self.passes)
        return infer_actions(self.model, state, future, rng.advance(), aim=1, prefix=prefix)

    def _best(self, state: VideoState, rng: Noise, prefix: torch.Tensor | None) -> torch.Tensor:
        """Several proposals, each imagined step by step by the stream that simulates; the one that comes to the most."""
        n, b = self.tries, len(state)
        tries = torch.arange(n, device=rng.count.device)
        each = replace(rng, seed=rng.seed.repeat_interleave(n), count=(rng.count[:, None] + tries).flatten())
        begun = None if prefix is None else prefix.repeat_interleave(n, 0)
        wide = state.repeat(n)
        chunks = predict_actions(self.model, wide, each, self.passes, begun)
        worth, here = torch.zeros(b * n, device=chunks.device), wide
        for i in range(chunks.shape[1]):
            here = self.model.step_alone(here, chunks[:, i], each.advance(n + i))
            worth = torch.maximum(worth, DISCOUNT ** (i + 1) * predict_value(self.model, here))
        chosen = worth.view(b, n).argmax(1)
        return chunks.unflatten(0, (b, n))[torch.arange(b, device=worth.device), chosen]


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A FlowHead beside its world: see ``neuralsim.models.flow_head``."""

    model: VideoWAM
    head: FlowHead
    passes: int = PASSES
    n_action_steps: int = EXECUTE
    precision: str = "auto"

    @property
    def spec(self) -> WorldSpec:
        """See ActionChunkPolicy."""
        return self.model.spec

    @property
    def chunk(self) -> int:
        """See ActionChunkPolicy."""
        return self.head.chunk

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """See ActionChunkPolicy."""

        def chunk(state: VideoState, rng: Noise, begun: torch.Tensor | None) -> torch.Tensor:
            frames = torch.tensor(seen.frames[:, -2:], device=state.tokens.device)
            tokens = self.model.codec.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            return self.head.predict_action_chunk(
                self.head.context(self.model, tokens, state, rng), rng, self.passes, begun
            )

        return _proposed(self.model, self.precision, seen, seeds, prefix, chunk)


Make = Callable[[VideoState, Noise, "torch.Tensor | None"], torch.Tensor]


def _proposed(
    model: VideoWAM,
    precision: str,
    seen: ObservationHistory,
    seeds: Sequence[int],
    prefix: np.ndarray | None,
    make: Make,
) -> np.ndarray:
    """What heads have in common: histories become states, and chunks arrays."""
    device = torch.device(model.device)
    begun = None if prefix is None else torch.as_tensor(prefix, dtype=torch.float32, device=device)
    with inference(device, pick_dtype(precision, device)):
        state = model.encode(
            torch.tensor(seen.frames, device=device),
            torch.tensor(seen.actions, device=device),
        )
        chunk = make(state, Noise.from_seeds(seeds, device), begun)
    actions = chunk.float().cpu().numpy()
    if prefix is not None:  # what is under way comes back as it was, whatever the arithmetic
        actions[:, : prefix.shape[1]] = prefix
    return actions


def find_head(
    name: str, world: World, passes: int | None = None, n_action_steps: int = EXECUTE, folder: Path | None = None
) -> ActionChunkPolicy:
    """The head called ``name`` on ``world``; "bc" and "post" are read from ``folder`` (runs/heads/<world> by default), where
    'neuralsim heads' puts them.

    Raises ValueError for an unknown name or a world that simulates only, FileNotFoundError for a head that was not trained.
    """
    model, _ = joint_of(world.model)
    name = BEST if name == "head" else name
    passes = passes or (FEW if name == "best" else PASSES)
    if name in WAYS:
        return WAMPolicy(model, name, passes, n_action_steps)  # type: ignore[arg-type]
    if name not in KINDS:
        near = difflib.get_close_matches(name, NAMES, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"no head {name!r}{hint}; there are {', '.join(NAMES)}")
    place = (folder or Path("runs") / "heads" / world.spec.name) / name
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place}: no head {name!r} here; 'neuralsim heads {world.spec.name}' trains it")
    head = FlowHead.from_pretrained(place, low_cpu_mem_usage=False).float().to(model.device).eval()
    if head.chunk != joint_of(model)[1].chunk or head.actions != model.spec.action_width:
        raise ValueError(f"{place}: was trained beside another world; train it anew with 'neuralsim heads'")
    return TrainedHead(model, head, passes, n_action_steps)
