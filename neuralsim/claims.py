"""The claims a dream makes beside its frames: reward, success and its own uncertainty, against what came true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from neuralsim.dreaming import Rollouts, Ticker, Windows, held_out_episodes, roll_out
from neuralsim.episode import EpisodeStore
from neuralsim.report import Row, row_of
from neuralsim.score import Bootstrap, auroc, mean, rank_correlation
from neuralsim.world import WorldModel
from neuralsim.yardstick import STRIDE, MeasureConfig

NEAR_MISS = 0.6
"""A step without success but with at least this reward is a near miss: success is told apart from these, not from easy cases."""
EACH = 4
"""Windows of a kind from one episode, at most."""


def reward_rows(r: Rollouts, boot: Bootstrap, config: MeasureConfig) -> Iterator[Row]:
    """The foretold reward against the true one, at every horizon."""
    if "reward" not in r.heads:
        return
    for step in config.horizons:
        true = r.true_reward[:, step - 1]
        yield row_of(
            boot(mean, np.abs(r.heads["reward"][:, step - 1] - true)),
            "reward",
            "reward error, mean",
            step=step,
            baseline=mean(np.abs(r.reward_before - true)),
            better="low",
        )


def success_rows(model: WorldModel, store: EpisodeStore, config: MeasureConfig, tick: Ticker) -> Iterator[Row]:
    """Reward and success ``STRIDE`` steps ahead, on as many successes as near misses."""
    if "terminated" not in model.head_names:
        return
    windows = _success_windows(store, model.spec.context, config)
    if windows is None:
        return
    r = roll_out(model, windows, (), None, batch=config.batch, seed=config.seed, precision=config.precision, tick=tick)
    boot = Bootstrap(r.episodes, seed=config.seed)
    true = r.true_terminated[:, STRIDE - 1].astype(np.float64)
    told = (r.heads["terminated"][:, STRIDE - 1] > 0.5).astype(np.float64)
    came_true = len(np.unique(r.episodes[true > 0]))
    counts = f"{int(true.sum())} successes in {came_true} episodes, {int((1 - true).sum())} others"
    precision = np.where(told > 0, true, np.nan)
    recall = np.where(true > 0, told, np.nan)
    yield row_of(
        boot.share(precision), "success_precision", f"success: precision ({counts})", step=STRIDE, better="high"
    )
    yield row_of(boot.share(recall), "success_recall", f"success: recall ({counts})", step=STRIDE, better="high")
    if "reward" in r.heads:
        error = np.abs(r.heads["reward"][:, STRIDE - 1] - r.true_reward[:, STRIDE - 1])
        copied = np.abs(r.reward_before - r.true_reward[:, STRIDE - 1])
        yield row_of(
            boot(mean, error),
            "reward_near",
            "reward error near success, mean",
            step=STRIDE,
            baseline=mean(copied),
            better="low",
        )


def _success_windows(store: EpisodeStore, context: int, config: MeasureConfig) -> Windows | None:
    """Up to ``rollouts`` windows whose last step is a success (half) or a near miss (half); other steps where near misses are few.

    No more than ``EACH`` of a kind from one episode: a block that came to rest would otherwise be asked about again and again.
    """
    rng = np.random.default_rng([config.seed, 1])
    kinds: dict[str, list[tuple[int, int]]] = {"success": [], "near": [], "other": []}
    for i in held_out_episodes(store, config.all_held_out):
        episode = store[int(i)]
        for k in range(context + STRIDE - 2, len(episode)):
            kind = "success" if episode.terminated[k] else "near" if episode.rewards[k] >= NEAR_MISS else "other"
            kinds[kind].append((int(i), k - (context + STRIDE - 2)))
    if not kinds["success"]:
        return None
    half = config.rollouts // 2

    def pick(kind: str, count: int) -> list[tuple[int, int]]:
        found = kinds[kind]
        taken: Counter[int] = Counter()
        chosen: list[tuple[int, int]] = []
        for j in rng.permutation(len(found)):
            if taken[found[j][0]] < EACH and len(chosen) < count:
                taken[found[j][0]] += 1
                chosen.append(found[j])
        return chosen

    successes, others = pick("success", half), pick("near", half)
    chosen = successes + others + pick("other", max(0, len(successes) - len(others)))
    episodes, starts = np.array(chosen).T
    return Windows(store, episodes, starts, context, STRIDE)


def uncertainty_rows(r: Rollouts, boot: Bootstrap, config: MeasureConfig) -> Iterator[Row]:
    """Does doubt follow error? Error is the root-mean-square difference of the frames at that step."""
    for step in (s for s in (10, 30) if s in config.horizons):
        doubt = r.uncertainty[:, step - 1].astype(np.float64)
        error = np.sqrt(r.error[:, r.column(step)])
        worst = (error > np.quantile(error, 0.9)).astype(np.float64)
        found = boot(rank_correlation, doubt, error)
        yield row_of(found, "doubt_rank", "uncertainty: rank correlation with frame error", step=step, better="high")
        found = boot(lambda d, w: auroc(d, w > 0), doubt, worst)
        yield row_of(
            found, "doubt_auroc", "uncertainty: AUROC for the worst tenth of frame errors", step=step, better="high"
        )
