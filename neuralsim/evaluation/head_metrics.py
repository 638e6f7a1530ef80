"""Metrics of a model's predictions beside its frames: reward, termination, state and uncertainty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from neuralsim.data.store import EpisodeStore
from neuralsim.evaluation.config import STRIDE, EvalConfig
from neuralsim.evaluation.report import Metric, metric_of
from neuralsim.evaluation.rollouts import ImaginedRolloutConfig, Rollouts, Ticker, Windows, held_out_episodes, roll_out
from neuralsim.evaluation.statistics import Bootstrap, auroc, mean, pearson, rank_correlation, turn
from neuralsim.world_model import WorldModel

EACH = 4
"""Windows of a kind from one episode, at most."""


def reward_rows(r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
    """Compare the predicted reward with the true one, at every horizon; and returns, whose order ranks policies."""
    if "reward" not in r.heads:
        return
    for step in config.horizons:
        true = r.true_reward[:, step - 1]
        yield metric_of(
            boot(mean, np.abs(r.heads["reward"][:, step - 1] - true)),
            "reward",
            "reward error, mean",
            step=step,
            baseline=mean(np.abs(r.reward_before - true)),
            better="low",
        )
    for step in (s for s in (30, 64) if s in config.horizons):
        predicted, true = (x[:, :step].sum(1) for x in (r.heads["reward"], r.true_reward))
        label = "return of the steps so far: correlation with the true one"
        yield metric_of(boot(pearson, predicted, true), "return", label, step=step, better="high")


def state_rows(r: Rollouts, names: Sequence[str], boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
    """Compare the predicted state with the true one, each number by itself, in its own unit and as a share of its spread; an angle's
    error is the shorter way round."""
    if r.predicted_states is None or r.states is None or r.predicted_states.shape != r.states.shape:
        return
    for i, name in enumerate(names):
        true, predicted = r.states[:, :, i], r.predicted_states[:, :, i]
        spread = float(np.std(true))
        error, copied = predicted - true, true[:, :1] - true
        if name.endswith("angle"):
            error, copied = (np.radians(turn(x, np.zeros_like(x))) for x in (error, copied))
        for key, label, scale in (
            (f"state/{name}", f"{name}, as the model predicts it: mean error", 1.0),
            (f"state_share/{name}", f"{name}: the same, as a share of its spread", spread),
        ):
            for step in config.horizons if scale > 0 else ():
                c = r.column(step)
                ours, theirs = (boot(mean, np.abs(x[:, c]) / scale) for x in (error, copied))
                yield metric_of(ours, key, label, theirs, step=step, better="low")


def ending_rows(
    model: WorldModel,
    store: EpisodeStore,
    config: EvalConfig,
    tick: Ticker,
    ending: str = "termination",
    near_miss: float | None = None,
) -> Iterator[Metric]:
    """Measure reward and termination ``STRIDE`` steps ahead, on as many ends as near misses (or other steps); nothing where no held-out
    episode ends so. ``ending``: the meaning of termination; a step without it but with a reward of ``near_miss`` is a near miss."""
    if "terminated" not in model.head_names:
        return
    windows = _ending_windows(store, model.spec.context, config, near_miss)
    if windows is None:
        return
    settings = ImaginedRolloutConfig(batch=config.batch, seed=config.seed, precision=config.precision)
    r = roll_out(model, windows, (), None, settings, tick)
    boot = Bootstrap(r.episodes, seed=config.seed)
    true = r.true_terminated[:, STRIDE - 1].astype(np.float64)
    predicted = (r.heads["terminated"][:, STRIDE - 1] > 0.5).astype(np.float64)
    ended = len(np.unique(r.episodes[true > 0]))
    many = ending + ("es" if ending.endswith("s") else "s")
    counts = f"{int(true.sum())} {many} in {ended} episodes, {int((1 - true).sum())} others"
    precision = np.where(predicted > 0, true, np.nan)
    recall = np.where(true > 0, predicted, np.nan)
    for name, share in (("precision", precision), ("recall", recall)):
        label = f"{ending}: {name} ({counts})"
        yield metric_of(boot.share(share), f"{ending}_{name}", label, step=STRIDE, better="high")
    if "reward" in r.heads:
        error = np.abs(r.heads["reward"][:, STRIDE - 1] - r.true_reward[:, STRIDE - 1])
        copied = np.abs(r.reward_before - r.true_reward[:, STRIDE - 1])
        yield metric_of(
            boot(mean, error),
            "reward_near",
            f"reward error near {ending}, mean",
            step=STRIDE,
            baseline=mean(copied),
            better="low",
        )


def _ending_windows(store: EpisodeStore, context: int, config: EvalConfig, near_miss: float | None) -> Windows | None:
    """Choose up to ``rollouts`` windows whose last step ends (half) or is a near miss (half); other steps where near misses are few.

    No more than ``EACH`` of a kind from one episode: a block at rest would otherwise count again and again.
    """
    rng = np.random.default_rng([config.seed, 1])
    kinds: dict[str, list[tuple[int, int]]] = {"end": [], "near": [], "other": []}
    for i in held_out_episodes(store, config.all_held_out):
        episode = store[int(i)]
        for k in range(context + STRIDE - 2, len(episode)):
            near = near_miss is not None and episode.rewards[k] >= near_miss
            kind = "end" if episode.terminated[k] else "near" if near else "other"
            kinds[kind].append((int(i), k - (context + STRIDE - 2)))
    if not kinds["end"]:
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

    ends, others = pick("end", half), pick("near", half)
    chosen = ends + others + pick("other", max(0, len(ends) - len(others)))
    episodes, starts = np.array(chosen).T
    return Windows(store, episodes, starts, context, STRIDE)


def uncertainty_rows(r: Rollouts, boot: Bootstrap, config: EvalConfig) -> Iterator[Metric]:
    """Measure how the uncertainty follows the error, the root-mean-square difference of the frames at that step."""
    for step in (s for s in (10, 30) if s in config.horizons):
        uncertainty = r.uncertainty[:, step - 1].astype(np.float64)
        error = np.sqrt(r.error[:, r.column(step)])
        worst = (error > np.quantile(error, 0.9)).astype(np.float64)
        found = boot(rank_correlation, uncertainty, error)
        yield metric_of(found, "doubt_rank", "uncertainty: rank correlation with frame error", step=step, better="high")
        found = boot(lambda u, w: auroc(u, w > 0), uncertainty, worst)
        yield metric_of(
            found, "doubt_auroc", "uncertainty: AUROC for the worst tenth of frame errors", step=step, better="high"
        )
