"""Metrics of the roles of a world action model: mechanism tests that a model cannot pass if it ignores what it is given.

Sources: field/systems.md, sections 2.9 (what makes a UWM one) and 4.3 (mechanism tests).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from neuralsim.evaluation.report import Metric, Target, metric_of
from neuralsim.evaluation.role_predictions import RolePredictions
from neuralsim.evaluation.statistics import Bootstrap, mean, pearson, rank_correlation

NEGATIVE, POSITIVE = Target(most=0.0, surely=True), Target(least=0.0, surely=True)
SAME = 0.9
"""Correlation from which actions count as the same."""
OTHER = 0.5
"""Correlation up to which actions count as different."""


class RoleMetrics(ABC):
    """The role metrics of one world, measured beside its simulator; a RealWorld's ``role_metrics`` makes one."""

    @abstractmethod
    def rows(
        self, play: RolePredictions, demos: RolePredictions, tick: Callable[[str, int, int], None]
    ) -> list[Metric]:
        """Measure every role, on play and on demonstrations; ``tick`` is called with the role, its number and the count of all."""

    @abstractmethod
    def draw(self, path: Path, demos: RolePredictions) -> Path:
        """Write a picture of predicted frames beside true ones; returns its path."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulator."""


def reported_steps(steps: int) -> tuple[int, ...]:
    """Return the steps of a chunk that are reported: a third of it, two thirds, all."""
    return tuple(sorted({max(1, steps * i // 3) for i in (1, 2, 3)}))


def root(squares: np.ndarray) -> float:
    """Return the root of the mean of squares ``(n,)``; NaNs do not count."""
    return math.sqrt(mean(squares)) if np.isfinite(squares).any() else math.nan


def action_error(found: torch.Tensor, true: torch.Tensor, counts: np.ndarray | None = None) -> np.ndarray:
    """Return the mean squared error of actions ``(n, k, a)`` per query ``(n,)``, over the steps in ``counts`` ``(n, k)``; NaN of none."""
    squares = (found - true).square().mean(-1).cpu().double().numpy()
    kept = squares if counts is None else np.where(counts, squares, np.nan)
    none = np.isnan(kept).all(1)
    return np.where(none, np.nan, np.nansum(kept, 1) / np.maximum((~np.isnan(kept)).sum(1), 1))


def frame_error(frames: torch.Tensor, true: torch.Tensor, step: int) -> np.ndarray:
    """Return the mean squared error of tokens ``(n, k, N, d)`` after ``step`` steps, per query ``(n,)``, in variances of the data."""
    return (frames[:, step - 1] - true[:, step - 1]).square().mean((1, 2)).cpu().double().numpy()


def simulate_rows(play: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Error of frames given actions, step by step and by the joint stream."""
    queries, after = play.queries, play.queries.tokens[:, 1:]
    still = queries.tokens[:, :1].expand_as(after)
    for name, frames, label in (
        ("simulate", play.simulated, "simulate: error of frames"),
        ("simulate-jointly", play.simulated_jointly, "simulate, joint stream: error of frames"),
    ):
        for step in reported_steps(queries.steps):
            ours, copied = (boot(root, frame_error(x, after, step)) for x in (frames, still))
            yield metric_of(ours, name, label, copied, unit="sd", step=step, better="low", target=Target(beats=True))


def act_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Error of the next actions, beside guesses that do not see the scene."""
    true = demos.queries.actions
    ours = action_error(demos.acted, true)
    yield metric_of(boot(root, ours), "act", "act: error against the demonstrator", better="low")
    for name, label, guess in (
        ("mean", "of the mean action", true.mean((0, 1)).expand_as(true)),
        ("rest", "of resting", torch.zeros_like(true)),
        ("others", "of another query's actions", true[demos.queries.others]),
    ):
        theirs = action_error(guess, true)
        yield metric_of(boot(root, theirs), f"act/{name}", f"act: error {label}", better="low")
        if name == "mean":
            gain = boot(mean, ours - theirs)
            yield metric_of(
                gain, "act/gain", "act: squared error less that of the mean action", better="low", target=NEGATIVE
            )


def infer_rows(play: RolePredictions, counts: np.ndarray, boot: Bootstrap) -> Iterator[Metric]:
    """Error of the actions inferred between true frames; ``counts`` ``(n, k)`` marks those that frames show."""
    true = play.queries.actions
    ours, blind = action_error(play.inferred, true, counts), action_error(play.acted, true, counts)
    yield metric_of(boot(root, ours), "infer", "infer: error from true frames", better="low")
    yield metric_of(boot(root, blind), "infer/act", "infer: error of act, which sees no future", better="low")
    gain = boot(mean, ours - blind)
    yield metric_of(gain, "infer/gain", "infer: squared error less that of act", better="low", target=NEGATIVE)
    yield _same(
        play.inferred, true, counts, boot, "infer/same", "infer: correlation with the true actions", Target(least=SAME)
    )


def closure_rows(
    play: RolePredictions, counts: np.ndarray, counts_others: np.ndarray, boot: Bootstrap
) -> Iterator[Metric]:
    """Check that ``infer(simulate(a))`` returns a: the true actions, and those of another query, which only the simulated frames show.
    ``counts_others`` marks those of the latter that would have their effect."""
    true, other = play.queries.actions, play.queries.actions[play.queries.others]
    found, otherwise = play.infer(play.simulated), play.infer(play.simulated_otherwise)
    for key, name, guess, target, steps in (
        ("closure", "infer(simulate(a))", found, true, counts),
        ("closure-otherwise", "infer(simulate(another's a))", otherwise, other, counts_others),
    ):
        label = f"{name}: correlation with a"
        yield metric_of(boot(root, action_error(guess, target, steps)), key, f"{name}: error against a", better="low")
        yield _same(guess, target, steps, boot, f"{key}/same", label, Target(least=SAME))
    yield _same(
        otherwise,
        true,
        counts & counts_others,
        boot,
        "closure/shuffled",
        "infer(another's frames): correlation with a, which it must not return",
        Target(most=OTHER),
    )


def foresee_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Error of the next frames, beside the last one and those simulated from the true actions (the floor)."""
    queries, after = demos.queries, demos.queries.tokens[:, 1:]
    still = queries.tokens[:, :1].expand_as(after)
    for step in reported_steps(queries.steps):
        ours, copied = (boot(root, frame_error(x, after, step)) for x in (demos.foreseen, still))
        floor = root(frame_error(demos.simulated, after, step))
        yield metric_of(
            ours,
            "foresee",
            "foresee: error of frames (floor: simulated from the true actions)",
            copied,
            unit="sd",
            step=step,
            floor=floor,
            better="low",
            target=Target(beats=True),
        )
    last = queries.steps
    gap = boot(mean, frame_error(demos.foreseen, after, last) - frame_error(demos.simulated, after, last))
    label = "foresee: squared error less that of frames simulated from the true actions"
    yield metric_of(gap, "foresee/gap", label, step=last, better="low", target=Target(least=0.0))


def dream_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Agreement of actions and frames that are predicted together."""
    queries = demos.queries
    actions, frames = demos.predict_jointly()
    yield metric_of(
        boot(root, action_error(actions, queries.actions)), "dream/act", "dream: error of its actions", better="low"
    )
    own, other = demos.simulate(actions), demos.simulate(actions[queries.others])
    for step in reported_steps(queries.steps):
        apart, swapped = frame_error(own, frames, step), frame_error(other, frames, step)
        label = "dream: its frames from those simulated from its actions"
        yield metric_of(boot(root, apart), "dream", label, unit="sd", step=step, better="low")
        yield metric_of(
            boot(root, swapped), "dream/swapped", "dream: from another prediction's actions", unit="sd", step=step
        )
    gain = boot(mean, apart - swapped)
    label = "dream: squared error less that from another prediction's actions"
    yield metric_of(gain, "dream/gain", label, step=queries.steps, better="low", target=NEGATIVE)


def prefix_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Check that a given third of the chunk comes back bit-equal, and that the rest continues it."""
    true = demos.queries.actions
    p = reported_steps(true.shape[1])[0]
    begun = true[:, :p]
    acted = demos.act(begun)
    for role, found in (
        ("act", acted),
        ("dream", demos.predict_jointly(begun)[0]),
        ("infer", demos.infer(demos.queries.tokens[:, 1:], begun)),
    ):
        equal = (found[:, :p] == begun).flatten(1).all(1).cpu().double().numpy()
        label = f"{role}: prefix of {p} comes back bit-equal"
        yield metric_of(boot.share(equal), f"prefix/{role}", label, better="high", target=Target(least=1.0))
    after, alone = action_error(acted[:, p:], true[:, p:]), action_error(demos.acted[:, p:], true[:, p:])
    yield metric_of(boot(root, after), "prefix", f"act: error after a true prefix of {p}", better="low")
    yield metric_of(boot(root, alone), "prefix/without", "act: error of the same steps without", better="low")
    gain = boot(mean, after - alone)
    yield metric_of(gain, "prefix/gain", "act: squared error less that without", better="low", target=NEGATIVE)


def value_rows(demos: RolePredictions, boot: Bootstrap) -> Iterator[Metric]:
    """Rank correlation of the value with the nearness of success."""
    found = boot(rank_correlation, demos.value.cpu().double().numpy(), demos.queries.value)
    label = "value: rank correlation with the nearness of success"
    yield metric_of(found, "value", label, better="high", target=POSITIVE)


def _same(
    found: torch.Tensor, true: torch.Tensor, counts: np.ndarray, boot: Bootstrap, key: str, label: str, bar: Target
) -> Metric:
    """Measure the correlation of actions ``(n, k, a)`` over all steps that count."""
    a, b = (x.cpu().double().numpy() for x in (found, true))

    def correlation(rows: np.ndarray) -> float:
        chosen = rows.astype(np.int64)
        kept = counts[chosen]
        return pearson(a[chosen][kept].ravel(), b[chosen][kept].ravel())

    rows = np.where(counts.any(1), np.arange(len(a), dtype=np.float64), np.nan)
    return metric_of(boot(correlation, rows), key, label, better="high" if bar.least > 0 else "", target=bar)
