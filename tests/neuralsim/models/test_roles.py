"""Roles: one checkpoint in five roles; each output follows what is given, and simulation is the same with and without the joint stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as some
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from neuralsim import cli
from neuralsim.agents.collection.collect import CollectConfig, collect
from neuralsim.agents.evaluation.roles import RolesConfig, measure_roles
from neuralsim.data.episode import ActionsAbsent, Episode
from neuralsim.data.store import EpisodeStore, JoinedStore
from neuralsim.envs.pusht.env import STATE_NAMES, PushTRealEnv, random_state
from neuralsim.envs.pusht.executability import had_full_effect, replay
from neuralsim.evaluation.report import Metric, Target
from neuralsim.evaluation.role_metrics import act_rows, action_error, infer_rows, reported_steps
from neuralsim.evaluation.role_predictions import RolePredictions, RoleQueries, choose_windows
from neuralsim.evaluation.statistics import Bootstrap
from neuralsim.models.action_encoding import EncodedActions
from neuralsim.models.roles import (
    ROLES,
    denoise_chunk,
    infer_actions,
    predict_actions,
    predict_jointly,
    predict_value,
    predict_video,
)
from neuralsim.models.video_wam import VideoState, VideoWAM
from neuralsim.noise import Noise
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.device import inference
from neuralsim.training.data_mixture import DataMixture
from neuralsim.training.losses import joint_losses
from neuralsim.training.recipes import VideoRecipe, find_recipe
from neuralsim.training.stages import StageContext
from neuralsim.training.video_stages import VideoStages


@pytest.fixture(scope="session")
def model(wam: Path) -> VideoWAM:
    found = open_world(wam).model
    assert isinstance(found, VideoWAM)
    return found


@pytest.fixture(scope="session")
def state(model: VideoWAM, wam: Path) -> VideoState:
    """Where the miniature's 8 starts end."""
    starts = open_world(wam).starts
    assert starts is not None
    with torch.inference_mode():
        return model.encode(torch.as_tensor(starts.frames), torch.as_tensor(starts.actions))


def noise(n: int, seed: int = 0) -> Noise:
    return Noise.from_seeds(range(seed, seed + n))


def true_frames(model: VideoWAM, state: VideoState) -> torch.Tensor:
    """Some frames for ``infer``: those foreseen."""
    return predict_video(model, state, noise(len(state), 50))


