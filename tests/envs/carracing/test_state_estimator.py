"""Reading CarRacing: what the reader tells of true frames is true, what is broken is seen, and a driver that knows nothing else stays
on the road."""

from __future__ import annotations

import numpy as np
import pytest

from neuralsim.agents.policies.carracing_explorer import CarRacingExplorer
from neuralsim.agents.policies.carracing_lane_follower import CarRacingLaneFollower
from neuralsim.envs.carracing.env import CarRacingRealEnv
from neuralsim.envs.carracing.metrics import CarRacingMetrics
from neuralsim.envs.carracing.state_estimator import CarRacingStateEstimate, CarRacingStateEstimator
from neuralsim.evaluation.image_metrics import mask_iou
from neuralsim.evaluation.statistics import pearson

Drive = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def drive() -> Drive:
    """Frames of drives on two tracks, on the road and off it, their states, and how the road runs ``(n, 2)``: its angle in degrees
    off the car's way, and how far the car is to the right of its middle."""
    env = CarRacingRealEnv(observation="state")
    frames, states, runs = [], [], []
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        driver, memory = CarRacingExplorer(env, seed), None
        for i in range(130):
            action, memory = driver.predict(observation, memory)
            if i >= 100:  # off the road, so that there is grass under the wheels too
                action = np.array([0.4, 0.2, -1.0], np.float32)
            observation, _, ended, _, _ = env.step(action)
            if ended:
                break
            frames.append(env.render())
            states.append(env.state())
            runs.append(road_of(env))
    env.close()
    return np.stack(frames), np.stack(states), np.array(runs)


def road_of(env: CarRacingRealEnv) -> tuple[float, float]:
    """The run of the piece of road nearest the place just before the car, from the simulator's own track."""
    car = env._game.car
    right, front = (np.array(car.hull.GetWorldVector(way)) for way in ((1, 0), (0, 1)))
    here = np.array(car.hull.position)
    track = np.array([place[1:] for place in env._game.track])
    angle, *middle = track[np.linalg.norm(track[:, 1:] - (here + 4 * front), axis=1).argmin()]
    along = np.array([-np.sin(angle), np.cos(angle)])
    along = along if along @ front >= 0 else -along
    return float(np.degrees(np.arctan2(along @ right, along @ front))), float(
        (here - middle) @ np.array([along[1], -along[0]])
    )


@pytest.fixture(scope="module")
def seen(drive: Drive) -> CarRacingStateEstimate:
    return CarRacingStateEstimator()(drive[0])


def test_the_dashboard_tells_speed_steering_and_turn_rate(drive: Drive, seen: CarRacingStateEstimate) -> None:
    """Measured on 1,720 frames of the collected data: correlations 0.990, 1.000 and 0.998, mean errors 1.5 units/s, 0.002 and 0.03 rad."""
    _, states, _ = drive
    speed = np.hypot(states[:, 0], states[:, 1])
    assert pearson(seen.speed, speed) > 0.97
    assert np.abs(seen.speed - speed).mean() < 2.5
    assert pearson(seen.steering, states[:, 3]) > 0.999
    assert np.abs(seen.steering - states[:, 3]).mean() < 0.01
    assert pearson(seen.turn_rate, states[:, 2]) > 0.99


def test_the_wheels_are_seen_to_leave_the_road(drive: Drive, seen: CarRacingStateEstimate) -> None:
    """Measured on the collected data: whether most wheels are on grass is read right in 99 % of frames."""
    off = drive[1][:, 4]
    assert 0.05 < (off > 0.5).mean() < 0.6, "there is road and grass"
    assert ((seen.off_road > 0.5) == (off > 0.5)).mean() > 0.95


def test_the_road_runs_as_the_track_does(drive: Drive, seen: CarRacingStateEstimate) -> None:
    heading, offset = drive[2].T
    near = ~np.isnan(seen.heading) & (np.abs(offset) < 7)  # on the road
    assert near.mean() > 0.5
    wrong = np.abs((seen.heading - heading + 90) % 180 - 90)[near]
    assert np.median(wrong) < 6
    assert np.quantile(wrong, 0.9) < 20
    assert np.median(np.abs(seen.offset - offset)[near]) < 0.8
    assert pearson(seen.offset[near], offset[near]) > 0.95


