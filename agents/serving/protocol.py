"""Manner: how a policy server reads requests and answers them, and what it says of itself first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy
from neuralsim.agents.serving.request import RequestReader
from neuralsim.data.images import ImageResizer


@dataclass(frozen=True)
class ProtocolOptions:
    """``normalized``: actions in the world's own [-1, 1] instead of its units. ``announce``: all that is known, or only the six
    fields that strict RoboArena clients bear. ``fit``: how images of another aspect become frames; ``image_key``: where the image is,
    if under no usual name; ``seed``: of each episode's first chunk."""

    normalized: bool = False
    announce: Literal["all", "roboarena"] = "all"
    fit: Literal["stretch", "pad"] = "stretch"
    image_key: str = ""
    seed: int = 0

    def reader(self, policy: ActionChunkPolicy) -> RequestReader:
        """What turns messages into requests to ``policy``."""
        spec = policy.spec
        fit = ImageResizer(spec.height, spec.width, self.fit)
        return RequestReader(spec, policy.chunk, fit, self.normalized, self.image_key)

    def metadata(self, policy: ActionChunkPolicy, name: str) -> dict[str, Any]:
        """What the server says first: RoboArena's PolicyServerConfig, then what is served and in which units."""
        spec = policy.spec
        config = {
            "image_resolution": [spec.height, spec.width],
            "needs_wrist_camera": False,
            "n_external_cameras": 1,
            "needs_stereo_camera": False,
            "needs_session_id": True,
            "action_space": "normalized" if self.normalized else "physical",
        }
        if self.announce == "roboarena":
            return config
        return config | {
            "server": "neuralsim",
            "policy": name,
            "chunk": policy.chunk,
            "action_horizon": policy.chunk,
            "action_dim": spec.action_size,
            "action_names": list(spec.action_names),
            "action_units": list(spec.action_units),
            "action_scale": list(spec.action_scale),
            "action_offset": list(spec.action_offset),
            "world": asdict(spec),
        }