Asked = Callable[[VideoWAM, VideoState, Noise, torch.Tensor], torch.Tensor]
EVERY: dict[str, Asked] = {
    "simulate": lambda m, s, r, f: m.unroll(s, torch.linspace(-1, 1, 12).view(1, 6, 2).expand(len(s), 6, 2), r).tokens,
    "simulate-jointly": lambda m, s, r, f: frames_of(
        denoise_chunk(m, s, r, 3, frames="asked", actions=torch.linspace(-1, 1, 12).view(1, 6, 2).expand(len(s), 6, 2))
    ),
    "act": lambda m, s, r, f: predict_actions(m, s, r),
    "infer": lambda m, s, r, f: infer_actions(m, s, f, r),
    "foresee": lambda m, s, r, f: predict_video(m, s, r),
    "dream": lambda m, s, r, f: torch.cat([x.flatten(1) for x in both(predict_jointly(m, s, r))], 1),
    "value": lambda m, s, r, f: predict_value(m, s),
}
PREFIXED: dict[str, Callable[[VideoWAM, VideoState, Noise, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "act": lambda m, s, r, f, p: predict_actions(m, s, r, prefix=p),
    "infer": lambda m, s, r, f, p: infer_actions(m, s, f, r, prefix=p),
    "dream": lambda m, s, r, f, p: both(predict_jointly(m, s, r, prefix=p))[0],
}


def frames_of(answer) -> torch.Tensor:
    assert answer.actions is None
    return answer.frames


def both(answer) -> tuple[torch.Tensor, torch.Tensor]:
    return answer.actions, answer.frames


# -- one checkpoint, five roles ----------------------------------------------------------------------------------------


def test_there_is_a_question_for_every_role() -> None:
    assert set(ROLES) <= set(EVERY)


@pytest.mark.parametrize("role", EVERY)
@torch.inference_mode()
def test_a_row_alone_is_the_row_in_a_batch(role: str, model: VideoWAM, state: VideoState) -> None:
    frames = true_frames(model, state)
    together = EVERY[role](model, state, noise(8), frames)
    assert together.shape[0] == 8
    for i in (0, 5):
        row = slice(i, i + 1)
        alone = EVERY[role](model, state.index(row), noise(1, i), frames[row])
        assert torch.allclose(alone, together[row], atol=2e-5), f"row {i} of {role}"


@pytest.mark.parametrize("role", EVERY)
@torch.inference_mode()
def test_the_same_seed_gives_the_same_answer_and_another_one_another(
    role: str, model: VideoWAM, state: VideoState
) -> None:
    frames = true_frames(model, state)
    first, again, other = (EVERY[role](model, state, noise(8, seed), frames) for seed in (0, 0, 99))
    assert torch.equal(first, again)
    alone = role in ("simulate", "infer", "value")  # functions of their input
    assert torch.equal(first, other) == alone


@pytest.mark.parametrize("role", PREFIXED)
@settings(max_examples=12)
@given(length=some.integers(0, 5), seed=some.integers(0, 2**31), low=some.booleans())
def test_a_prefix_comes_back_bit_equal(
    role: str, model: VideoWAM, state: VideoState, length: int, seed: int, low: bool
) -> None:
    prefix = torch.as_tensor(np.random.default_rng(seed).uniform(-1, 1, (8, length, 2)), dtype=torch.float32)
    with inference(torch.device("cpu"), torch.bfloat16 if low else torch.float32):
        frames = true_frames(model, state)
        found = PREFIXED[role](model, state, noise(8, seed), frames, prefix)
    assert found.shape == (8, 6, 2)
    assert torch.equal(found[:, :length], prefix)
    assert (found[:, length:].abs() <= 1).all()


@torch.inference_mode()
def test_what_follows_a_prefix_goes_on_from_it(model: VideoWAM, state: VideoState) -> None:
    one, other = (predict_actions(model, state, noise(8), prefix=torch.full((8, 3, 2), x)) for x in (-1.0, 1.0))
    assert (one[:, 3:] - other[:, 3:]).abs().max() > 1e-3


@torch.inference_mode()
def test_infer_follows_the_frames_and_act_has_none(model: VideoWAM, state: VideoState) -> None:
    frames = true_frames(model, state)
    swapped = frames.roll(1, 0)
    assert (
        infer_actions(model, state, frames, noise(8)) - infer_actions(model, state, swapped, noise(8))
    ).abs().max() > 1e-3


@torch.inference_mode()
def test_several_samples_of_a_row_share_its_history(
    model: VideoWAM, state: VideoState, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, rows, prefix = 5, len(state), torch.full((5 * len(state), 2, 2), 0.25)
    many = noise(n * rows)
    whole = predict_actions(model, state.repeat(n), many, 2, prefix)
    seen, memory = [], VideoWAM.memory
    monkeypatch.setattr(VideoWAM, "memory", lambda self, s: (seen.append(len(s)), memory(self, s))[1])
    samples = predict_actions(model, state, many, 2, prefix)
    assert seen == [rows]
    torch.testing.assert_close(samples, whole, atol=1e-5, rtol=1e-4)
    assert torch.equal(samples[:, :2], prefix)
    with pytest.raises(ValueError, match=rf"noise: expected a multiple of the state's {rows} rows, got {rows + 1}"):
        predict_actions(model, state, noise(rows + 1))


@pytest.mark.parametrize("passes", [0, 65, 2**31, 1.5])
def test_passes_out_of_range_are_refused(model: VideoWAM, state: VideoState, passes: float) -> None:
    with pytest.raises(ValueError, match="passes: expected a whole number of at least 1 and at most 64"):
        predict_actions(model, state, noise(len(state)), passes)  # type: ignore[arg-type]


@torch.inference_mode()
def test_simulating_is_bit_equal_with_and_without_the_joint_stream(model: VideoWAM, state: VideoState) -> None:
    config = dict(model.config) | {"joint_config": None}
    stripped = VideoWAM(**{k: v for k, v in config.items() if not k.startswith("_")}).eval()
    left = stripped.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith(("joint.", "value_head."))}
    )
    assert not left.missing_keys
    assert stripped.joint is None
    actions = torch.linspace(-1, 1, 8 * 5 * 2).view(8, 5, 2)
    ours, theirs = (m.unroll(state, actions, noise(8)) for m in (model, stripped))
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.cache, theirs.cache)
    assert torch.equal(ours.error, theirs.error)


