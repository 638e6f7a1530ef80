"""Estimator of road, car and dashboard from CarRacing frames, from the pixels and the rules of their drawing alone.

The car always stands at the same place and looks up; the road turns under it. Road is the grey above the dashboard; its
position and direction are the mean and the first principal axis of its pixels in a disc. The length of a dashboard bar is its
value. The error on true frames is in ``tests/envs/carracing/test_state_estimator.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuralsim.evaluation.state_estimator import StateEstimate

UNITS = (61.73, 49.38)
"""World units across a frame, and from its top to its bottom: 16.2 pixels a unit in the 1000x800 that the game draws."""
CAR = (0.5, 0.75)
"""Position of the car, as shares of the frame's width and height."""
CAR_SIZE = (0.065, 0.115)
"""The least box about the car, as shares of the frame."""
DASHBOARD = 0.875
"""Top of the dashboard, as a share of the frame's height."""
BAR_ROWS = (0.906, 0.984)
"""Rows that hold the dashboard's bars; above and below them all is black."""
SPEED_BAR, STEERING_BAR, TURN_BAR = (0.117, 0.164), (0.38, 0.62), (0.625, 0.995)
"""Columns of the bars of the speed (white), the steering (green) and the turn rate (red), as shares of the frame's width."""
BAR_UNITS = (7.52e4, 89.5, 1131.0)
"""Value of a bar that fills the whole frame, in units: calibrated on true frames against true states."""
LEAST_SPEED = 4.5
"""Speed by which the speed bar is a line too long."""
NEAR, FAR = 4.0, 14.0
"""Distance ahead of the car at which the road's direction is measured, and at which a policy steers, in units."""
DISC = 9.0
"""Radius in units of the disc in which the road is measured: wider than the road's half width, 6.7."""
LEAST_ROAD = 12.0
"""Square units of road in the disc from which its direction is measured."""
ROAD, GRASS = (102.0, 102.0, 102.0), (102.0, 217.0, 102.0)
"""The colours of road and grass; patches of grass differ from it by some 15."""
OTHERS = ((255.0, 255.0, 255.0), (255.0, 0.0, 0.0), (204.0, 0.0, 0.0), (0.0, 0.0, 0.0), (102.0, 102.0, 0.0))
"""Colours of kerbs, the car, its wheels and their dust."""
TOLERANCE = 45.0
"""A pixel this near to a known colour, or to a mixture of road and grass, is known; in grey levels."""
BATCH = 256
"""Frames at once."""


@dataclass(frozen=True)
class CarRacingStateEstimate(StateEstimate):
    """Estimate of ``n`` frames of CarRacing; lengths in the world's units, right and clockwise positive."""

    road: np.ndarray
    """Pixels of the road, bool ``(n, h, w)``."""
    heading: np.ndarray
    """Angle of the road just ahead to the car's direction, degrees in -90..90 ``(n,)``; NaN where there is too little road."""
    offset: np.ndarray
    """Distance of the car to the right of the road's middle ``(n,)``; NaN where there is too little road."""
    ahead: np.ndarray
    """Middle of the road some way on, to the right and to the front ``(n, 2)``; NaN where no road is in sight."""
    off_road: np.ndarray
    """Share of the wheels on grass ``(n,)``."""
    speed: np.ndarray
    """Speed in any direction, from the dashboard ``(n,)``."""
    turn_rate: np.ndarray
    """Turn rate, from the dashboard ``(n,)``."""
    steering: np.ndarray
    """Steering angle, from the dashboard ``(n,)``."""
    car_found: np.ndarray
    """The car stands at its place, bool ``(n,)``."""
    black: np.ndarray
    """The dashboard is black beside its bars, bool ``(n,)``."""
    known: np.ndarray
    """Share of the scene in known colours ``(n,)``."""


