from .evaluate import evaluate_world_model
from .report import Report
from .world_metrics import WorldMetrics

__all__ = [
    "Report",
    "WorldMetrics",
    "evaluate_world_model",
]
