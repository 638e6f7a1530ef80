"""Options of ``neuralsim play``, and the report of a session."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class PlayConfig:
    """Play a learned world with the keyboard, beside the real environment where there can be one."""

    world: str = "pusht"
    """Name of a shipped world, or the folder of one of your own."""
    policy: str = "explorer"
    """Policy that drives after 'p': explorer, a Stable-Baselines3 .zip, or for carracing also driver, which keeps to the road
    by the frames."""
    record: bool = False
    """Record from the beginning ('v' starts and stops it too)."""
    out: Path = Path("runs/play")
    """Folder for recordings: mp4 files and the episode stores 'imagined' and, beside a real environment, 'true'."""
    fps: float | None = None
    """Steps of the world each second; by default the world's own rate (15 for pusht, whose control rate is 10); 0 as fast as it
    goes."""
    scale: int = 6
    """Magnification of the frames in the panels (3 to 14)."""
    seed: int = 0
    """Seed of the initial states, the dream's noise and the scripted policy."""
    script: str | None = None
    """Keys pressed by the clock: a file or the text itself, e.g. '0 down RIGHT; 1.5 up RIGHT; 3 quit'."""
    headless: bool = False
    """No window: run the script on a virtual clock at the world's own rate, without waiting."""
    benchmark: float = 0.0
    """Press keys at random for this many seconds and report frames/s and key-to-frame latency (0: off)."""
    web: bool = False
    """Play in a browser instead of a window: serve a page, and print its address."""
    host: str = "127.0.0.1"
    """Address that --web listens on; browsers elsewhere need the token that comes with the printed address."""
    port: int = 8080
    """Port that --web listens on; 0: any free one."""
    token: str = ""
    """Token that browsers must have, at least 16 characters (default: the variable NEURALSIM_WEB_TOKEN; on a --host that other
    machines reach, a random one)."""
    origin: tuple[str, ...] = ()
    """Further origins that pages may come from, as a browser names them, e.g. https://play.example.org before a proxy."""
    viewers: int = 16
    """Browsers at a time; more are turned away."""
    json: Path | None = None
    """Also write the report to this file."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""
    precision: str = "auto"
    """Arithmetic of the model: auto, float32 or bfloat16."""

    def validate(self) -> None:
        """Raise a ValueError for options that do not go together."""
        if self.web and (self.headless or self.script is not None or self.benchmark > 0):
            raise ValueError("--web takes its keys from browsers: leave out --headless, --script and --benchmark")
        if not 0 <= self.port <= 65535 or self.viewers < 1:
            raise ValueError(
                f"port and viewers: expected 0 to 65535 and at least 1, got {self.port} and {self.viewers}"
            )
        if self.headless and self.script is None and self.benchmark <= 0:
            raise ValueError(
                "--headless has no keyboard: give it --script 'SECONDS down KEY; ...' or --benchmark SECONDS"
            )
        if self.script is not None and self.benchmark > 0:
            raise ValueError("--script and --benchmark both press keys; give one of them")
        if not 0 <= (self.fps or 0) < float("inf") or not 0 <= self.benchmark < float("inf"):
            raise ValueError(f"fps and benchmark must be at least 0, got {self.fps} and {self.benchmark}")


@dataclass(frozen=True)
class PlayReport:
    """Counts, rates and latencies of a session.

    Rates are per second of wall time, ``world_fps`` counting steps of both worlds together; ``flat_out_fps`` is that of the unpaced
    part of a benchmark, and the other rates are then those of the paced part.
    """

    world: str
    seconds: float
    steps: int
    human_steps: int
    frames: int
    world_fps: float
    window_fps: float
    flat_out_fps: float | None
    key_changes: int
    latency_ms_median: float | None
    """Milliseconds from a key's event to the presentation of the first frame computed with it."""
    latency_ms_p95: float | None
    readings: dict[str, float | None]
    """Reward, end, return and state estimate at the end, by name; beside a real environment also its own."""
    difference: float | None
    """Mean |imagined - real| of the last frames in grey levels; None without a real environment."""
    videos: tuple[str, ...]
    video_frames: tuple[int, ...]
    episodes: tuple[str, ...]
    load: float
    """Load average of the machine over the last minute: on a busy machine the rates are lower."""
    cores: int

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=1)
