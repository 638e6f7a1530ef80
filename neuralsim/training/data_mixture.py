"""Mixtures of training windows: episodes with and without actions, demonstrations, play and video."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from neuralsim.data.store import EpisodeStore
from neuralsim.models.roles import DISCOUNT
from neuralsim.training.recipes import VideoRecipe
from neuralsim.training.token_dataset import TokenWindows


class DataMixture:
    """Data of the joint stage: demonstrations, play, and video without actions; each batch trains one role.

    Per frame of the store: ``aim`` int64, 1 where the demonstrator acts; ``value`` float32, ``DISCOUNT`` to the power of the steps
    until the demonstrator's first success, 0 where there is none, NaN for other policies.
    """

    ROLES: ClassVar[dict[str, dict[str, float]]] = {
        "demonstrations": {"act": 0.65, "dream": 0.12, "infer": 0.12, "foresee": 0.11},
        "play": {"act": 0.05, "dream": 0.1, "infer": 0.45, "simulate": 0.4},
        "video": {"foresee": 1.0},
    }
    """Odds of each role: acting is the hardest to learn, and only demonstrations show it."""

    def __init__(self, store: EpisodeStore, tokens: torch.Tensor, recipe: VideoRecipe) -> None:
        kept = store.split(held_out=False)
        policies = [str(store.provenance(int(i)).get("policy")) for i in kept]
        demonstrated = np.array(
            [name == recipe.demonstrator or name.startswith(f"{recipe.demonstrator}-") for name in policies], bool
        )
        acted = store.acted(kept)
        if not (demonstrated & acted).any():
            raise ValueError(
                f"{store.folder}: no training episodes of policy {recipe.demonstrator!r} to learn acting from; collect some with "
                f"'neuralsim collect {store.spec.name} --policy {recipe.demonstrator} --out FOLDER' and add --also FOLDER"
            )
        parts = (
            ("demonstrations", demonstrated & acted, True),
            ("play", ~demonstrated & acted, True),
            ("video", ~acted, False),
        )
        self._parts = [
            (recipe.joint_mix[name], name, TokenWindows(store, tokens, has_actions, kept[chosen]))
            for name, chosen, has_actions in parts
            if chosen.any() and recipe.joint_mix[name] > 0
        ]
        self.aim = torch.zeros(len(tokens), dtype=torch.int64, device="cpu")
        self.value = torch.full((len(tokens),), torch.nan, dtype=torch.float32, device="cpu")
        firsts, _ = store.offsets()
        for i, known in zip(kept[demonstrated], acted[demonstrated], strict=True):
            first, t = int(firsts[i]), int(store.lengths[i])
            self.aim[first : first + t + 1] = 1
            if known:
                self.value[first : first + t + 1] = _success_value(store[int(i)].terminated)

    def draw(self, draws: np.random.Generator) -> tuple[TokenWindows, str]:
        """Draw windows and a role for one step; video without actions trains only the prediction of frames."""
        odds = np.cumsum([share for share, _, _ in self._parts])
        _, name, windows = self._parts[int(np.searchsorted(odds, draws.random() * odds[-1], side="right"))]
        roles = self.ROLES[name]
        return windows, str(draws.choice(list(roles), p=list(roles.values())))


def _success_value(terminated: np.ndarray) -> torch.Tensor:
    """Return the value of each frame of an episode of T steps, ``(T+1,)``: 1 from the first success on, discounted before."""
    ends = np.flatnonzero(terminated)
    if not len(ends):
        return torch.zeros(len(terminated) + 1, dtype=torch.float32, device="cpu")
    left = np.maximum(ends[0] + 1 - np.arange(len(terminated) + 1), 0)
    return torch.from_numpy(DISCOUNT**left).float()


class ActionAndVideoWindows:
    """Windows of episodes with actions and of video without, in proportion to their frames."""

    def __init__(self, store: EpisodeStore, tokens: torch.Tensor) -> None:
        kept = store.split(held_out=False)
        acted = store.acted(kept)
        kinds = [kind for kind in (True, False) if (acted == kind).any()]
        if not kinds:
            raise ValueError(
                f"{store.folder}: no training episodes (those whose seed is a multiple of 20 are held out)"
            )
        self._parts = [TokenWindows(store, tokens, kind) for kind in kinds]
        self._share = float(store.lengths[kept[acted == kinds[0]]].sum() / store.lengths[kept].sum())

    @property
    def first(self) -> TokenWindows:
        """Windows with actions, where there are any."""
        return self._parts[0]

    def draw(self, draws: np.random.Generator) -> TokenWindows:
        """Draw one of the two kinds."""
        alone = len(self._parts) == 1
        return self._parts[0 if alone or draws.random() < self._share else 1]

    def typical_change(self) -> float:
        """Return the mean absolute change of a token number over all episodes."""
        shares = [self._share, 1 - self._share]
        return sum(share * part.typical_change() for share, part in zip(shares, self._parts, strict=False))
