"""Role rows: does a checkpoint do in each role what the role says? Mechanism tests on held-out moments, none of which can be
passed by a model that looks away from what it is given.

Sources: field/systems.md, sections 2.9 (what makes a UWM one) and 4.3 (mechanism tests).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from neuralsim.evaluation.report import Metric, Target, metric_of
from neuralsim.evaluation.role_predictions import RolePredictions
from neuralsim.evaluation.statistics import Bootstrap, mean, pearson, rank_correlation

NEGATIVE, POSITIVE = Target(most=0.0, surely=True), Target(least=0.0, surely=True)
SAME = 0.9
"""Correlation from which actions count as the same."""
OTHER = 0.5
"""Correlation up to which they do not."""


def looked_at(steps: int) -> tuple[int, ...]:
    """The steps of a chunk that are told: a third of it, two thirds, all."""
    return tuple(sorted({max(1, steps * i // 3) for i in (1, 2, 3)}))


def root(squares: np.ndarray) -> float:
    """Root of the mean of squares ``(n,)``; NaNs do not count."""
    return math.sqrt(mean(squares)) if np.isfinite(squares).any() else math.nan


def wrong(found: torch.Tensor, true: torch.Tensor, counts: np.ndarray | None = None) -> np.ndarray:
    """Mean squared distance of actions ``(n, k, a)`` per moment ``(n,)``, over the steps that count ``(n, k)``; NaN where none does."""
    squares = (found - true).square().mean(-1).cpu().double().numpy()
    kept = squares if counts is None else np.where(counts, squares, np.nan)
    none = np.isnan(kept).all(1)
    return np.where(none, np.nan, np.nansum(kept, 1) / np.maximum((~np.isnan(kept)).sum(1), 1))


def astray(frames: torch.Tensor, true: torch.Tensor, step: int) -> np.ndarray:
    """Mean squared distance of tokens ``(n, k, N, d)`` after ``step`` steps, per moment ``(n,)``, in variances of the data."""
    return (frames[:, step - 1] - true[:, step - 1]).square().mean((1, 2)).cpu().double().numpy()


def simulate_rows(play: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Frames given actions, by the environment's way and by the joint stream."""
    moments, after = play.moments, play.moments.tokens[:, 1:]
    still = moments.tokens[:, :1].expand_as(after)
    for name, frames, told in (
        ("simulate", play.simulated, "simulate: error of frames"),
        ("simulate-jointly", play.simulated_jointly, "simulate, joint stream: error of frames"),
    ):
        for step in looked_at(moments.steps):
            ours, copied = (boot(root, astray(x, after, step)) for x in (frames, still))
            yield metric_of(ours, name, told, copied, unit="sd", step=step, better="low", bar=Target(beats=True))


def act_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """The next actions, beside what knows nothing of the scene."""
    true = demos.moments.actions
    ours = wrong(demos.acted, true)
    yield metric_of(boot(root, ours), "act", "act: error against the demonstrator", better="low")
    for name, told, guess in (
        ("mean", "of the mean action", true.mean((0, 1)).expand_as(true)),
        ("rest", "of resting", torch.zeros_like(true)),
        ("others", "of another moment's actions", true[demos.moments.others]),
    ):
        theirs = wrong(guess, true)
        yield metric_of(boot(root, theirs), f"act/{name}", f"act: error {told}", better="low")
        if name == "mean":
            gain = boot(mean, ours - theirs)
            yield metric_of(
                gain, "act/gain", "act: squared error less that of the mean action", better="low", bar=NEGATIVE
            )


def infer_rows(play: RolePredictions, told: np.ndarray, boot: Bootstrap) -> Iterator[Metric]:
    """The actions between true frames; ``told`` ``(n, k)``: which of them the frames tell."""
    true = play.moments.actions
    ours, blind = wrong(play.inferred, true, told), wrong(play.acted, true, told)
    yield metric_of(boot(root, ours), "infer", "infer: error from true frames", better="low")
    yield metric_of(boot(root, blind), "infer/act", "infer: error of act, which sees no future", better="low")
    gain = boot(mean, ours - blind)
    yield metric_of(gain, "infer/gain", "infer: squared error less that of act", better="low", bar=NEGATIVE)
    yield _same(
        play.inferred, true, told, boot, "infer/same", "infer: correlation with what was done", Target(least=SAME)
    )


