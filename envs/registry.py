"""The real worlds that come with NeuralSim: one record each, and how to register and find such records.

Importing this module registers them, with their Gymnasium ids; simulators and models are imported on first use.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from neuralsim.envs.tasks.real_world import (
    RealWorld,
    RobotSettings,
    ScriptedPolicies,
    Simulator,
    TeleopSettings,
    find_frame_policies,
    find_metrics,
    find_real_world,
    get_real_world,
    real_worlds,
    register_real_world,
)

if TYPE_CHECKING:
    from neuralsim.envs.robots.faults import Faults

__all__ = [
    "RealWorld",
    "RobotSettings",
    "ScriptedPolicies",
    "Simulator",
    "TeleopSettings",
    "find_frame_policies",
    "find_metrics",
    "find_real_world",
    "get_real_world",
    "real_worlds",
    "register_real_world",
]


def _pusht_robot_server(rate: float, faults: Faults, seed: int) -> AbstractContextManager[str]:
    from neuralsim.envs.pusht.robot_server import RobotSimConfig, spawn_robot_sim

    return spawn_robot_sim(RobotSimConfig(port=0, rate=rate, faults=faults, seed=seed, truth=True))


PUSHT = RealWorld(
    name="pusht",
    env="neuralsim.envs.pusht.env:PushTRealEnv",
    spec="neuralsim.envs.pusht.env:pusht_spec",
    env_id="neuralsim/PushTReal-v0",
    imagined_id="neuralsim/PushT-v0",
    shipped="pusht-wam",
    former_names=("pusht-video",),
    state="neuralsim.envs.pusht.env:STATE_NAMES",
    random_state="neuralsim.envs.pusht.env:random_state",
    collect_steps=100,
    policies=ScriptedPolicies(
        explorer="neuralsim.agents.policies.pusht_explorer:PushTExplorer.for_env",
        expert="neuralsim.agents.policies.pusht_expert:PushTExpert",
    ),
    tasks="neuralsim.envs.pusht.tasks:RL_TASKS",
    goal_task="neuralsim.envs.pusht.tasks:GOAL_TASK",
    metrics="neuralsim.envs.pusht.metrics:PushTMetrics.of_size",
    role_metrics="neuralsim.envs.pusht.role_metrics:PushTRoleMetrics",
    state_estimator="neuralsim.envs.pusht.state_estimator:PushTStateEstimator",
    simulator="neuralsim.envs.pusht.simulator:PushTSimulator",
    teleop=TeleopSettings(
        keyboard="neuralsim.agents.teleop.keyboard:Keyboard",
        keys=(
            ("arrows, W A S D", "push; two neighbours push diagonally"),
            ("shift", "push gently, a third as far"),
        ),
        reward="coverage",
        reward_is_share=True,
        end="success",
        fps=15.0,
    ),
    robot=RobotSettings(
        limits="neuralsim.agents.safety.limits:pusht_limits",
        faults="neuralsim.agents.safety.fault_injection:pusht_faults",
        simulated="neuralsim.envs.pusht.robot:PushTRobot",
        server=_pusht_robot_server,
    ),
    bare_env="neuralsim.envs.pusht.env:make_bare_env",
    episodes_per_shard=100,
    recipes={
        "pusht-video": "neuralsim.envs.pusht.recipes:pusht_video",
        "pusht-video-mini": "neuralsim.envs.pusht.recipes:pusht_video_mini",
        "pusht-wam": "neuralsim.envs.pusht.recipes:pusht_wam",
        "pusht-wam-mini": "neuralsim.envs.pusht.recipes:pusht_wam_mini",
        "pusht-latent": "neuralsim.envs.pusht.recipes:pusht_latent",
        "pusht-latent-mini": "neuralsim.envs.pusht.recipes:pusht_latent_mini",
    },
)
TWOROOM = RealWorld(
    name="tworoom",
    env="neuralsim.envs.tworoom.env:TwoRoomRealEnv",
    spec="neuralsim.envs.tworoom.env:tworoom_spec",
    env_id="neuralsim/TwoRoomReal-v0",
    imagined_id="neuralsim/TwoRoom-v0",
    shipped="tworoom-latent",
    state="neuralsim.envs.tworoom.env:STATE_NAMES",
    random_state="neuralsim.envs.tworoom.env:random_state",
    time_limit=200,
    collect_steps=100,
    policies=ScriptedPolicies(explorer="neuralsim.agents.policies.tworoom_explorer:TwoRoomExplorer.for_env"),
    tasks="neuralsim.envs.tworoom.tasks:RL_TASKS",
    goal_task="neuralsim.envs.tworoom.tasks:GOAL_TASK",
    simulator="neuralsim.envs.tworoom.simulator:TwoRoomSimulator",
    episodes_per_shard=100,
    recipes={
        "tworoom-latent": "neuralsim.envs.tworoom.recipes:tworoom_latent",
        "tworoom-latent-mini": "neuralsim.envs.tworoom.recipes:tworoom_latent_mini",
    },
)
CARRACING = RealWorld(
    name="carracing",
    env="neuralsim.envs.carracing.env:CarRacingRealEnv",
    spec="neuralsim.envs.carracing.env:car_racing_spec",
    env_id="neuralsim/CarRacingReal-v0",
    imagined_id="neuralsim/CarRacing-v0",
    shipped="carracing-video",
    state="neuralsim.envs.carracing.env:STATE_NAMES",
    time_limit=334,
    policies=ScriptedPolicies(
        explorer="neuralsim.agents.policies.carracing_explorer:CarRacingExplorer",
        frame_policies={"driver": "neuralsim.agents.policies.carracing_lane_follower:CarRacingLaneFollower"},
    ),
    tasks="neuralsim.envs.carracing.tasks:RL_TASKS",
    metrics="neuralsim.envs.carracing.metrics:CarRacingMetrics.of_size",
    state_estimator="neuralsim.envs.carracing.state_estimator:CarRacingStateEstimator",
    recipes={
        "carracing-video": "neuralsim.envs.carracing.recipes:carracing_video",
    },
)
METAWORLD = RealWorld(
    name="metaworld",
    env="neuralsim.envs.metaworld.env:MetaWorldRealEnv",
    spec="neuralsim.envs.metaworld.env:metaworld_spec",
    env_id="neuralsim/MetaWorldReal-v0",
    state="neuralsim.envs.metaworld.env:STATE_NAMES",
    horizon=125,
    teleop=TeleopSettings(end="success"),
)
for _world in (PUSHT, TWOROOM, CARRACING, METAWORLD):
    register_real_world(_world)
