"""Hand: how a hand-held gripper moved, from the poses that were recorded of it."""

from __future__ import annotations

import itertools

import numpy as np

NAMES = ("x", "y", "z", "rx", "ry", "rz", "width")
UNITS = ("m", "m", "m", "rad", "rad", "rad", "m")


def hand_moves(place: np.ndarray, turn: np.ndarray, width: np.ndarray) -> np.ndarray:
    """From each row to the next, in the hand's own frame, ``(N-1, 7)``: metres, rotation vector in radians, opening in metres.

    place ``(N, 3)``, turn ``(N, 3)`` as rotation vectors, width ``(N, 1)``, all in one fixed frame.
    """
    import cv2  # heavy

    facing = np.stack([cv2.Rodrigues(vector)[0] for vector in turn])
    shift = np.einsum("tji,tj->ti", facing[:-1], np.diff(place, axis=0))
    turned = np.stack([cv2.Rodrigues(a.T @ b)[0][:, 0] for a, b in itertools.pairwise(facing)])
    return np.concatenate([shift, turned, np.diff(width, axis=0)], axis=1)
