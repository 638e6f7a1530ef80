"""The player of the page: a SessionPlayer whose keys come from browsers, and whose frames are packets for them."""

from __future__ import annotations

from collections import deque
from typing import Any

from neuralsim.agents.teleop.config import PlayConfig
from neuralsim.agents.teleop.keyboard import GENTLE
from neuralsim.agents.teleop.panels import PanelRenderer, reading_rows
from neuralsim.agents.teleop.recorder import Recorder
from neuralsim.agents.teleop.session import Session, SessionFrame
from neuralsim.agents.teleop.session_player import SessionPlayer
from neuralsim.agents.web.messages import encode_image, finite, pack_frame


class WebPlayer(SessionPlayer):
    """Plays one session for the page. ``press`` and ``release_keys`` may come from any thread, the rest from the player's own."""

    def __init__(self, config: PlayConfig, session: Session, renderer: PanelRenderer, recorder: Recorder) -> None:
        super().__init__(config, session, renderer, recorder)
        self._changes: deque[tuple[int, int, int]] = deque(maxlen=256)  # serial, viewer, the viewer's own count
        self._shown_change = (0, 0)
        self._image: tuple[SessionFrame, bytes] | None = None
        self._header: dict[str, Any] | None = None

    def press(self, key: str, down: bool, viewer: int, count: int) -> None:
        """Hold or release a key of ``viewer``, its change number ``count``; keys that do not act here are passed over."""
        keyboard = self.session.keyboard
        if key != GENTLE and key not in keyboard.keys:
            return
        serial = keyboard.hold(key) if down else keyboard.release(key)
        if serial is not None:
            self._changes.append((serial, viewer, count))
            self.keys_changed(serial, self.clock())

    def release_keys(self) -> None:
        """Release all keys, as when the driver's page loses the focus."""
        self.session.keyboard.clear()
        if self.thread is not None:
            self.thread.hurry()

    def describe(self) -> dict[str, Any]:
        """Return all that the page shows of the world and that stays as it is."""
        session, labels, spec = self.session, self.renderer.labels, self.session.spec
        return {
            "world": self.config.world,
            "name": spec.name,
            "width": spec.width,
            "height": spec.height,
            "rate": spec.rate_hz,
            "real": session.reference is not None,
            "no_reference": labels.no_reference,
            "reward": labels.reward,
            "end": labels.end,
            "share": labels.reward_is_share,
            "keys": [list(pair) for pair in labels.keys],
            "acts": [*session.keyboard.keys, GENTLE],
            "policy": session.driver.name,
            "denoises": session.denoises,
            "limit": finite(self.renderer.uncertainty_limit),
            "starts": len(session.starts),
        }

    def packet(self) -> bytes | None:
        """Return the newest frame and status for the page; None where nothing has changed since the last."""
        frame, session, now = self.frame, self.session, self.clock()
        while self._changes and self._changes[0][0] <= frame.serial:
            _, *change = self._changes.popleft()
            self._shown_change = (change[0], change[1])
        fresh = self._image is None or self._image[0] is not frame
        if self._image is None or fresh:
            self._image = (frame, encode_image(frame))
        latency = self.latency.median()
        header = {
            "change": self._shown_change,
            "episode": frame.episode,
            "start": frame.start,
            "step": frame.step,
            "reward": finite(frame.reward),
            "end": finite(frame.end),
            "total": finite(frame.total),
            "uncertainty": finite(frame.uncertainty),
            "real": None if frame.real is None else [finite(frame.real.reward), frame.real.end],
            "by": session.driver_name,
            "paused": session.paused,
            "passes": session.denoise_steps,
            "held": sorted(session.keyboard.held),
            "recorded": None if self.recorded is None else round(self.recorded, 1),
            "message": self.message,
            "fps": 0.0 if session.paused else round(self.world_rate.value(now), 1),
            "latency": None if latency is None else round(1000 * latency),
            "readings": [list(row) for row in reading_rows(frame, self.renderer.labels)] if frame.real is None else [],
        }
        if header == self._header and not fresh:
            return None
        self._header = header
        if fresh:
            self.presented(frame.serial)
        return pack_frame(header, self._image[1])