def test_true_scenes_are_whole(seen: CarRacingStateEstimate) -> None:
    assert seen.car_found.all()
    assert seen.black.all()
    assert seen.known.min() > 0.96
    signs = {s.key: s.values for s in CarRacingMetrics(CarRacingStateEstimator()).integrity(seen.reshape(len(seen), 1))}
    assert signs["whole"].mean() == 1


@pytest.mark.parametrize("what", ["no car", "grey dashboard", "blue fog", "noise", "nothing"])
def test_what_is_broken_is_not_whole(drive: Drive, what: str) -> None:
    frames = drive[0][::20].copy()
    rng = np.random.default_rng(0)
    if what == "no car":
        frames[:, 42:54, 26:38] = (102, 204, 102)
    elif what == "grey dashboard":
        frames[:, 56:] = frames[:, 56:] // 2 + 90
    elif what == "blue fog":
        frames[:, :40, :, 2] = 200
    elif what == "noise":
        frames = rng.integers(0, 256, frames.shape, np.uint8)
    else:
        frames[:] = 0
    metrics = CarRacingMetrics(CarRacingStateEstimator())
    signs = {s.key: s.values for s in metrics.integrity(metrics.estimator(frames).reshape(len(frames), 1))}
    assert signs["whole"].mean() < 0.05


def test_a_shifted_road_overlaps_less_and_grass_alone_has_no_road(drive: Drive, seen: CarRacingStateEstimate) -> None:
    reader = CarRacingStateEstimator()
    moved = drive[0].copy()
    moved[:, :56] = np.roll(drive[0][:, :56], 6, axis=2)
    road = seen.road.any((1, 2))
    assert np.nanmedian(mask_iou(reader(moved).road, seen.road)[road]) < 0.8
    assert np.nanmin(mask_iou(seen.road, seen.road)[road]) == 1
    grass = np.full((2, 64, 64, 3), (102, 230, 102), np.uint8)
    blank = reader(grass)
    assert not blank.road.any()
    assert np.isnan(blank.heading).all()
    assert np.isnan(blank.ahead).all()
    assert (blank.off_road == 1).all()


def test_frames_of_another_size_are_read_too_and_wrong_ones_refused() -> None:
    env = CarRacingRealEnv(size=96)
    frame, _ = env.reset(seed=0)
    env.step(np.array([0.5, 0.0, -1.0], np.float32))
    seen = CarRacingStateEstimator(96)(env.render()[None])
    assert seen.car_found[0]
    assert abs(seen.heading[0]) < 20
    assert seen.steering[0] == pytest.approx(env.state()[3], abs=0.03)
    env.close()
    assert len(CarRacingStateEstimator()(np.empty((0, 64, 64, 3), np.uint8))) == 0
    with pytest.raises(ValueError, match=r"CarRacingStateEstimator\(size=\.\.\.\)"):
        CarRacingStateEstimator(64)(frame[None])


def test_a_driver_that_sees_frames_alone_stays_on_the_road_and_finds_it_again() -> None:
    env, driver = CarRacingRealEnv(), CarRacingLaneFollower()
    frame, _ = env.reset(seed=11)
    memory, off = None, []
    for i in range(170):
        action, memory = driver.predict(frame, memory)
        if 60 <= i < 78:  # a hand on the wheel
            action = np.array([0.6, -0.2, -1.0], np.float32)
        frame, _, ended, _, info = env.step(action)
        assert not ended
        off.append(info["off_road"])
    env.close()
    assert np.mean(off[:60]) < 0.05
    assert max(off[60:110]) == 1
    assert np.mean(off[-25:]) < 0.05


def test_drivers_in_a_batch_drive_as_they_do_alone(drive: Drive) -> None:
    frames, driver = drive[0][::40], CarRacingLaneFollower()
    together, sides = driver.predict(frames)
    assert together.shape == (len(frames), 3)
    for i, frame in enumerate(frames):
        alone, side = driver.predict(frame)
        assert (alone == together[i]).all()
        assert side[0] == sides[i]
