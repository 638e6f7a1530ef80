"""ServerStatistics: counts and response times of a policy server."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEPT = 100_000
"""Latest durations that percentiles are taken of."""


@dataclass
class ServerStatistics:
    """Counts since the server began, and milliseconds per request: ``infer`` from request to reply, ``model`` of the forward alone."""

    clients: int = 0
    episodes: int = 0
    errors: int = 0
    requests: int = 0
    forwards: float = 0.0
    infer: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    model: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def record(self, infer_ms: float, model_ms: float, rows: int) -> None:
        """Count a request; ``rows`` were answered by the same forward pass."""
        self.requests += 1
        self.forwards += 1 / rows
        self.infer.append(infer_ms)
        self.model.append(model_ms)

    def figures(self) -> dict[str, Any]:
        """Return all figures for JSON; percentiles are None before the first request."""
        counts = {"clients": self.clients, "episodes": self.episodes, "requests": self.requests, "errors": self.errors}
        return counts | {
            "requests_per_forward": round(self.requests / self.forwards, 3) if self.forwards else None,
            **{
                f"{name}_ms_p{p}": percentile(ms, p)
                for name, ms in (("infer", self.infer), ("model", self.model))
                for p in (50, 99)
            },
        }

    def __str__(self) -> str:
        counts = f"{self.requests} requests of {self.clients} clients in {self.episodes} episodes, {self.errors} errors"
        if not self.requests:
            return counts
        return f"{counts}; infer p50 {percentile(self.infer, 50):.1f} ms, p99 {percentile(self.infer, 99):.1f} ms"


def percentile(values: deque[float] | list[float], p: int) -> float | None:
    """Return the ``p``-th percentile to three decimals; None of an empty list."""
    return round(float(np.percentile(values, p)), 3) if len(values) else None
