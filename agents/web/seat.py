"""The driver's seat: of several viewers one drives, and can hand over.

A driver whose connection was cut keeps the seat for a few seconds; one who does nothing for a minute can be relieved.
"""

from __future__ import annotations

from collections.abc import Callable


class DriverSeat:
    """The seat; viewers are numbers, ``client`` the secret by which a browser is known again; ``clock`` gives seconds."""

    def __init__(self, idle_s: float, reconnect_s: float, clock: Callable[[], float]) -> None:
        self.idle_s, self.reconnect_s, self.clock = idle_s, reconnect_s, clock
        self.driver: int | None = None
        self.asking: list[int] = []
        """Viewers that have asked for the seat, in the order of asking."""
        self._client, self._active = "", 0.0
        self._kept_until = 0.0

    @property
    def free(self) -> bool:
        """True where any viewer may take the seat now."""
        if self.driver is None:
            return self.clock() >= self._kept_until
        return self.clock() - self._active > self.idle_s

    def join(self, viewer: int, client: str) -> None:
        """Seat a new viewer where the seat is empty, or is kept for this browser."""
        if self.driver is None and (client == self._client or self.free):
            self._sit(viewer, client)

    def leave(self, viewer: int) -> None:
        """Take a viewer out; the driver's seat is kept for a while."""
        self.asking = [v for v in self.asking if v != viewer]
        if viewer == self.driver:
            self.driver, self._kept_until = None, self.clock() + self.reconnect_s

    def act(self) -> None:
        """Count a key or a button of the driver."""
        self._active = self.clock()

    def take(self, viewer: int, client: str) -> bool:
        """Seat ``viewer`` where the seat is free, else note that it asks; return True if it drives now."""
        if viewer == self.driver:
            return True
        if self.free:
            self._sit(viewer, client)
        elif viewer not in self.asking:
            self.asking.append(viewer)
        return viewer == self.driver

    def give(self, viewer: int, client: str) -> None:
        """Hand the seat over to ``viewer``."""
        self._sit(viewer, client)

    def _sit(self, viewer: int, client: str) -> None:
        self.driver, self._client = viewer, client
        self.asking = [v for v in self.asking if v != viewer]
        self.act()
