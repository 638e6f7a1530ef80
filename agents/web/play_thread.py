"""The thread of the player: carries out commands, records, and packs frames, so that the sockets never wait for any of it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from neuralsim.agents.teleop.config import PlayConfig, PlayReport
from neuralsim.agents.teleop.play import open_session
from neuralsim.agents.teleop.recorder import SavedRecording
from neuralsim.agents.teleop.session import Session
from neuralsim.agents.teleop.step_thread import StepThread
from neuralsim.agents.web.web_player import WebPlayer

STATUS_SECONDS = 0.5
"""Longest time between two looks at the status, for rates and messages that grow old."""


class PlayThread(threading.Thread):
    """Plays the world of ``config`` until ``stop``, or another of ``worlds`` from `choose` on.

    ``publish(data)`` gets each packet, ``opened()`` is called after a change of the world and after an error; both in this thread.
    The world stands still until `watch`. Raises as `open_session` does, before the thread starts.
    """

    def __init__(
        self, config: PlayConfig, worlds: tuple[str, ...], publish: Callable[[bytes], Any], opened: Callable[[], Any]
    ) -> None:
        super().__init__(name="neuralsim-web-play", daemon=True)
        self.config, self.worlds, self.publish, self.opened = config, worlds, publish, opened
        self.error: BaseException | None = None
        self.reports: list[PlayReport] = []
        """Reports of the worlds played, the last one at the end."""
        self._calls: queue.SimpleQueue[Callable[[WebPlayer], Any] | None] = queue.SimpleQueue()
        self._stopping = False
        self._unwatched = True
        self._earlier: list[SavedRecording] = []
        self._open = contextlib.ExitStack()
        self.player = self._open_player(config, self._open)
        self.player.session.paused = True

    @property
    def recordings(self) -> list[SavedRecording]:
        """All finished recordings, oldest first."""
        return [*self._earlier, *self.player.recorder.finished]

    def call(self, call: Callable[[WebPlayer], Any]) -> None:
        """Queue ``call(player)``."""
        self._calls.put(call)

    def choose(self, world: str) -> None:
        """Queue a change to another of ``worlds``; where it cannot be opened, play goes on and the page shows the reason."""
        self._calls.put(lambda player: self._change(world))

    def watch(self, watched: bool) -> None:
        """Pause where no one watches, and go on for the first who comes, unless it was paused before."""
        self._calls.put(lambda player: self._watch(watched))

    def stop(self) -> None:
        """End after the step under way, keep what was recorded, and raise the error that ended it before, if any."""
        self._stopping = True
        self._calls.put(None)
        if self.is_alive():
            self.join()
        try:
            self.reports.append(self.player.finish())
        finally:
            self._open.close()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """The thread's loop."""
        self._start(self.player)
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            self.error = error
            self.opened()

    def _turn(self) -> None:
        call: Callable[[WebPlayer], Any] | None = None
        with contextlib.suppress(queue.Empty):
            call = self._calls.get(timeout=STATUS_SECONDS)
        if call is not None:
            call(self.player)
        player = self.player
        if player.thread is not None and player.thread.error is not None:
            raise player.thread.error
        for frame in player.thread.drain() if player.thread is not None else ():
            player.absorb(frame)
        if (data := player.packet()) is not None:
            self.publish(data)

    def _open_player(self, config: PlayConfig, opened: contextlib.ExitStack) -> WebPlayer:
        session, renderer, recorder = open_session(config, opened)
        return WebPlayer(config, session, renderer, recorder)

    def _start(self, player: WebPlayer) -> None:
        player.thread = StepThread(player.session, player.fps, lambda: self._calls.put(None))
        player.thread.start()

    def _change(self, world: str) -> None:
        old = self.player
        if world == old.config.world or world not in self.worlds:
            return
        paused = old.session.paused
        old.session.paused = True  # opening a world wants the processor
        old.show(f"opening {world}")
        if (data := old.packet()) is not None:
            self.publish(data)
        opened = contextlib.ExitStack()
        first = world == self.config.world
        # The options that belong to the first world stay with it, and each world records into a folder of its own.
        config = self.config if first else replace(self.config, policy="explorer", out=self.config.out / world)
        try:
            player = self._open_player(replace(config, world=world, record=False), opened)
        except (ValueError, OSError, ImportError) as error:
            opened.close()
            old.show(f"{world}: {' '.join(str(error).split())[:200]}")
            old.session.paused = paused
            old.request(lambda session: None)  # wakes its thread
            return
        self.reports.append(old.finish())
        self._earlier += old.recorder.finished
        self._open.close()
        self._open, self.player, self._unwatched = opened, player, False
        self._start(player)
        self.opened()

    def _watch(self, watched: bool) -> None:
        def change(session: Session) -> None:  # between two steps, after the requests before it
            if watched and self._unwatched:
                session.paused = False
            self._unwatched = not watched and not session.paused
            session.paused |= self._unwatched

        self.player.request(change)
        self.player.forget_rates()