class CarRacingStateEstimator:
    """Estimates states from ``size``-pixel frames of CarRacing, a :class:`neuralsim.evaluation.state_estimator.StateEstimator`."""

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self._scene = round(DASHBOARD * size)
        middle = (np.arange(size) + 0.5) / size
        self._right = (middle - CAR[0]) * UNITS[0]
        self._front = (CAR[1] - middle[: self._scene]) * UNITS[1]
        self._pixel = UNITS[0] * UNITS[1] / size**2
        away_x, away_y = np.abs(middle - CAR[0]) / CAR_SIZE[0], np.abs(middle - CAR[1]) / CAR_SIZE[1]
        box = np.maximum(away_x, away_y[:, None])
        self._car = box <= 0.5
        # The wheels are under the car's edge: the ground beside each shows if it stands on the road.
        ring = (box > 0.5) & (box <= 0.5 + 0.9 / (CAR_SIZE[0] * size))
        front, right = middle[:, None] < CAR[1], middle > CAR[0]
        beside = ring & (away_y[:, None] <= 0.5)
        self._wheels = [beside & (front == f) & (right == r) for f in (True, False) for r in (True, False)]

    def __call__(self, frames: np.ndarray) -> CarRacingStateEstimate:
        """Estimate frames uint8 ``(n, size, size, 3)``."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[1:] != (self.size, self.size, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"CarRacingStateEstimator: expected uint8 frames (n, {self.size}, {self.size}, 3), got {frames.dtype} {frames.shape}; "
                "for another size make CarRacingStateEstimator(size=...)"
            )
        return CarRacingStateEstimate.join(
            [self._read(frames[i : i + BATCH]) for i in range(0, max(len(frames), 1), BATCH)]
        )

    def _read(self, frames: np.ndarray) -> CarRacingStateEstimate:
        pixels = frames.astype(np.float32)
        red, green, blue = np.moveaxis(pixels, -1, 0)
        scene = slice(0, self._scene)
        greenness = green - (red + blue) / 2
        light = (red + green + blue) / 3
        road = (greenness < 50) & (np.abs(red - blue) < 30) & (light > 60) & (light < 150)
        road[:, self._scene :] = False
        seen = road[:, scene]
        heading, offset, _ = self._run(seen, NEAR)
        _, _, ahead = self._run(seen, FAR)
        car = (red - blue)[:, self._car].clip(0).mean(1)
        off_road = np.mean([greenness[:, wheel].mean(1) > 55 for wheel in self._wheels], 0)
        speed, steering, turn_rate = self._bars(pixels)
        rows = np.arange(self.size) / self.size
        empty = (rows >= DASHBOARD + 0.01) & (rows < BAR_ROWS[0] - 0.01)
        return CarRacingStateEstimate(
            road=road,
            heading=heading,
            offset=offset,
            ahead=ahead,
            off_road=off_road.astype(np.float64),
            speed=speed,
            turn_rate=turn_rate,
            steering=steering,
            car_found=car > 15,
            black=light[:, empty].mean((1, 2)) < 30,
            known=_known(pixels[:, scene]).mean((1, 2)),
        )

    def _bars(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measure speed, steering and turn rate on the dashboard, ``(n,)`` each."""
        rows, columns = np.arange(self.size) / self.size, (np.arange(self.size) + 0.5) / self.size
        lit = (rows >= BAR_ROWS[0]) & (rows < BAR_ROWS[1])
        bars = pixels[:, lit] / 255 / self.size**2
        red, green, blue = np.moveaxis(bars, -1, 0)
        others = (
            np.minimum(np.minimum(red, green), blue),
            green - np.maximum(red, blue),
            red - np.maximum(green, blue),
        )
        values = []
        for share, (first, last), units, middle in zip(
            others, (SPEED_BAR, STEERING_BAR, TURN_BAR), BAR_UNITS, (None, 0.5, 0.75), strict=True
        ):
            inside = (columns > first) & (columns < last)
            side = np.ones(self.size) if middle is None else np.sign(columns - middle)
            values.append(units * (share.clip(0) * (side * inside)).sum((1, 2)).astype(np.float64))
        return (values[0] - LEAST_SPEED).clip(0), values[1], values[2]

    def _run(self, road: np.ndarray, front: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measure the road ``(n, s, w)`` nearest a point ``front`` units before the car: its heading and the car's offset ``(n,)``, and a
        point in its middle ``(n, 2)``."""
        place = np.hypot(self._right, self._front[:, None] - front)
        nearest = np.where(road, place, np.inf).reshape(len(road), place.size).argmin(1)
        rows, columns = np.divmod(nearest, self.size)
        x, y = self._right[columns], self._front[rows]
        area = np.zeros(len(road))
        weight = np.zeros(road.shape)
        for _ in range(3):  # to the mean of the road in the disc, then in the disc about that mean
            away = (self._right - x[:, None, None]) ** 2 + (self._front[:, None] - y[:, None, None]) ** 2
            weight = road * (away <= DISC**2)
            area = weight.sum((1, 2))
            some = np.maximum(area, 1)
            x, y = (weight.sum(1) @ self._right) / some, (weight.sum(2) @ self._front) / some
        dx, dy = self._right - x[:, None], self._front - y[:, None]
        some = np.maximum(area, 1)
        xx, yy = (weight.sum(1) * dx**2).sum(1) / some, (weight.sum(2) * dy**2).sum(1) / some
        xy = np.einsum("nhw,nh,nw->n", weight, dy, dx, optimize=True) / some
        angle = 0.5 * np.arctan2(2 * xy, yy - xx)  # of the principal axis, off straight ahead
        enough = area * self._pixel >= LEAST_ROAD
        heading = np.where(enough, np.degrees(angle), np.nan)
        offset = np.where(enough, -(x * np.cos(angle) - y * np.sin(angle)), np.nan)
        return heading, offset, np.where((area > 0)[:, None], np.stack([x, y], 1), np.nan)


def _known(pixels: np.ndarray) -> np.ndarray:
    """Mark the pixels of ``(..., 3)`` that have a colour of this world."""
    road, grass = np.array(ROAD, np.float32), np.array(GRASS, np.float32)
    way = grass - road
    share = ((pixels - road) @ way / (way @ way)).clip(0, 1)
    away = np.square(pixels - road - share[..., None] * way).sum(-1)
    for colour in OTHERS:
        away = np.minimum(away, np.square(pixels - np.array(colour, np.float32)).sum(-1))
    return away <= TOLERANCE**2