@torch.inference_mode()
def test_saved_and_loaded_it_answers_bit_equal(model: VideoWAM, state: VideoState, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = VideoWAM.from_pretrained(tmp_path).eval()
    frames = true_frames(model, state)
    for role, question in EVERY.items():
        assert torch.equal(question(model, state, noise(8), frames), question(again, state, noise(8), frames)), role


# -- what cannot be asked ----------------------------------------------------------------------------------------------


def test_a_world_that_only_simulates_says_so(tiny_model: VideoWAM, tiny_world: Path, tmp_path: Path) -> None:
    start = tiny_model.start(torch.zeros(1, 1, 2, 8), EncodedActions(torch.zeros(1, 0, 2)))
    for role in (predict_actions, predict_video, predict_jointly):
        with pytest.raises(ValueError, match=r"simulates only.*pusht-wam"):
            role(tiny_model, start, noise(1))
    with pytest.raises(ValueError, match="simulates only"):
        predict_value(tiny_model, start)
    with pytest.raises(ValueError, match="simulates only"):
        measure_roles(RolesConfig(world=str(tiny_world), out=tmp_path))


@pytest.mark.parametrize("length", [6, 7])
def test_a_prefix_that_leaves_nothing_to_ask_is_named(model: VideoWAM, state: VideoState, length: int) -> None:
    with pytest.raises(ValueError, match=f"prefix: expected fewer than 6 actions .*got {length}"):
        predict_actions(model, state, noise(8), prefix=torch.zeros(8, length, 2))


def test_fewer_than_one_pass_and_nothing_asked_are_named(model: VideoWAM, state: VideoState) -> None:
    with pytest.raises(ValueError, match="passes: expected a whole number of at least 1 and at most 64, got 0"):
        predict_actions(model, state, noise(8), passes=0)
    with pytest.raises(ValueError, match="nothing is asked"):
        denoise_chunk(model, state, noise(8), 1, frames=None, actions=False)


# -- withheld actions --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """What the store shows, its actions withheld."""
    source = EpisodeStore(store)
    found = EpisodeStore.create(tmp_path_factory.mktemp("data") / "watched", source.spec, STATE_NAMES)
    found.add(
        [Episode.of_video(e.frames, {"seed": e.provenance["seed"], "policy": "watched"}, e.states) for e in source]
    )
    return found


def recipe_with(video: float) -> VideoRecipe:
    found = find_recipe("pusht-wam-mini")
    assert isinstance(found, VideoRecipe)
    return replace(found, joint_mix={"demonstrations": 1 - video, "play": 0.0, "video": video})


def stages_from(model: VideoWAM, stores: list[EpisodeStore], video: float, cache: Path) -> VideoStages:
    """Training stages whose model begins as ``model``, before it learned any role but to simulate."""
    run = StageContext(
        JoinedStore(stores), cache, 0, torch.device("cpu"), torch.float32, lambda _, a, b: iter(range(a, b))
    )
    torch.manual_seed(0)
    found = VideoStages(recipe_with(video), run)
    kept = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(("joint.", "value_head."))}
    found.model.load_state_dict(kept, strict=False)
    return found


