"""PolicyClient: a policy that another process serves (``neuralsim serve``), as an ActionChunkPolicy in this one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.envs.robots.wire import pack, unpack
from neuralsim.runtime.imports import require_extra
from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

AGAIN = 0.1
"""Seconds between attempts to connect."""
TOO_BIG = 1009
"""The websocket close code for a message that is too long."""
SAME = ("world", "chunk", "policy")
"""Metadata that must not change between connections."""


class PolicyClient:
    """The policy served at ``address`` (``host:port``, or ``ws://...``). Each request carries its whole history, so nothing is lost
    with a connection: one that breaks is made again, once per request and for ``connect_timeout`` seconds. Rows of a batch go over
    connections of their own, and the server answers them together.

    Raises ConnectionError where no server answers, or it reports an error; TimeoutError where an answer takes more than
    ``timeout`` seconds; PermissionError where it requires another key; ValueError where a request is too long for it, where it
    serves no policy of NeuralSim, or another one now. After any of them the next request begins with fresh connections.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
    ) -> None:
        self.uri = address if "://" in address else f"ws://{address}"
        self.api_key, self.timeout, self.connect_timeout = api_key, timeout, connect_timeout
        self.metadata: dict[str, Any] = {}
        self._links: list[ClientConnection | None] = [None]
        self._links[0] = self._connect()
        try:
            self.spec = WorldSpec(**self.metadata["world"])
            self.chunk = int(self.metadata["chunk"])
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            names = ", ".join(map(str, self.metadata)) or "nothing"
            raise ValueError(
                f"{self.uri}: expected a policy of NeuralSim; its server announces {names} ({error})"
            ) from error

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        requests = [
            {
                "observation/image": seen.frames[i],
                "actions_done": seen.actions[i],
                "seed": int(seed),
                "normalized": True,
                **({} if prefix is None else {"observation/prefix_actions": prefix[i]}),
            }
            for i, seed in enumerate(seeds)
        ]
        self._links += [None] * (len(requests) - len(self._links))
        try:
            messages = [pack(request) for request in requests]
            for i, message in enumerate(messages):
                self._send(i, message)
            return np.stack([self._actions(self._receive(i, message)) for i, message in enumerate(messages)])
        except BaseException:
            self.close()  # answers may be under way, and would be taken for those of the next request
            raise

    def close(self) -> None:
        """Close the connections; the next request makes new ones."""
        for i in range(len(self._links)):
            self._drop(i)

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- connections -----------------------------------------------------------------------------------------------------

    def _send(self, i: int, message: bytes) -> ClientConnection:
        """Send over connection ``i``; make it if there is none, or it is broken."""
        from websockets.exceptions import ConnectionClosed

        link = self._links[i]
        if link is not None:
            try:
                link.send(message)
                return link
            except ConnectionClosed:
                self._drop(i)
        self._links[i] = link = self._connect()
        link.send(message)
        return link

    def _receive(self, i: int, message: bytes) -> bytes:
        """Return the answer to ``message``, sent over connection ``i``; send it once more where that breaks."""
        from websockets.exceptions import ConnectionClosed

        link, until = self._links[i], time.monotonic() + self.timeout
        assert link is not None
        try:
            return self._answer(link, until)
        except ConnectionClosed as closed:
            self._drop(i)
            if closed.rcvd is not None and closed.rcvd.code == TOO_BIG:
                raise ValueError(
                    f"{self.uri}: a request of {len(message)} bytes is too long for this server ({closed.rcvd.reason})"
                ) from closed
        try:
            return self._answer(self._send(i, message), until)
        except ConnectionClosed as closed:
            raise ConnectionError(f"{self.uri}: the connection broke twice during one request ({closed})") from closed

    def _answer(self, link: ClientConnection, until: float) -> bytes:
        try:
            answer = link.recv(timeout=max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            raise TimeoutError(f"{self.uri}: no answer within {self.timeout:g} s") from error
        if isinstance(answer, str):
            raise ConnectionError(f"{self.uri}: the server reports: {answer.strip().splitlines()[-1]}")
        return answer

    def _actions(self, answer: bytes) -> np.ndarray:
        reply = unpack(answer)
        actions = self.spec.check_actions(
            reply["actions"] if isinstance(reply, dict) else reply, f"{self.uri}: actions"
        )
        if actions.shape != (self.chunk, self.spec.action_size):
            raise ValueError(f"{self.uri}: expected actions {(self.chunk, self.spec.action_size)}, got {actions.shape}")
        return actions

    def _connect(self) -> ClientConnection:
        """Return a new connection whose server has sent its metadata; tries for ``connect_timeout`` seconds."""
        with require_extra("a served policy", "robot"):
            from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

        until = time.monotonic() + self.connect_timeout
        while True:
            try:
                return self._handshake(until)
            except InvalidURI as error:
                raise ValueError(f"{self.uri}: no address of a websocket; expected host:port") from error
            except InvalidStatus as error:
                if error.response.status_code == 401:
                    raise PermissionError(f"{self.uri}: the server requires another api_key") from error
                why: Exception = error
            except (OSError, ConnectionClosed, InvalidHandshake) as error:
                why = error
            if time.monotonic() + AGAIN >= until:
                raise ConnectionError(
                    f"{self.uri}: no policy server for {self.connect_timeout:g} s ({why}); 'neuralsim serve' starts one"
                ) from why
            time.sleep(AGAIN)

    def _handshake(self, until: float) -> ClientConnection:
        """Connect once; the server's metadata comes first."""
        from websockets.sync.client import connect

        headers = {} if self.api_key is None else {"Authorization": f"Api-Key {self.api_key}"}
        left = max(AGAIN, until - time.monotonic())
        link = connect(
            self.uri,
            compression=None,
            max_size=None,
            additional_headers=headers,
            open_timeout=left,
            close_timeout=1,  # a frozen server is not to hold up a robot
        )
        try:
            first = link.recv(timeout=left)
            metadata = {} if isinstance(first, str) else unpack(first)
            if not isinstance(metadata, dict) or not metadata:
                raise ValueError(f"{self.uri}: expected a policy server, which begins with its metadata")
            if self.metadata and any(metadata.get(key) != self.metadata.get(key) for key in SAME):
                raise ValueError(f"{self.uri}: another policy is served there now; open it again")
        except BaseException:
            link.close()
            raise
        self.metadata = metadata
        return link

    def _drop(self, i: int) -> None:
        link, self._links[i] = self._links[i], None
        if link is not None:
            with contextlib.suppress(OSError):
                link.close()
