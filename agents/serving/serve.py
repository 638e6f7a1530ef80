"""serve: a trained world's policy as a server for robot clients, as the command line asks for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy, ObservationHistory
from neuralsim.agents.serving.protocol import ProtocolOptions
from neuralsim.agents.serving.server import Listening, PolicyServer
from neuralsim.data.episode import write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt

KEY = "NEURALSIM_API_KEY"
"""Environment variable that may hold the key: arguments can be read by everybody on a machine."""


@dataclass(frozen=True)
class ServeConfig:
    """Serve a world's policy to robot clients (openpi's and RoboArena's protocols)."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    policy: str = "head"
    """Which of the world's policies acts."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own ask for a key."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    api_key: str = ""
    """What clients must show as 'Authorization: Api-Key KEY'; by default what NEURALSIM_API_KEY holds."""
    open: bool = False
    """Serve other machines without a key: whoever reaches the port may use the policy."""
    normalized: bool = False
    """Actions in the world's own [-1, 1] instead of its units."""
    announce: Literal["all", "roboarena"] = "all"
    """What is said first: all that is known, or only the six fields that strict RoboArena clients bear."""
    image_key: str = ""
    """Name of the camera's image in observations; the usual ones are known."""
    fit: Literal["stretch", "pad"] = "stretch"
    """How images of another aspect become frames."""
    max_clients: int = 16
    """Connections at a time; more are turned away."""
    max_message: float = 16.0
    """Largest message in MiB; a client that sends a larger one is turned away."""
    seed: int = 0
    """Makes the policy's choices repeatable."""
    device: str = "auto"
    """Where the model runs: auto, cpu or cuda."""
    json: Path | None = None
    """Also write the figures to this file, at the end."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")
        if self.max_clients < 1 or self.max_message <= 0:
            raise ValueError(
                f"max_clients and max_message: expected at least 1 and more than 0, got {self.max_clients} and {self.max_message}"
            )

    @property
    def listening(self) -> Listening:
        """As the server takes it. Raises ValueError where strangers could connect and no key is asked for."""
        key = self.api_key or os.environ.get(KEY) or None
        place = Listening(self.host, self.port, key, self.max_clients, int(self.max_message * 2**20))
        if not place.loopback and key is None and not self.open:
            raise ValueError(
                f"host {self.host}: other machines could reach it; give --api-key (or {KEY}), or --open to serve anybody"
            )
        return place

    @property
    def manner(self) -> ProtocolOptions:
        """As the server takes it."""
        return ProtocolOptions(self.normalized, self.announce, self.fit, self.image_key, self.seed)


def serve(
    config: ServeConfig, say: Callable[[str], None] = print, policy: ActionChunkPolicy | None = None
) -> dict[str, Any]:
    """Serve until ctrl-C (or a polite kill); returns the figures. ``policy`` instead of the world's own.

    Raises ValueError for a world without such a policy or an open door without a key, OSError where the port is taken.
    """
    place = config.listening
    acting = _find(config) if policy is None else policy
    warm(acting)
    with GracefulInterrupt() as stopping, PolicyServer(acting, place, config.manner, config.policy, say) as server:
        spec = acting.spec
        say(
            f"{server.uri} serves {config.policy!r} of world {spec.name!r}: {acting.chunk} actions at {spec.rate_hz:g} Hz"
        )
        if not place.loopback:
            say(
                "every machine that reaches this port may ask"
                + ("" if place.key is None else ", with the key")
                + "; no TLS"
            )
        say("ctrl-C ends it")
        while not stopping.asked:
            server.wait(0.2)
    say(str(server.tally))
    figures = {"world": spec.name, "policy": config.policy, "chunk": acting.chunk} | server.tally.figures()
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, json.dumps(figures, indent=1) + "\n")
    return figures


def warm(policy: ActionChunkPolicy) -> None:
    """Ask once for nobody: the first forward of a model takes several times as long, and a broken one is found at once."""
    spec = policy.spec
    policy.predict_action_chunk(ObservationHistory.first(np.zeros((1, *spec.frame_shape), np.uint8), spec), [0])


def _find(config: ServeConfig) -> ActionChunkPolicy:
    from neuralsim.agents.heads.wam_policies import find_head
    from neuralsim.pretrained.world import open_world

    return find_head(config.policy, open_world(config.world, config.device))
