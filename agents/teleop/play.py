"""The command ``play``: open a learned world and play it with the keyboard, beside the real environment where there can be one."""

from __future__ import annotations

import contextlib

from neuralsim.agents.policies.resolve import resolve_policy
from neuralsim.agents.screen import dummy_screen, has_screen
from neuralsim.agents.teleop.config import PlayConfig, PlayReport
from neuralsim.agents.teleop.key_bindings import keyboard_and_labels
from neuralsim.agents.teleop.key_events import NAMES
from neuralsim.agents.teleop.keyboard import DIGITS, Keyboard
from neuralsim.agents.teleop.panels import PanelRenderer
from neuralsim.agents.teleop.player import Player
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.reference_env import ReferenceEnv, find_reference_env
from neuralsim.agents.teleop.scripted_keys import ScriptEvent, random_keys, read_script
from neuralsim.agents.teleop.session import Session, open_imagination, state_names
from neuralsim.agents.teleop.window import Window
from neuralsim.imagination import Imagination
from neuralsim.pretrained.world import open_world
from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt
from neuralsim.spec import WorldSpec


def play(config: PlayConfig) -> PlayReport:
    """Open the world and play it until the user quits; recordings are kept however it ends.

    Raises a ValueError for options that do not go together, OSError without a screen.
    """
    config.validate()
    script: tuple[ScriptEvent, ...] = () if config.script is None else read_script(config.script)
    with contextlib.ExitStack() as opened:
        session, renderer, recorder = open_session(config, opened)
        spec = session.spec
        if config.benchmark > 0:
            script = random_keys(config.benchmark, config.seed, _benchmark_keys(session.keyboard, spec))
        if config.headless or (config.benchmark > 0 and not has_screen()):
            opened.enter_context(dummy_screen())
        size = (spec.height, spec.width)
        window = Window(size, config.scale, f"NeuralSim {config.world}", renderer, session.reference is not None)
        opened.callback(window.close)
        player = Player(config, session, window, recorder, script)
        with GracefulInterrupt(lambda: setattr(player, "done", True), hangup=True):
            try:
                if config.headless and config.benchmark <= 0:
                    player.run_headless()
                else:
                    player.run_live()
            finally:
                report = player.finish()
    print_report(report, config)
    return report


def open_session(config: PlayConfig, opened: contextlib.ExitStack) -> tuple[Session, PanelRenderer, Recorder]:
    """Open the world of ``config`` with its policy and keys; ``opened`` closes what must be closed.

    Raises a ValueError for a world without starts or a policy that it does not have.
    """
    world = open_world(config.world, config.device)
    imagination = open_imagination(world, config.precision)
    reference, no_reference = _find_reference(imagination)
    if reference is not None:
        opened.callback(reference.env.close)
    keyboard, labels = keyboard_and_labels(world.spec, state_names(imagination), no_reference)
    driver = resolve_policy(config.policy, world, None if reference is None else reference.env, seed=config.seed)
    session = Session(imagination, driver, keyboard, config.seed, reference)
    renderer = PanelRenderer(labels, imagination.uncertainty_limit)
    return (
        session,
        renderer,
        Recorder(config.out, world.spec, config.seed, None if reference is None else reference.state_names),
    )


def _find_reference(imagination: Imagination) -> tuple[ReferenceEnv | None, str]:
    """Return the real environment beside the imagined one, or in words the reason for none."""
    assert imagination.starts is not None
    try:
        return find_reference_env(imagination.model.spec, imagination.starts), ""
    except ValueError as error:
        return None, f"No real environment beside it: {error}."


def _benchmark_keys(keyboard: Keyboard, spec: WorldSpec) -> tuple[int, ...]:
    """Return the key codes that a benchmark presses: the first few that act, one for each name."""
    names = DIGITS[: spec.action_choices[0]] if spec.discrete and spec.action_size == 1 else keyboard.keys
    codes = {name: code for code, name in reversed(NAMES.items())}
    return tuple(codes[name] for name in names[:4])


def print_report(report: PlayReport, config: PlayConfig) -> None:
    """Print the report after a scripted session, and the files recorded after any other."""
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, report.to_json())
    if config.headless or config.benchmark > 0 or config.script is not None:
        print(report.to_json())
        return
    for path in report.videos + report.episodes:
        print(f"saved {path}")
