"""Policies that act by a world action model; all predict chunks of actions, and each has a name.

``joint``: the model's own action prediction. ``dream``: actions and their future denoised together. ``best``: of several
proposals, each rolled out in imagination, the one of highest value (as Cosmos Policy chooses, arXiv 2601.16163).
``cascade``: predict a video, then infer its actions. ``post``: a flow-matching head that reads a predicted future.
``bc``: the same head without a future, the baseline. ``head`` is the best of them, as measured by 'neuralsim heads'.
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
from neuralsim.agents.heads.training import KINDS, read_origin
from neuralsim.models.action_encoding import EncodedActions
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
from neuralsim.storage.fingerprint import fingerprint

N_PROPOSALS = 24
"""Proposals of which "best" takes one."""
PROPOSAL_PASSES = 2
"""Denoising passes of each of them: many rough ones are better than a few fine ones."""
N_ACTION_STEPS = 2
"""Actions executed before the next observation. Of a chunk of 12, the first are the surest."""
Method = Literal["joint", "dream", "best", "cascade"]
METHODS: tuple[str, ...] = get_args(Method)
NAMES = ("head", *METHODS, *KINDS)
BEST = "best"
"""Meaning of ``head``."""


@dataclass(frozen=True, eq=False)
class WAMPolicy:
    """The model's own actions, predicted by ``method`` in ``passes`` denoising passes."""

    model: VideoWAM
    method: Method = "joint"
    passes: int = PASSES
    n_action_steps: int = N_ACTION_STEPS
    precision: str = "auto"
    n_proposals: int = N_PROPOSALS

    @property
    def spec(self) -> WorldSpec:
        """The world's spec."""
        return self.model.spec

    @property
    def chunk(self) -> int:
        """Actions in a chunk."""
        return joint_of(self.model)[1].chunk

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Return actions float32 ``(b, chunk, a)``; see ActionChunkPolicy."""
        return _predict(self.model, self.precision, seen, seeds, prefix, self._chunk)

    def _chunk(self, state: VideoState, noise: Noise, prefix: torch.Tensor | None) -> torch.Tensor:
        if self.method == "joint":
            return predict_actions(self.model, state, noise, self.passes, prefix)
        if self.method == "dream":
            actions = predict_jointly(self.model, state, noise, self.passes, prefix).actions
            assert actions is not None
            return actions
        if self.method == "best":
            return self._best(state, noise, prefix)
        future = predict_video(self.model, state, noise, self.passes)
        return infer_actions(self.model, state, future, noise.advance(), aim=1, prefix=prefix)

    def _best(self, state: VideoState, noise: Noise, prefix: torch.Tensor | None) -> torch.Tensor:
        """Roll several proposals out step by step, and take the one whose discounted value rises highest.

        Keys and values of the history are computed once per row of ``state``, not once per proposal.
        """
        n, b = self.n_proposals, len(state)
        numbers = torch.arange(n, dtype=torch.int64, device=noise.count.device)
        each = replace(noise, seed=noise.seed.repeat_interleave(n), count=(noise.count[:, None] + numbers).flatten())
        begun = None if prefix is None else prefix.repeat_interleave(n, 0)
        chunks = predict_actions(self.model, state, each, self.passes, begun)
        values = torch.zeros(b * n, dtype=torch.float32, device=chunks.device)
        encoded = EncodedActions(chunks)
        # These steps read the newest frame alone, so that the history's cache need not be repeated.
        here = replace(state, cache=state.cache[..., :0, :]).repeat(n)
        for i in range(chunks.shape[1]):
            here = self.model.step_without_history(here, encoded.steps(i, i + 1), each.advance(n + i))
            values = torch.maximum(values, DISCOUNT ** (i + 1) * predict_value(self.model, here))
        chosen = values.view(b, n).argmax(1)
        return chunks.unflatten(0, (b, n))[torch.arange(b, dtype=torch.int64, device=values.device), chosen]


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A FlowHead beside its world; see ``neuralsim.models.flow_head``."""

    model: VideoWAM
    head: FlowHead
    passes: int = PASSES
    n_action_steps: int = N_ACTION_STEPS
    precision: str = "auto"

    @property
    def spec(self) -> WorldSpec:
        """The world's spec."""
        return self.model.spec

    @property
    def chunk(self) -> int:
        """Actions in a chunk."""
        return self.head.chunk

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Return actions float32 ``(b, chunk, a)``; see ActionChunkPolicy."""

        def chunk(state: VideoState, noise: Noise, begun: torch.Tensor | None) -> torch.Tensor:
            frames = torch.tensor(seen.frames[:, -2:], device=state.tokens.device)
            tokens = self.model.codec.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            context = self.head.context(self.model, tokens, state, noise)
            return self.head.predict_action_chunk(context, noise, self.passes, begun)

        return _predict(self.model, self.precision, seen, seeds, prefix, chunk)


ChunkFunction = Callable[[VideoState, Noise, "torch.Tensor | None"], torch.Tensor]
"""A state, noise and a prefix -> actions ``(b k a)``."""


def _predict(
    model: VideoWAM,
    precision: str,
    seen: ObservationHistory,
    seeds: Sequence[int],
    prefix: np.ndarray | None,
    function: ChunkFunction,
) -> np.ndarray:
    """Encode histories, call ``function`` and return its chunks as an array."""
    device = torch.device(model.device)
    begun = None if prefix is None else torch.as_tensor(prefix, dtype=torch.float32, device=device)
    with inference(device, pick_dtype(precision, device)):
        state = model.encode(
            torch.tensor(seen.frames, device=device),
            torch.tensor(seen.actions, device=device),
        )
        chunk = function(state, Noise.from_seeds(seeds, device), begun)
    actions = chunk.float().cpu().numpy()
    if prefix is not None:  # bit-equal, whatever the arithmetic
        actions[:, : prefix.shape[1]] = prefix
    return actions


def find_head(
    name: str, world: World, passes: int | None = None, n_action_steps: int = N_ACTION_STEPS, folder: Path | None = None
) -> ActionChunkPolicy:
    """Return the head called ``name`` on ``world``.

    "bc" and "post" are read from ``folder`` (runs/heads/<world> by default), where 'neuralsim heads' puts them. Raises
    ValueError for an unknown name, a world that simulates only, or a head trained beside other weights; FileNotFoundError
    for a head that was not trained.
    """
    model, _ = joint_of(world.model)
    name = BEST if name == "head" else name
    passes = passes or (PROPOSAL_PASSES if name == "best" else PASSES)
    if name in METHODS:
        return WAMPolicy(model, name, passes, n_action_steps)  # type: ignore[arg-type]
    if name not in KINDS:
        near = difflib.get_close_matches(name, NAMES, 1, 0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"no head {name!r}{hint}; there are {', '.join(NAMES)}")
    place = (folder or Path("runs") / "heads" / world.spec.name) / name
    again = f"train it again with 'neuralsim heads {world.spec.name}'"
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place}: no head {name!r} here; 'neuralsim heads {world.spec.name}' trains it")
    trained_beside, weights = read_origin(place).get("world"), fingerprint(model.state_dict())
    if trained_beside != weights:
        raise ValueError(
            f"{place}: was trained beside a world with weights of fingerprint {trained_beside or 'unknown'}, this one's is "
            f"{weights}; {again}"
        )
    head = FlowHead.from_pretrained(place, low_cpu_mem_usage=False).float().to(model.device).eval()
    if head.chunk != joint_of(model)[1].chunk or head.actions != model.spec.action_width:
        raise ValueError(f"{place}: was trained for other actions or chunks; {again}")
    return TrainedHead(model, head, passes, n_action_steps)
