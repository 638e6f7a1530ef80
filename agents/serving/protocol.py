"""ProtocolOptions: how a policy server reads requests and writes replies, and the metadata that it sends first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from neuralsim.agents.heads.chunk_policy import ActionChunkPolicy
from neuralsim.agents.serving.request import RequestReader
from neuralsim.data.images import ImageResizer
from neuralsim.envs.robots.message_limits import MessageLimits


@dataclass(frozen=True)
class ProtocolOptions:
    """Options of the dialects that a policy server speaks."""

    normalized: bool = False
    """Actions in the world's own [-1, 1] instead of its units."""
    announce: Literal["all", "roboarena"] = "all"
    """Metadata sent first: all that is known, or only the six fields that strict RoboArena clients accept."""
    fit: Literal["stretch", "pad"] = "stretch"
    """Resizing of images of another aspect."""
    image_key: str = ""
    """Name of the image in observations, if it is no usual one."""
    seed: int = 0
    """Seed of each episode's first chunk."""

    def reader(self, policy: ActionChunkPolicy, limits: MessageLimits) -> RequestReader:
        """Return a reader of requests to ``policy``."""
        spec = policy.spec
        resize = ImageResizer(spec.height, spec.width, self.fit)
        return RequestReader(spec, policy.chunk, resize, self.normalized, self.image_key, limits)

    def metadata(self, policy: ActionChunkPolicy, name: str) -> dict[str, Any]:
        """Return the server's metadata: RoboArena's PolicyServerConfig, then the policy, its actions and their units."""
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