def test_the_loader_of_video_cannot_touch_an_action(
    model: VideoWAM, demonstrations: Path, watched: EpisodeStore, tmp_path: Path
) -> None:
    learned = stages_from(model, [EpisodeStore(demonstrations), watched], 0.5, tmp_path)
    mix = DataMixture(learned.run.store, learned._tokens(), learned.recipe)
    draws = np.random.default_rng(0)
    drawn = [mix.draw(draws) for _ in range(100)]
    video = [(windows, role) for windows, role in drawn if not windows.acted]
    assert 30 < len(video) < 70
    assert {role for _, role in video} == {"foresee"}
    windows = video[0][0]
    assert windows.actions is None
    assert not windows.sample(4, 8, draws, torch.device("cpu")).actions.known
    with pytest.raises(ActionsAbsent):
        _ = watched[0].actions
    with pytest.raises(ActionsAbsent):
        _ = watched.shards[0]["actions"]


def test_video_without_actions_teaches_what_it_shows(
    model: VideoWAM, demonstrations: Path, watched: EpisodeStore, tmp_path: Path
) -> None:
    """The same steps of the joint stage, a share of which is video or none; judged on the video itself, of which so small a model
    learns too little for other video."""
    stores = [EpisodeStore(demonstrations), watched]
    learned = {}
    for share in (0.0, 0.6):
        training_stages = stages_from(model, stores, share, tmp_path)
        stage = training_stages.makers["joint"]()
        optimizer = torch.optim.AdamW(stage.parameters, lr=2e-3)
        for step in range(120):
            loss = torch.stack(list(stage.loss(step, np.random.default_rng([0, step])).values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stage.parameters, 1.0)
            optimizer.step()
        learned[share] = training_stages.model.eval()
    without, with_video = (learned[share] for share in (0.0, 0.6))
    parts = {k: (a, with_video.state_dict()[k]) for k, a in without.state_dict().items()}
    assert any(not torch.equal(a, b) for k, (a, b) in parts.items() if k.startswith("joint."))
    assert all(torch.equal(a, b) for k, (a, b) in parts.items() if not k.startswith(("joint.", "value_head.")))
    wrong_without, wrong_with = (foresight(m, watched) for m in (without, with_video))
    assert wrong_with < 0.95 * wrong_without


def foresight(model: VideoWAM, store: EpisodeStore) -> float:
    """The loss of foreseeing all training video of ``store``."""
    total = []
    with torch.inference_mode():
        for index in store.split(held_out=False):
            tokens = model.codec.encode(torch.as_tensor(np.array(store[int(index)].frames)))
            windows = tokens.unfold(0, 8, 1).movedim(-1, 1)
            nobody = torch.zeros(len(windows), dtype=torch.int64)
            unknown = EncodedActions(torch.zeros(len(windows), 7, 2), known=False)
            found = joint_losses(model, windows, unknown, nobody, 2, noise(len(windows)), "foresee")
            assert set(found) == {"frames"}
            total.append(float(found["frames"].mean()))
    assert total
    return float(np.mean(total))


# -- the simulator beside it -------------------------------------------------------------------------------------------


def test_a_replay_leads_through_the_states_that_were_recorded(store: Path) -> None:
    episode = EpisodeStore(store)[0]
    assert episode.states is not None
    env = PushTRealEnv()
    found = replay(env, episode.states[None, 0].astype(np.float64), episode.actions[None, :8])
    env.close()
    assert found.shape == (1, 9, 5)
    assert np.abs(found[0] - episode.states[:9]).max() < 1.0


def test_an_action_against_the_rim_is_told_by_no_frame() -> None:
    env = PushTRealEnv()
    state = random_state(np.random.default_rng(0))
    state[:2], state[2:4] = (490.0, 30.0), (200.0, 300.0)
    actions = np.array([[[1.0, 0.0], [-1.0, 0.5]]], np.float32)
    assert had_full_effect(replay(env, state[None], actions), actions).tolist() == [[False, True]]
    env.close()


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments(model: VideoWAM, demonstrations: Path) -> RoleQueries:
    windows = choose_windows(EpisodeStore(demonstrations), 40, 4, 6, np.random.default_rng(0), all_held_out=True)
    return RoleQueries.take(model, windows)


def test_moments_hold_what_really_followed(moments: RoleQueries, demonstrations: Path) -> None:
    windows = choose_windows(EpisodeStore(demonstrations), 40, 4, 6, np.random.default_rng(0), all_held_out=True)
    episode, start = EpisodeStore(demonstrations)[int(windows.episodes[7])], int(windows.starts[7])
    assert np.array_equal(moments.frames[7], episode.frames[start + 3 : start + 10])
    assert np.array_equal(moments.actions[7].numpy(), episode.actions[start + 3 : start + 9])
    assert len({*zip(windows.episodes, windows.starts, strict=True)}) == 40
    assert (moments.episodes[moments.others] != moments.episodes).all()
    assert sorted(moments.others) == list(range(40))


def test_windows_underway_end_before_success(demonstrations: Path, tmp_path: Path) -> None:
    source = EpisodeStore(demonstrations)
    ended = [
        replace(e, terminated=np.arange(len(e)) >= 9 + i, provenance=e.provenance | {"seed": i})
        for i, e in enumerate([source[0], source[1]])
    ]
    again = EpisodeStore.create(tmp_path / "ended", source.spec, STATE_NAMES)
    again.add(ended)
    found = choose_windows(again, 999, 4, 6, np.random.default_rng(0), all_held_out=True, underway=True)
    assert {(e, s) for e, s in zip(found.episodes.tolist(), found.starts.tolist(), strict=True)} == {
        *((0, s) for s in range(7)),
        *((1, s) for s in range(8)),
    }


class Knowing(RolePredictions):
    """Answers with the truth, or with what it is told to."""

    acted = property(lambda self: self.queries.actions * 0)  # type: ignore[assignment]
    inferred = property(lambda self: self.queries.actions.clone())  # type: ignore[assignment]


class Blind(Knowing):
    """Infers what it would do anyway."""

    inferred = Knowing.acted


def test_a_model_that_looks_away_from_the_future_fails_where_a_knowing_one_passes(
    model: VideoWAM, moments: RoleQueries
) -> None:
    told, boot = np.ones((40, 6), bool), Bootstrap(moments.episodes)
    for kind, passes in ((Knowing, True), (Blind, False)):
        rows = {row.key: row for row in infer_rows(kind(model, moments, 0), told, boot)}
        assert rows["infer/gain"].passed is passes
        assert rows["infer/same"].passed is passes
    assert rows["infer"].value == pytest.approx(float(moments.actions.square().mean().sqrt()), rel=1e-5)


def test_resting_is_no_better_than_resting(model: VideoWAM, moments: RoleQueries) -> None:
    rows = {row.key: row for row in act_rows(Knowing(model, moments, 1), Bootstrap(moments.episodes))}
    assert rows["act"].value == rows["act/rest"].value
    assert rows["act/gain"].passed is False


def test_errors_count_only_where_an_action_can_be_told() -> None:
    true, found = torch.zeros(2, 3, 2), torch.tensor([[0.0, 9, 1], [9, 9, 9]])[..., None].expand(2, 3, 2)
    counts = np.array([[True, False, True], [False, False, False]])
    assert action_error(found, true, counts).tolist() == pytest.approx([0.5, np.nan], nan_ok=True)


def test_a_sure_bar_wants_the_whole_interval() -> None:
    bar = Target(most=0.0, surely=True)
    assert Metric("x", "x", -1.0, low=-2, high=-0.1, target=bar).passed is True
    assert Metric("x", "x", -1.0, low=-2, high=0.1, target=bar).passed is False
    assert Metric("x", "x", 0.0, low=0, high=0, target=bar).passed is False
    assert Metric("x", "x", -1.0, target=bar).passed is False
    assert str(bar) == "< 0 (95 %)"


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of a collection that the miniature did not learn from."""
    folder = tmp_path_factory.mktemp("data") / "unseen"
    for _ in collect(
        CollectConfig(out=folder, episodes=4, steps=16, workers=1, policy="oracle", near_goal=0.0, seed=4)
    ):
        pass
    return folder


@pytest.fixture(scope="module")
def told(wam: Path, store: Path, unseen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of the command."""
    out = tmp_path_factory.mktemp("roles")
    words = [
        "roles",
        str(wam),
        "--data",
        str(store),
        "--demos",
        str(unseen),
        "--windows",
        "12",
        "--passes",
        "2",
    ]
    assert cli.main([*words, "--out", str(out), "--json", str(out / "figures.json")]) == 0
    return out


KEYS = {
    *(
        "simulate",
        "simulate-jointly",
        "spread/pusher",
        "spread-jointly/pusher",
        "act",
        "act/gain",
        "infer",
        "infer/gain",
    ),
    *(
        "closure/same",
        "closure-otherwise/same",
        "closure/shuffled",
        "foresee",
        "foresee/pusher",
        "foresee/gap",
        "dream",
    ),
    *("dream/gain", "prefix/act", "prefix/dream", "prefix/infer", "prefix/gain", "value", "mix/video"),
    *(f"executable/{way}" for way in ("foreseen", "ceiling", "random", "rest")),
    *(f"executable-{field}/foreseen" for field in ("pusher", "block", "angle")),
}


def test_the_table_tells_every_role_with_its_interval(told: Path) -> None:
    body = json.loads((told / "roles.json").read_text())
    rows = {row["key"]: row for row in body["rows"]}
    assert set(rows) >= KEYS
    for row in body["rows"]:
        if row["key"].startswith(("mix", "value")):
            continue
        if row["n"] == 0:  # nothing moves the block in a dozen moments
            assert row["key"].startswith("executable-pushed")
            continue
        assert row["value"] is not None, row["key"]
        assert row["low"] <= row["value"] <= row["high"], row["key"]
        assert 0 < row["n"] <= 12
    steps = {row["step"] for row in body["rows"] if row["key"] == "foresee"}
    assert steps == set(reported_steps(6)) == {2, 4, 6}
    assert rows["prefix/act"]["passed"] is True
    assert (told / "figures.json").read_text() == (told / "roles.json").read_text()
    assert (told / "roles-strip.png").stat().st_size > 1000


def test_the_same_seed_tells_the_same_table(told: Path, wam: Path, store: Path, unseen: Path, tmp_path: Path) -> None:
    config = RolesConfig(world=str(wam), data=store, demos=unseen, windows=12, passes=2, out=tmp_path)
    report, _ = measure_roles(config)
    before = json.loads((told / "roles.json").read_text())["rows"]
    assert json.loads(report.to_json())["rows"] == before


def test_only_held_out_episodes_of_what_was_trained_on_are_asked_about(
    wam: Path, store: Path, demonstrations: Path, tmp_path: Path
) -> None:
    """Where those are too short, that is said."""
    short = EpisodeStore(demonstrations)
    cut = EpisodeStore.create(tmp_path / "short", short.spec, STATE_NAMES)
    cut.add(
        [
            Episode(
                e.frames[:9],
                e.actions[:8],
                e.rewards[:8],
                e.terminated[:8],
                e.truncated[:8],
                e.states[:9],
                e.provenance,
            )
            for e in short
            if e.states is not None
        ]
    )
    with pytest.raises(ValueError, match=r"training has never seen, got 0"):
        measure_roles(RolesConfig(world=str(wam), data=store, demos=cut.folder, out=tmp_path))
    with pytest.raises(ValueError, match="--windows: expected 2 or more, got 1"):
        RolesConfig(windows=1)
