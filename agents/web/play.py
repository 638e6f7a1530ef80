"""The command ``play``: in a window, or with ``--web`` in browsers."""

from __future__ import annotations

from collections.abc import Callable

from neuralsim.agents.teleop.config import PlayConfig, PlayReport
from neuralsim.agents.teleop.play import play, print_report
from neuralsim.agents.web.config import WebConfig
from neuralsim.runtime.interrupt import GracefulInterrupt
from neuralsim.runtime.network import is_loopback
from neuralsim.storage.resolve import list_worlds, resolve


def play_command(config: PlayConfig, say: Callable[[str], None] = print) -> PlayReport:
    """Play until the user quits; recordings are kept however it ends. Raises as `play` does, OSError for a port that is taken."""
    return play_web(config, say) if config.web else play(config)


def play_web(config: PlayConfig, say: Callable[[str], None] = print) -> PlayReport:
    """Serve play to browsers until ctrl-C or a SIGTERM, and return the report of the last world played."""
    from neuralsim.agents.web.play_thread import PlayThread
    from neuralsim.agents.web.room import Room
    from neuralsim.agents.web.server import WebServer

    config.validate()
    web = WebConfig.from_play(config)
    room = Room(web)
    room.play = PlayThread(config, offered_worlds(config.world), room.publish, room.world_opened)
    try:
        with GracefulInterrupt(hangup=True) as stopping, WebServer(room) as server:
            room.play.start()
            say(server.url)
            if not is_loopback(web.host):
                say("every machine that reaches this port and has the token may play; no TLS")
            say("ctrl-C ends it; a recording is kept")
            while not stopping.asked and room.play.error is None and server.wait(0.2):
                pass
    finally:
        room.play.stop()
    for report in room.play.reports:
        print_report(report, config)
    return room.play.reports[-1]


def offered_worlds(first: str) -> tuple[str, ...]:
    """Return ``first`` and the shipped worlds, each by one name, for the page's chooser."""
    names = {resolve(name): name for name in reversed(list_worlds())}
    names.pop(resolve(first), None)
    return (first, *sorted(names.values()))