def closure_rows(
    play: RolePredictions, told: np.ndarray, told_otherwise: np.ndarray, boot: Bootstrap
) -> Iterator[Metric]:
    """``infer(simulate(a))`` returns a: the actions that were done, and those of another moment, which nothing but the simulated
    frames tells. ``told_otherwise``: which of the latter would have their effect."""
    true, other = play.moments.actions, play.moments.actions[play.moments.others]
    found, otherwise = play.infer(play.simulated), play.infer(play.simulated_otherwise)
    for key, what, guess, aim, counts in (
        ("closure", "infer(simulate(a))", found, true, told),
        ("closure-otherwise", "infer(simulate(another's a))", otherwise, other, told_otherwise),
    ):
        label = f"{what}: correlation with a"
        yield metric_of(boot(root, wrong(guess, aim, counts)), key, f"{what}: error against a", better="low")
        yield _same(guess, aim, counts, boot, f"{key}/same", label, Target(least=SAME))
    yield _same(
        otherwise,
        true,
        told & told_otherwise,
        boot,
        "closure/shuffled",
        "infer(another's frames): correlation with a, which it must not return",
        Target(most=OTHER),
    )


def foresee_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """The next frames, beside the last one and beside those simulated from the true actions (the floor)."""
    moments, after = demos.moments, demos.moments.tokens[:, 1:]
    still = moments.tokens[:, :1].expand_as(after)
    for step in looked_at(moments.steps):
        ours, copied = (boot(root, astray(x, after, step)) for x in (demos.foreseen, still))
        floor = root(astray(demos.simulated, after, step))
        yield metric_of(
            ours,
            "foresee",
            "foresee: error of frames (floor: simulated from the true actions)",
            copied,
            unit="sd",
            step=step,
            floor=floor,
            better="low",
            bar=Target(beats=True),
        )
    last = moments.steps
    gap = boot(mean, astray(demos.foreseen, after, last) - astray(demos.simulated, after, last))
    label = "foresee: squared error less that of frames simulated from the true actions"
    yield metric_of(gap, "foresee/gap", label, step=last, better="low", bar=Target(least=0.0))


def dream_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Actions and frames that are dreamt together agree."""
    moments = demos.moments
    actions, frames = demos.dream()
    yield metric_of(
        boot(root, wrong(actions, moments.actions)), "dream/act", "dream: error of its actions", better="low"
    )
    own, other = demos.simulate(actions), demos.simulate(actions[moments.others])
    for step in looked_at(moments.steps):
        apart, swapped = astray(own, frames, step), astray(other, frames, step)
        told = "dream: its frames from those simulated from its actions"
        yield metric_of(boot(root, apart), "dream", told, unit="sd", step=step, better="low")
        yield metric_of(
            boot(root, swapped), "dream/swapped", "dream: from another dream's actions", unit="sd", step=step
        )
    gain = boot(mean, apart - swapped)
    label = "dream: squared distance less that from another dream's actions"
    yield metric_of(gain, "dream/gain", label, step=moments.steps, better="low", bar=NEGATIVE)


def prefix_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """A third of the chunk is given: it comes back bit-equal, and what follows goes on from it."""
    true = demos.moments.actions
    p = looked_at(true.shape[1])[0]
    begun = true[:, :p]
    acted = demos.act(begun)
    for role, found in (
        ("act", acted),
        ("dream", demos.dream(begun)[0]),
        ("infer", demos.infer(demos.moments.tokens[:, 1:], begun)),
    ):
        equal = (found[:, :p] == begun).flatten(1).all(1).cpu().double().numpy()
        label = f"{role}: prefix of {p} comes back bit-equal"
        yield metric_of(boot.share(equal), f"prefix/{role}", label, better="high", bar=Target(least=1.0))
    after, alone = wrong(acted[:, p:], true[:, p:]), wrong(demos.acted[:, p:], true[:, p:])
    yield metric_of(boot(root, after), "prefix", f"act: error after a true prefix of {p}", better="low")
    yield metric_of(boot(root, alone), "prefix/without", "act: error of the same steps without", better="low")
    gain = boot(mean, after - alone)
    yield metric_of(gain, "prefix/gain", "act: squared error less that without", better="low", bar=NEGATIVE)


def value_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Does the value rise towards success?"""
    found = boot(rank_correlation, demos.worth.cpu().double().numpy(), demos.moments.worth)
    label = "value: rank correlation with the nearness of success"
    yield metric_of(found, "value", label, better="high", bar=POSITIVE)


def _same(
    found: torch.Tensor, true: torch.Tensor, counts: np.ndarray, boot: Bootstrap, key: str, label: str, bar: Target
) -> Metric:
    """Correlation of actions ``(n, k, a)`` over all steps that count."""
    a, b = (x.cpu().double().numpy() for x in (found, true))

    def correlation(rows: np.ndarray) -> float:
        moments = rows.astype(np.int64)
        kept = counts[moments]
        return pearson(a[moments][kept].ravel(), b[moments][kept].ravel())

    rows = np.where(counts.any(1), np.arange(len(a), dtype=np.float64), np.nan)
    return metric_of(boot(correlation, rows), key, label, better="high" if bar.least > 0 else "", bar=bar)
