"""plan: the field's protocol of planning, as the command line asks for it: pairs of start and goal in the true world, a planner
in a learned one, controls beside it, and everything that is needed to believe the figures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as iio
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from neuralsim.agents.attempt import BUDGET, CONTROLS, Attempt, attempt, share_solved
from neuralsim.agents.course import Course, course_of
from neuralsim.agents.film import film
from neuralsim.agents.gap import LOOKAHEADS, Gap, gap_of, goal_state
from neuralsim.agents.held_out import held_out_folder, held_out_store
from neuralsim.agents.journal import Journal
from neuralsim.agents.pairs import HeldOutPairs, Pair, PairSource, PicturePairs, RandomPairs
from neuralsim.agents.plan_actor import OracleActor, PlanActor
from neuralsim.agents.planner import Planner, goal_image
from neuralsim.agents.search import CEM, ICEM, MPPI, RandomShooting, Search
from neuralsim.agents.thrift import FIELD, Thrift, thrift_of
from neuralsim.catalog import WEIGHTS, World, list_worlds, open_world
from neuralsim.envs.oracle import Oracle
from neuralsim.episode import EpisodeStore
from neuralsim.report import Bar, Report, Row, circumstances, row_of
from neuralsim.score import Bootstrap, mean, median
from neuralsim.task import FunctionTask

SEARCHES: Mapping[str, type[Search]] = {"icem": ICEM, "cem": CEM, "mppi": MPPI, "random": RandomShooting}
STANDARD_AHEAD = 25
"""Steps between start and goal for which there are bars."""
HELD_OUT_EPISODES = 256
"""Fresh held-out episodes that pairs are drawn from."""
ORACLE = "oracle"
"""The model that is the true simulator; also the name of the planner that has it inside."""
PLANNER = "planner"
FILMABLE = 20
"""Pairs among which those to be filmed are looked for."""
REDRAWN = 8.0
"""A goal picture shows the world where what was read off it, drawn again, differs by at most this many grey levels."""
BARS = {
    "ms_p50": Bar(most=100),
    ("rank", 10): Bar(least=0.8),
    "thrift_cost": Bar(most=1.05),
    "thrift_evaluations": Bar(most=0.1),
}
"""What planning must reach, beside the share of goals that each course asks for."""


@dataclass(frozen=True)
class Planning:
    """Plan in a learned world and act in the true one: start and goal pairs, success, time per decision, controls."""

    world: str = "pusht"
    """The true world: pusht or tworoom."""
    goal: str = "held-out"
    """Where pairs come from: held-out (episodes never trained on), random (fresh ones from the simulator), or a PNG of the goal."""
    episodes: int = 100
    """How many pairs. The same command with more goes on where it stopped."""
    ahead: int = STANDARD_AHEAD
    """Steps between start and goal; twice as many are allowed."""
    model: str | None = None
    """The world to plan in: a shipped one, a folder, or oracle (the true simulator). By default the compact one, if it ships."""
    search: Literal["icem", "cem", "mppi", "random"] = "icem"
    """How plans are searched."""
    candidates: int | None = None
    """Plans per round; the search's own number by default."""
    rounds: int | None = None
    """Rounds per decision, likewise."""
    elites: int | None = None
    """Best plans that a round learns from, likewise."""
    knots: int | None = None
    """Control points per plan; one per step by default."""
    budget_ms: float | None = None
    """Milliseconds for a decision; by default as long as the search takes."""
    lookahead: int = 25
    """Actions per plan; fewer towards the end, for no plan looks beyond the steps allowed."""
    block: int = 5
    """Actions that the model takes in one go."""
    execute: int = 5
    """Actions carried out before the next decision."""
    controls: bool = True
    """Also try without planning: random actions, none, straight to the goal, and the demonstration again."""
    report: bool = False
    """Also measure the gap to planning in the true simulator: its success, regret, rank correlation. Slow."""
    oracle_episodes: int = 20
    """Pairs for that."""
    quality: bool = False
    """Also compare the search with the field's CEM of 300 x 30 in the same model: cost of the plans, evaluations."""
    video: int = 1
    """Attempts to film, of the first twenty pairs those that are farthest apart; 0 for none."""
    data: Path | None = None
    """Episode store whose held-out episodes give the pairs; by default fresh ones, collected once into data/<world>-held-out."""
    out: Path | None = None
    """Folder for the journal of attempts, plan.json, the video and the picture; by default runs/plan/<world>, and -<goal> and
    -<ahead> where they are not the usual ones."""
    fresh: bool = False
    """Throw away what is in that folder's journal and begin anew."""
    seed: int = 0
    """Seed of pairs and searches."""
    json: Path | None = None
    """Also write the figures to this file."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        least = {"episodes": 1, "ahead": 1, "oracle_episodes": 1, "video": 0, "seed": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: expected {smallest} or more, got {getattr(self, name)}")
        self.searcher  # noqa: B018 (says what is wrong with it)

    @property
    def searcher(self) -> Search:
        """The search asked for."""
        kind = SEARCHES[self.search]
        changes = {k: v for k in ("candidates", "rounds", "elites", "knots") if (v := getattr(self, k)) is not None}
        if self.elites is None and self.candidates is not None and self.candidates >= 1:
            changes["elites"] = min(kind().elites, self.candidates)
        return kind(**changes)

    @property
    def budget(self) -> int:
        """Steps allowed."""
        return BUDGET * self.ahead

    @property
    def folder(self) -> Path:
        """Where everything goes: by default a folder of its own for each kind of goal and each distance."""
        if self.out is not None:
            return self.out
        goal = [] if self.goal == "held-out" else [Path(self.goal).stem]
        ahead = [] if self.ahead == STANDARD_AHEAD else [str(self.ahead)]
        return Path("runs/plan") / "-".join([self.world, *goal, *ahead])


@dataclass(frozen=True)
class Stage:
    """What a Planning needs, opened and checked: the course, the world to plan in, the truth, and where pairs come from."""

    config: Planning
    course: Course
    world: World
    name: str
    oracle: Oracle
    pairs: PairSource
    source: Mapping[str, Any]
    _made: dict[int, Pair] = field(default_factory=dict, init=False, repr=False)

    def pair(self, index: int) -> Pair:
        """Pair ``index``, made once."""
        if index not in self._made:
            self._made[index] = self.pairs(index)
        return self._made[index]

    def planner(self, pair: Pair, search: Search | None = None, budget_ms: float | None = None) -> Planner:
        """A planner for the pair's goal in the world to plan in."""
        if self.name == ORACLE:
            return self.oracle_planner(pair, search)
        return _planner(self.config, self.world, goal_image(pair.frame), pair.index, search, budget_ms)

    def oracle_planner(self, pair: Pair, search: Search | None = None) -> Planner:
        """The same planner with the truth inside, which is too slow for a budget of time."""
        return _planner(self.config, World(self.oracle), goal_state(self.oracle, pair.goal), pair.index, search)

    def actor(self, pair: Pair) -> PlanActor | OracleActor:
        """The planner as it acts."""
        if self.name == ORACLE:
            return OracleActor(self.oracle_planner(pair))
        return PlanActor(self.planner(pair, budget_ms=self.config.budget_ms))

    def solved(self, tried: Attempt) -> bool:
        """Whether the course's first rule has held."""
        return tried.solved_at[next(iter(self.course.rules))] is not None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the outcome of an attempt depends on."""
        config, search = self.config, self.config.searcher
        kept = ("world", "goal", "ahead", "lookahead", "block", "execute", "budget_ms", "seed")
        return {
            **{name: getattr(config, name) for name in kept},
            "horizon": config.budget,
            "search": {"name": type(search).__name__, **asdict(search)},
            "model": self.name,
            "weights": _fingerprint(self.world.folder / WEIGHTS) if self.world.folder else None,
            **self.source,
        }


def plan(config: Planning, show: bool = False) -> tuple[Report, list[Path]]:
    """Run the protocol; returns the figures and the files written.

    Every finished attempt is kept at once: interrupt and call again to go on. Raises ValueError for a world, model, goal
    or search that does not do, before anything runs, and where ``config.folder`` holds attempts of other settings.
    """
    stage = open_stage(config, show)
    with Journal(config.folder / "attempts.jsonl", stage.settings, config.fresh) as journal:
        missing = list(_missing(stage, journal))
        solved = [stage.solved(a) for a in _attempts(journal) if a.actor == PLANNER]
        with _progress(show) as bar:
            task = bar.add_task("planning", total=len(missing))
            for kind, work in missing:
                done = work()
                journal.add({kind: done.to_dict()})
                if isinstance(done, Attempt) and done.actor == PLANNER:
                    solved.append(stage.solved(done))
                bar.update(task, advance=1, description=f"success {sum(solved)} of {len(solved)}")
        report = report_of(stage, journal)
    files = [report.save(config.folder / "plan.json")]
    if config.video:
        pairs = _far_apart([stage.pair(i) for i in range(min(FILMABLE, config.episodes))], stage.course)[: config.video]
        files += film(config.folder / "plan.mp4", stage.course, pairs, stage.actor, stage.oracle, config.budget)
    if config.json is not None:
        files.append(report.save(config.json))
    return report, files


# -- opening -----------------------------------------------------------------------------------------------------------


def open_stage(config: Planning, show: bool = False) -> Stage:
    """Open everything that ``config`` names, and have the planner rehearse; held-out episodes are collected last."""
    course = course_of(config.world)
    name = _model_name(config)
    world = World(Oracle(config.world).eval()) if name == ORACLE else open_world(name, config.device)
    spec = world.spec
    if spec.name != config.world or spec.height != spec.width:
        raise ValueError(
            f"model {name!r}: dreams of world {spec.name!r} in frames of {spec.height}x{spec.width}, asked to plan in "
            f"{config.world!r}, which is square; choose another --model"
        )
    oracle = Oracle(config.world, size=spec.height).eval()
    nothing = FunctionTask(lambda before, action, after: 0 * after.features[:, 0])
    _planner(config, world, nothing, 0, budget_ms=config.budget_ms)
    pairs, source = _pairs(config, course, oracle, show)
    return Stage(config, course, world, name, oracle, pairs, source)


def _planner(
    config: Planning, world: World, task: Any, pair: int, search: Search | None = None, budget_ms: float | None = None
) -> Planner:
    return Planner(
        world,
        task,
        search or config.searcher,
        lookahead=config.lookahead,
        block=config.block,
        execute=config.execute,
        budget_ms=budget_ms,
        seed=config.seed * 1_000_003 + pair,
        horizon=config.budget,
    )


def _model_name(config: Planning) -> str:
    """What to open: the model asked for, or the best that ships for the world."""
    if config.model is not None:
        return config.model
    for name in (f"{config.world}-latent", config.world):
        if name in list_worlds():
            return name
    raise ValueError(
        f"no world model of {config.world!r} ships with this NeuralSim; train one (neuralsim train {config.world}-latent) "
        "and give its folder with --model, or plan in the true simulator with --model oracle"
    )


def _pairs(config: Planning, course: Course, oracle: Oracle, show: bool) -> tuple[PairSource, dict[str, Any]]:
    """Where pairs come from, and what of it the outcome depends on."""
    size = oracle.spec.height
    if config.goal == "random":
        return RandomPairs(course, size, config.ahead, config.seed), {}
    if config.goal != "held-out":
        path = Path(config.goal)
        frame, goal = read_goal(path, oracle)
        return PicturePairs(course, frame, goal, path, config.seed), {"picture": _fingerprint(path)}
    if config.data is not None:
        store = EpisodeStore(config.data)
        episodes = store.split(True).tolist()
        if store.spec.frame_shape != oracle.spec.frame_shape or store.spec.name != config.world:
            raise ValueError(f"{config.data}: holds episodes of {store.spec}, planning needs {oracle.spec}")
        if not episodes:
            raise ValueError(f"{config.data}: none of its {len(store)} episodes is held out; give another --data")
    else:
        with _progress(show) as bar:
            task = bar.add_task("held-out episodes", total=HELD_OUT_EPISODES)
            store = held_out_store(
                held_out_folder(config.world, size),
                HELD_OUT_EPISODES,
                size=size,
                progress=lambda done, wanted: bar.update(task, completed=done, total=wanted),
                world=config.world,
            )
        episodes = list(range(len(store)))
    origin = {"data": os.fspath(store.folder), "held_out_episodes": len(episodes)}
    return HeldOutPairs(store, tuple(episodes), course, config.ahead, config.seed), origin


def read_goal(path: Path, oracle: Oracle) -> tuple[np.ndarray, np.ndarray]:
    """The frame in the picture at ``path``, uint8 ``(h, w, 3)``, and the true state it shows, read off its pixels; a
    ValueError for a picture of another size, or of anything else."""
    if not path.is_file():
        raise FileNotFoundError(
            f"--goal: expected held-out, random or the path of a PNG, got {str(path)!r} (no such file)"
        )
    try:
        frame = np.asarray(iio.imread(path))
    except Exception as error:  # imageio's plugins raise what they like
        raise ValueError(f"--goal {path}: not a picture ({error})") from error
    frame = oracle.spec.check_frames(frame, f"--goal {path}")
    if frame.ndim != 3:
        raise ValueError(f"--goal {path}: expected one picture (h, w, 3), got shape {frame.shape}")
    state = oracle.simulator.read(frame[None])[0]
    off = float(np.abs(oracle.simulator.draw(state).astype(float) - frame).mean())
    if off > REDRAWN:
        raise ValueError(
            f"--goal {path}: expected a frame of world {oracle.spec.name!r}; what was read off this picture, drawn again, "
            f"differs from it by {off:.0f} grey levels on average, {REDRAWN:g} is the most. Is it from another world?"
        )
    return frame, state


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# -- running -----------------------------------------------------------------------------------------------------------

Work = Callable[[], Attempt | Gap | Thrift]


def _missing(stage: Stage, journal: Journal) -> Iterator[tuple[str, Work]]:
    """What is still to be done, in order: all of one pair before the next, what is slow last."""
    config = stage.config
    attempts = {(a.actor, a.pair) for a in _attempts(journal)}
    gaps, thrifts = ({line[k]["pair"] for line in journal.lines if k in line} for k in ("gap", "thrift"))
    env = stage.course.make(stage.oracle.spec.height)
    names = [
        name for name in CONTROLS if config.controls and (name != "replay" or config.goal in ("held-out", "random"))
    ]

    def attempt_by(name: str, index: int) -> Work:
        return lambda: _attempt(stage, env, name, stage.pair(index))

    for index in range(config.episodes):
        for name in (PLANNER, *names):
            if (name, index) not in attempts:
                yield "attempt", attempt_by(name, index)
    few = range(min(config.oracle_episodes, config.episodes))
    if config.quality:
        yield from (("thrift", lambda i=i: _thrift(stage, i)) for i in few if i not in thrifts)
    if config.report and stage.name != ORACLE:
        yield from (("gap", lambda i=i: _gap(stage, i)) for i in few if i not in gaps)
        yield from (("attempt", attempt_by(ORACLE, i)) for i in few if (ORACLE, i) not in attempts)


def _attempt(stage: Stage, env: Any, name: str, pair: Pair) -> Attempt:
    if name in CONTROLS:
        actor = CONTROLS[name](pair, stage.config.seed)
        return attempt(env, stage.course, pair, name, actor, stage.config.budget)
    planning = OracleActor(stage.oracle_planner(pair)) if name == ORACLE else stage.actor(pair)
    done = attempt(env, stage.course, pair, name, planning, stage.config.budget)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return replace(done, decisions=planning.decisions, load=load)


def _gap(stage: Stage, index: int) -> Gap:
    pair = stage.pair(index)
    return gap_of(pair, stage.planner(pair), stage.oracle_planner(pair), stage.oracle)


def _thrift(stage: Stage, index: int) -> Thrift:
    pair = stage.pair(index)
    return thrift_of(pair, lambda search: stage.planner(pair, search), stage.config.searcher, stage.oracle)


def _far_apart(pairs: list[Pair], course: Course) -> list[Pair]:
    """Those with most to do first."""
    return sorted(pairs, key=lambda p: -next(iter(course.measure(p.start, p.goal).values())))


def _attempts(journal: Journal) -> list[Attempt]:
    return [Attempt.from_dict(line["attempt"]) for line in journal.lines if "attempt" in line]


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *left, console=Console(stderr=True), disable=not show, transient=True)


# -- telling -----------------------------------------------------------------------------------------------------------


def report_of(stage: Stage, journal: Journal) -> Report:
    """The figures of the first ``episodes`` pairs in ``journal``."""
    config = stage.config
    attempts = [a for a in _attempts(journal) if a.pair < config.episodes]
    by_actor = {name: [a for a in attempts if a.actor == name] for name in (PLANNER, ORACLE, *CONTROLS)}
    ours = by_actor[PLANNER]
    rows = [*_success_rows(stage, ours, PLANNER), *_effort_rows(ours, timed=stage.name != ORACLE)]
    for name in (ORACLE, *CONTROLS):
        rows += _success_rows(stage, by_actor[name], name)
    gaps = [Gap.from_dict(line["gap"]) for line in journal.lines if "gap" in line]
    rows += _gap_rows([g for g in gaps if g.pair < config.episodes])
    thrifts = [Thrift.from_dict(line["thrift"]) for line in journal.lines if "thrift" in line]
    rows += _thrift_rows([t for t in thrifts if t.pair < config.episodes])
    left_out = sum(a.left_out for a in ours)
    loads = [a.load for a in ours if a.load is not None]
    about = {
        "model": stage.name,
        "search": f"{config.search} {config.searcher.candidates}x{config.searcher.rounds}",
        "goals": config.goal,
        "ahead": config.ahead,
        "steps_allowed": config.budget,
        "seed": config.seed,
        "solved_at_start_left_out": f"{left_out} of {left_out + len(ours)}",
        "load_while_planning": round(float(np.median(loads)), 2) if loads else None,
    }
    title = f"planning in {stage.course.world}, goals {config.ahead} steps ahead"
    return Report(title, tuple(rows), {**about, **circumstances(), "settings": stage.settings})


def _success_rows(stage: Stage, attempts: Sequence[Attempt], actor: str) -> Iterator[Row]:
    """Shares by each rule, and for planners how far off they ended."""
    if not attempts:
        return
    standard = actor == PLANNER and stage.config.goal == "held-out" and stage.config.ahead == STANDARD_AHEAD
    key = actor.replace(" ", "_")
    for i, rule in enumerate(stage.course.rules):
        bar = Bar(least=stage.course.least) if standard and i == 0 else None
        name = "success" if i == 0 else f"success_{rule.replace(' ', '_')}"
        label = f"{actor}: reached the goal ({rule})"
        yield row_of(share_solved(attempts, rule), f"{key}_{name}", label, better="high", bar=bar)
    if actor in (PLANNER, ORACLE):
        boot = Bootstrap(np.array([a.pair for a in attempts]))
        for name, (unit, _) in stage.course.distances.items():
            off = np.array([a.distances[name] for a in attempts])
            safe = name.replace(" ", "_").replace("'", "")
            yield row_of(
                boot(median, off), f"{key}_{safe}", f"{actor}: {name} off at the end, median", unit=unit, better="low"
            )


def _effort_rows(attempts: Sequence[Attempt], timed: bool) -> Iterator[Row]:
    """Time and evaluations per decision; ``timed``: whether there is a time to keep to."""
    decisions = [d for a in attempts for d in a.decisions]
    if not decisions:
        return
    ms = np.array([d.ms for d in decisions])
    n, bar = len(decisions), BARS["ms_p50"] if timed else None
    yield Row("ms_p50", "time per decision, p50", float(np.median(ms)), "ms", n=n, better="low", bar=bar)
    yield Row("ms_p99", "time per decision, p99", float(np.quantile(ms, 0.99)), "ms", n=n, better="low")
    tried = float(np.mean([d.evaluations for d in decisions]))
    yield Row("evaluations", "plans evaluated per decision, mean", tried, n=n)


def _gap_rows(gaps: Sequence[Gap]) -> Iterator[Row]:
    """Regret, and rank correlations with the number of starts that do not count."""
    if not gaps:
        return
    boot = Bootstrap(np.array([g.pair for g in gaps]))
    figures: dict[str, tuple[str, list[float]]] = {
        "regret": ("regret: imagined plan's end minus the oracle's, mean", [g.regret for g in gaps]),
        "regret_begun": ("distance to the goal at the start, mean", [g.begun for g in gaps]),
        "regret_oracle": ("distance to the goal where the oracle's plan ends, mean", [g.oracle for g in gaps]),
    }
    for key, (label, values) in figures.items():
        yield row_of(boot(mean, np.array(values)), key, label, unit="units", better="low" if key == "regret" else "")
    for lookahead in LOOKAHEADS:
        ranks = np.array([np.nan if (r := g.ranks[str(lookahead)]) is None else r for g in gaps])
        left_out = int(np.isnan(ranks).sum())
        label = f"rank correlation of imagined and true cost ({left_out} starts left out)"
        yield row_of(boot(mean, ranks), "rank", label, step=lookahead, better="high", bar=BARS.get(("rank", lookahead)))


def _thrift_rows(thrifts: Sequence[Thrift]) -> Iterator[Row]:
    """Ratios of sums: ours to the field's, and both to doing nothing."""
    if not thrifts:
        return
    boot = Bootstrap(np.array([t.pair for t in thrifts]))
    names = ("cost", "field_cost", "evaluations", "field_evaluations", "rest_cost")
    sums = {name: np.array([getattr(t, name) for t in thrifts], np.float64) for name in names}
    theirs = f"CEM {FIELD.candidates}x{FIELD.rounds}"
    for key, over, under, label in (
        ("thrift_cost", "cost", "field_cost", f"predicted cost, ours over {theirs}"),
        ("thrift_evaluations", "evaluations", "field_evaluations", f"plans evaluated, ours over {theirs}"),
        ("thrift_left", "cost", "rest_cost", "predicted cost, ours over doing nothing"),
        ("thrift_field_left", "field_cost", "rest_cost", f"predicted cost, {theirs} over doing nothing"),
    ):
        both = np.stack([sums[over], sums[under]], 1)
        found = boot(lambda c: float(c[:, 0].sum() / c[:, 1].sum()), both)
        yield row_of(found, key, label, better="low", bar=BARS.get(key))
