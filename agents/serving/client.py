"""PolicyClient: a policy that another process serves (``neuralsim serve``), as a ChunkPolicy here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralsim.agents.heads.chunk_policy import ObservationHistory
from neuralsim.envs.robots.wire import pack, unpack
from neuralsim.runtime.robot_extra import robot_extra
from neuralsim.spec import WorldSpec

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

AGAIN = 0.1
"""Seconds between attempts to connect."""
SAME = ("world", "chunk", "policy")
"""What a server must still say when a connection is made anew."""


class PolicyClient:
    """The policy served at ``address`` (``host:port``, or ``ws://...``). Each request carries its whole history, so nothing is lost
    with a connection: one that breaks is made anew, once per request and for ``patience`` seconds. Rows of a batch go over
    connections of their own, and the server answers them together.

    Raises ConnectionError where no server answers, or it says that something went wrong; TimeoutError where an answer takes
    more than ``timeout`` seconds; PermissionError where it wants another key; ValueError where it serves no policy of
    NeuralSim, or another one now. After any of them the next request begins with fresh connections.
    """

    def __init__(
        self, address: str = "127.0.0.1:8000", api_key: str | None = None, timeout: float = 30.0, patience: float = 5.0
    ) -> None:
        self.uri = address if "://" in address else f"ws://{address}"
        self.api_key, self.timeout, self.patience = api_key, timeout, patience
        self.metadata: dict[str, Any] = {}
        self._links: list[ClientConnection | None] = [None]
        self._links[0] = self._connect()
        try:
            self.spec = WorldSpec(**self.metadata["world"])
            self.chunk = int(self.metadata["chunk"])
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            told = ", ".join(map(str, self.metadata)) or "nothing"
            raise ValueError(
                f"{self.uri}: expected a policy of NeuralSim; its server tells {told} ({error})"
            ) from error

    def predict_action_chunk(
        self, seen: ObservationHistory, seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """See ChunkPolicy."""
        questions = [
            {
                "observation/image": seen.frames[i],
                "actions_done": seen.actions[i],
                "seed": int(seed),
                "normalized": True,
                **({} if prefix is None else {"observation/prefix_actions": prefix[i]}),
            }
            for i, seed in enumerate(seeds)
        ]
        self._links += [None] * (len(questions) - len(self._links))
        try:
            messages = [pack(question) for question in questions]
            for i, message in enumerate(messages):
                self._send(i, message)
            return np.stack([self._actions(self._receive(i, message)) for i, message in enumerate(messages)])
        except BaseException:
            self.close()  # answers may be under way, and would be taken for those of the next request
            raise

    def close(self) -> None:
        """Let go of the connections; the next request makes new ones."""
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
        """Over connection ``i``, which is made if there is none, and anew if it is broken."""
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
        """The answer to ``message``, which was sent over connection ``i``; it is asked once more where that breaks."""
        from websockets.exceptions import ConnectionClosed

        link, until = self._links[i], time.monotonic() + self.timeout
        assert link is not None
        try:
            return self._answer(link, until)
        except ConnectionClosed:
            self._drop(i)
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
            raise ConnectionError(f"{self.uri}: the server says: {answer.strip().splitlines()[-1]}")
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
        """A new connection whose server has said what it serves; tries for ``patience`` seconds."""
        with robot_extra("a served policy"):
            from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

        until = time.monotonic() + self.patience
        while True:
            try:
                return self._greeted(until)
            except InvalidURI as error:
                raise ValueError(f"{self.uri}: no address of a websocket; expected host:port") from error
            except InvalidStatus as error:
                if error.response.status_code == 401:
                    raise PermissionError(f"{self.uri}: the server wants another api_key") from error
                why: Exception = error
            except (OSError, ConnectionClosed, InvalidHandshake) as error:
                why = error
            if time.monotonic() + AGAIN >= until:
                raise ConnectionError(
                    f"{self.uri}: no policy server for {self.patience:g} s ({why}); 'neuralsim serve' starts one"
                ) from why
            time.sleep(AGAIN)

    def _greeted(self, until: float) -> ClientConnection:
        """Connect once; the first words are the server's."""
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
            words = link.recv(timeout=left)
            metadata = {} if isinstance(words, str) else unpack(words)
            if not isinstance(metadata, dict) or not metadata:
                raise ValueError(f"{self.uri}: expected a policy server, which begins with its metadata")
            if self.metadata and any(metadata.get(key) != self.metadata.get(key) for key in SAME):
                raise ValueError(f"{self.uri}: another policy is served there now; open it anew")
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
