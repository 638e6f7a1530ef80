"""The public names of each package are importable, listed, and load nothing heavy before they are used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

PACKAGES = {
    "neuralsim": "open_world World WorldModel State WorldSpec Imagination Episode EpisodeStore check_world register "
    "register_model Task LearnedTask GoalImage FunctionTask StateTask SumTask __version__",
    "neuralsim.training": "train TrainConfig find_recipe",
    "neuralsim.evaluation": "evaluate_world_model Report WorldMetrics",
    "neuralsim.formats": "import_dataset export_dataset",
    "neuralsim.envs": "ImaginedEnv ImaginedVectorEnv ImaginedVecEnv FeatureEnv RobotEnv Robot Oracle find_task",
    "neuralsim.envs.imagined": "ImaginedEnv ImaginedVectorEnv ImaginedVecEnv",
    "neuralsim.agents": "Policy resolve_policy Planner PlannerConfig CEM ICEM MPPI RandomShooting goal_image "
    "ActionChunkPolicy ActionChunkBroker SafetyMonitor PolicyServer PolicyClient ControlLoop",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there_and_listed(package: str) -> None:
    module = importlib.import_module(package)
    names = PACKAGES[package].split()
    assert set(names) <= {*dir(module), *module.__all__}
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_a_module_of_its_package_too(package: str) -> None:
    """Importing the module would put it in the name's place."""
    module = importlib.import_module(package)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert sorted(modules & set(PACKAGES[package].split())) == []


def test_importing_the_packages_loads_nothing_heavy() -> None:
    program = f"import sys, {', '.join(PACKAGES)}\nprint([m for m in ('torch', 'diffusers', 'pygame', 'cv2') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
