"""The command ``neuralsim serve``: a trained world's policy as a server for robot clients."""

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
from neuralsim.agents.serving.server import PolicyServer, ServerConfig
from neuralsim.runtime.files import write_atomically
from neuralsim.runtime.interrupt import GracefulInterrupt

KEY = "NEURALSIM_API_KEY"
"""Environment variable that may hold the key: every user of a machine can read a command's arguments."""


@dataclass(frozen=True)
class ServeConfig:
    """Serve a world's policy to robot clients (openpi's and RoboArena's protocols)."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    policy: str = "head"
    """Name of one of the world's policies."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own ask for a key."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    api_key: str = ""
    """Key that clients must send as 'Authorization: Api-Key KEY' (default: the variable NEURALSIM_API_KEY)."""
    open: bool = False
    """Serve other machines without a key: every client that reaches the port may use the policy."""
    normalized: bool = False
    """Actions in the world's own [-1, 1] instead of its units."""
    announce: Literal["all", "roboarena"] = "all"
    """Metadata sent first: all that is known, or only the six fields that strict RoboArena clients accept."""
    image_key: str = ""
    """Name of the camera's image in observations; the usual ones are known."""
    fit: Literal["stretch", "pad"] = "stretch"
    """Resizing of images of another aspect: stretch them, or pad them with black."""
    max_clients: int = 16
    """Connections at a time; more are turned away."""
    max_message: float = 16.0
    """Largest message in MiB; a client that sends a larger one is turned away."""
    seed: int = 0
    """Makes the policy's choices repeatable."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""
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
    def server(self) -> ServerConfig:
        """The server's config. Raises ValueError where other machines could connect and no key is asked for."""
        key = self.api_key or os.environ.get(KEY) or None
        config = ServerConfig(self.host, self.port, key, self.max_clients, int(self.max_message * 2**20))
        if not config.loopback and key is None and not self.open:
            raise ValueError(
                f"host {self.host}: other machines could reach it; give --api-key (or {KEY}), or --open to serve any client"
            )
        return config

    @property
    def options(self) -> ProtocolOptions:
        """The protocol's options."""
        return ProtocolOptions(self.normalized, self.announce, self.fit, self.image_key, self.seed)


def serve(
    config: ServeConfig, say: Callable[[str], None] = print, policy: ActionChunkPolicy | None = None
) -> dict[str, Any]:
    """Serve until ctrl-C or a SIGTERM and return the figures; ``policy`` replaces the world's own.

    Raises ValueError for a world without such a policy or an open port without a key, OSError where the port is taken.
    """
    server_config = config.server
    served = _find(config) if policy is None else policy
    warm(served)
    with (
        GracefulInterrupt() as stopping,
        PolicyServer(served, server_config, config.options, config.policy, say) as server,
    ):
        spec = served.spec
        say(
            f"{server.uri} serves {config.policy!r} of world {spec.name!r}: {served.chunk} actions at {spec.rate_hz:g} Hz"
        )
        if not server_config.loopback:
            say(
                "every machine that reaches this port may ask"
                + ("" if server_config.key is None else ", with the key")
                + "; no TLS"
            )
        say("ctrl-C ends it")
        while not stopping.asked:
            server.wait(0.2)
    say(str(server.statistics))
    figures = {"world": spec.name, "policy": config.policy, "chunk": served.chunk} | server.statistics.figures()
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.json, json.dumps(figures, indent=1) + "\n")
    return figures


def warm(policy: ActionChunkPolicy) -> None:
    """Run one inference to warm up: the first is slow, and a broken policy is found at once."""
    spec = policy.spec
    policy.predict_action_chunk(ObservationHistory.first(np.zeros((1, *spec.frame_shape), np.uint8), spec), [0])


def _find(config: ServeConfig) -> ActionChunkPolicy:
    from neuralsim.agents.policies.resolve import resolve_chunk_policy
    from neuralsim.pretrained.world import open_world

    return resolve_chunk_policy(config.policy, open_world(config.world, config.device))
