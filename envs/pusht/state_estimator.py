"""Estimator of pusher and block from Push-T frames, from the pixels and the rules of gym-pusht's drawing alone.

Every pixel is a mixture of a known background (white, walls, goal), the pusher's blue and the block's grey. Unmixing gives two soft
masks. The pusher is the centroid of its mask. The block is found by matching the T's shape at all places and 32 angles at half
resolution, then by Gauss-Newton on the soft mask against the T drawn analytically (two rectangles with gym-pusht's dark outline, each
pixel the mean over its area), so a 64-pixel frame is read to a small part of a pixel. The error on true frames is in
``tests/envs/pusht/test_state_estimator.py`` and beside every metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pygame
import torch
import torch.nn.functional as F

from neuralsim.envs.pusht.env import PUSHER_RADIUS, PUSHER_RANGE, WORKSPACE, PushTRealEnv
from neuralsim.evaluation.state_estimator import StateEstimate

OUTLINE = 2.35
"""Half the width in units of the dark line gym-pusht draws along the T's edges, measured: the drawn T is larger than the true by this."""
DRAWN_CENTRE = (0.3, 0.55)
"""Units right and down of its true position at which gym-pusht draws the T: it rounds to whole pixels, whose centres lie further."""
BAR, STEM = ((0.0, 15.0), (60.0, 15.0)), ((0.0, 75.0), (15.0, 45.0))
"""Centre and half sizes of the T's two rectangles in its own frame, units."""
BLOCK_AREA = (120 + 2 * OUTLINE) * (30 + 2 * OUTLINE) + (30 + 2 * OUTLINE) * 90
"""Area of the T as drawn, outline included, in square units."""
OUTLINE_SHARE = 0.28
"""Share of that area that the dark outline takes."""
PUSHER_AREA = np.pi * PUSHER_RADIUS**2
ANGLES = 32
"""Angles tried before refining."""
REFINEMENTS = ((1, 6), (2, 2))
"""Points a pixel side at which the T is drawn while refining, and Gauss-Newton steps at each."""
ARM = 50.0
"""Units that equal a radian while refining: about the T's radius of gyration, so that all three steps are alike in size."""
SIGHT_MARGIN = 4.0
"""The block is wholly in sight while its corners stay this far inside the workspace: the drawn walls cover the rest."""
IMPOSSIBLE = 0.15
"""A share of a colour below minus this is not noise: the pixel is no mixture of both colours."""
LOST_SHARE = 0.35
"""A thing is not found where less than this share of its area is visible."""
BATCH = 32
"""Frames at once: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class PushTStateEstimate(StateEstimate):
    """Estimate of ``n`` frames of Push-T. Positions in world units, angles in radians."""

    pusher: np.ndarray
    """Position ``(n, 2)``, valid where it is found."""
    pusher_found: np.ndarray
    """bool ``(n,)``."""
    block: np.ndarray
    """x, y, angle ``(n, 3)``, valid where it is found."""
    block_found: np.ndarray
    """bool ``(n,)``."""
    mask: np.ndarray
    """Pixels of the block, bool ``(n, h, w)``."""
    area: np.ndarray
    """Square units of block in sight ``(n,)``."""
    size: np.ndarray
    """That area over the rigid shape's at ``block``, 1 for an intact block wherever it lies ``(n,)``."""
    pieces: np.ndarray
    """Connected parts of the mask, int ``(n,)``."""
    misfit: np.ndarray
    """0 where the mask is exactly the rigid shape at ``block``, 1 where nothing agrees ``(n,)``."""


class PushTStateEstimator:
    """Estimates states from ``size``-pixel frames of Push-T, a :class:`neuralsim.evaluation.state_estimator.StateEstimator`. ``extent``:
    the position error of a thing that is not found, the world's width."""

    extent = WORKSPACE

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.pixel = WORKSPACE / size
        self._light, self._dark, blue = (torch.from_numpy(c).float() for c in _colours())
        slate = (1 - OUTLINE_SHARE) * self._light + OUTLINE_SHARE * self._dark
        self._background = torch.from_numpy(_background(size)).float()
        self._scene = {n: torch.from_numpy(_background(size * n)).float().movedim(-1, 0) for n, _ in REFINEMENTS}
        columns = torch.stack([slate - self._background, blue - self._background], -1)
        self._unmix = torch.linalg.pinv(columns)  # h w 2 3
        self._alone = columns.mT / columns.square().sum(-2)[..., None]
        # Within the goal the hidden share of its green is not known: a pixel is white, green, grey and blue in unknown parts.
        self._origin = self._background.clone()
        white = torch.tensor([255.0, 255.0, 255.0], dtype=torch.float32)
        green = torch.tensor(tuple(pygame.Color("LightGreen"))[:3], dtype=torch.float32)
        goal = ((self._background - white).abs().sum(-1) > 0.5).float()
        goal[[0, -1]] = goal[:, [0, -1]] = 0
        goal = F.max_pool2d(goal[None, None], 3, 1, 1)[0, 0] > 0
        goal[[0, -1]] = goal[:, [0, -1]] = False
        self._origin[goal] = white
        self._unmix[goal] = torch.linalg.inv(torch.stack([green - white, slate - white, blue - white], 1))[1:]
        # The block never reaches the outermost pixels; a model's errors there are wall, not block.
        rim = F.pad(torch.ones(size - 2, size - 2, dtype=torch.float32), (1, 1, 1, 1))
        for mixture in (self._unmix, self._alone):
            mixture[..., 0, :] *= rim[..., None]
        self._templates = self._coarse_templates()
        self._reach = self._templates.shape[-1] // 2 + 4
        inner = F.pad(torch.ones(1, 1, size // 2, size // 2, dtype=torch.float32), (self._reach,) * 4)
        self._weight = F.conv2d(inner, self._templates.square())
        # gym-pusht draws the walls over the pusher, which hides part of the disc near the rim: its centroid there, drawn once.
        self._true_places = np.linspace(PUSHER_RANGE[0], PUSHER_RANGE[1], 241)
        self._read_places: np.ndarray | None = None
        self._read_places = self._rim_table()
        # It draws slanting outlines thinner: the size of an intact T at each angle of a quarter turn.
        self._quarter = np.linspace(0, np.pi / 2, 31)
        self._size_at = np.ones(31)
        self._size_at = self._angle_table()

    def of_state(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Split true states ``(..., 5)`` into pusher ``(..., 2)``, block ``(..., 3)``, and a mark ``(...)`` that all of the block is in
        sight: where it is not, its pose cannot be estimated and does not count."""
        x, y, angle = states[..., 2, None], states[..., 3, None], states[..., 4, None]
        sine, cosine = np.sin(angle), np.cos(angle)
        corners = np.array([(-60, 0), (60, 0), (-60, 30), (60, 30), (-15, 120), (15, 120)], np.float64)
        u, v = x + corners[:, 0] * cosine - corners[:, 1] * sine, y + corners[:, 0] * sine + corners[:, 1] * cosine
        reach = np.maximum(np.abs(u - WORKSPACE / 2), np.abs(v - WORKSPACE / 2)).max(-1)
        return states[..., :2], states[..., 2:5], reach <= WORKSPACE / 2 - SIGHT_MARGIN

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> PushTStateEstimate:
        """Estimate frames uint8 ``(n, size, size, 3)``."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[1:] != (self.size, self.size, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"PushTStateEstimator: expected uint8 frames (n, {self.size}, {self.size}, 3), got {frames.dtype} {frames.shape}; "
                f"for another size make PushTStateEstimator(size=...)"
            )
        parts = [self._read(frames[i : i + BATCH]) for i in range(0, len(frames), BATCH)] or [self._read(frames)]
        return PushTStateEstimate(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _read(self, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).float()
        block, pusher = self._masks(pixels)
        mask = (block > 0.5).numpy()
        area = self._area(block, mask)
        place, pusher_found = self._centroid(pusher)
        pose, misfit, shown = self._refine(pixels, pusher, self._coarse(block))
        size = self._area(block * _free(pusher), mask) / shown.clamp(min=LOST_SHARE * BLOCK_AREA / 4).numpy()
        size /= np.interp(pose[:, 2].numpy() % (np.pi / 2), self._quarter, self._size_at)
        return (
            place.numpy(),
            pusher_found.numpy(),
            pose.numpy(),
            area >= LOST_SHARE * BLOCK_AREA,
            mask,
            area,
            size,
            _pieces(mask),
            misfit.numpy(),
        )

    def _masks(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return soft masks of block and pusher, float ``(n, h, w)`` in 0..about 1.2 and 0..1."""
        block, pusher = torch.einsum("nhwc,hwkc->knhw", frames - self._origin, self._unmix).unbind(0)
        alone = torch.einsum("nhwc,hwkc->knhw", frames - self._background, self._alone)
        # A negative share of one colour is no mixture: then the pixel holds the other one alone, or neither.
        block, pusher = (
            torch.where(pusher < -IMPOSSIBLE, alone[0], block).clamp(0, 1.4),
            torch.where(block < -IMPOSSIBLE, alone[1], pusher),
        )
        # The block's two greys differ a little in blueness: their leak into the pusher's mask is subtracted.
        return block, (pusher - 0.1 * block.clamp(max=1)).clamp(0, 1)

    def _area(self, block: torch.Tensor, mask: np.ndarray) -> np.ndarray:
        """Return square units of block within a pixel of the hard mask: haze elsewhere does not count."""
        near = F.max_pool2d(torch.from_numpy(mask).float()[:, None], 3, 1, 1)[:, 0]
        return ((block * near).sum((1, 2)) * self.pixel**2).numpy()

    def _centroid(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the centroid in units ``(n, 2)`` of the blue about its densest place, and a mark that it is large enough."""
        reach = int(np.ceil(PUSHER_RADIUS / self.pixel)) + 1
        side = 2 * reach + 1
        padded = F.pad(mask, (reach,) * 4)
        density = F.avg_pool2d(padded[:, None], side, 1) * side**2
        best = density.flatten(1).argmax(1)
        row, column = best // self.size, best % self.size
        offset = torch.arange(side, dtype=torch.int64)
        n = torch.arange(len(mask), dtype=torch.int64)[:, None, None]
        window = padded[n, (row[:, None] + offset)[:, :, None], (column[:, None] + offset)[:, None, :]]
        total = window.sum((1, 2))
        away = (offset - reach).float()
        x = column + (window.sum(1) * away).sum(1) / total.clamp(min=1e-6)
        y = row + (window.sum(2) * away).sum(1) / total.clamp(min=1e-6)
        place = ((torch.stack([x, y], 1) + 0.5) * self.pixel).double().numpy()
        if self._read_places is not None:
            place = np.interp(place, self._read_places, self._true_places)
        return torch.from_numpy(place), total * self.pixel**2 >= LOST_SHARE * PUSHER_AREA

    def _rim_table(self) -> np.ndarray:
        """Measure the uncorrected centroid along one axis for each of ``_true_places``, increasing."""
        env = PushTRealEnv(size=self.size)
        frames = []
        for x in self._true_places:
            env.set_state([x, 440.0, 256.0, 120.0, 0.0])
            frames.append(env.frame(self.size))
        _, pusher = self._masks(torch.from_numpy(np.stack(frames)).float())
        return np.maximum.accumulate(self._centroid(pusher)[0].numpy()[:, 0] + 1e-6 * np.arange(len(frames)))

    def _angle_table(self) -> np.ndarray:
        """Measure the uncorrected size at each of ``_quarter``'s angles."""
        env = PushTRealEnv(size=self.size)
        frames = []
        for angle in self._quarter:
            env.set_state([60.0, 440.0, 440.0, 90.0, angle])
            frames.append(env.frame(self.size))
        return self(np.stack(frames)).size.astype(np.float64)

    # -- the block's pose ------------------------------------------------------------------------------------------------------

    def _coarse_templates(self) -> torch.Tensor:
        """Draw the T at each angle about the middle of a half-resolution window, ``(angles, 1, side, side)``."""
        side = 2 * int(np.ceil(84 / (2 * self.pixel))) + 1
        middle = side * self.pixel  # in units: half of side pixels of twice the size
        angle = torch.arange(ANGLES, dtype=torch.float32) * (2 * np.pi / ANGLES)
        centre = torch.stack([middle + 41 * torch.sin(angle), middle - 41 * torch.cos(angle), angle], 1)
        grid = (torch.arange(side * 4, dtype=torch.float32) + 0.5) * (self.pixel / 2)  # sixteen samples a pixel
        inside, outline = _draw(centre[:, :, None, None], grid[None, None, :], grid[None, :, None], soft=self.pixel / 2)
        return F.avg_pool2d((inside + outline)[:, None], 4)

    def _coarse(self, block: torch.Tensor) -> torch.Tensor:
        """Find the best pose ``(n, 3)`` over all positions and angles at half resolution: least squares by correlation."""
        templates = self._templates
        half = F.avg_pool2d(block[:, None], 2)
        # Only the part within the picture is compared, so a block half out of sight is found too.
        score = 2 * F.conv2d(F.pad(half, (self._reach,) * 4), templates) - self._weight
        best = score.flatten(1).argmax(1)
        cells = score.shape[-1]
        beyond = self._reach - templates.shape[-1] // 2
        angle = (best // cells**2).float() * (2 * np.pi / ANGLES)
        x = ((best % cells - beyond).float() + 0.5) * (2 * self.pixel) + 41 * torch.sin(angle)
        y = ((best // cells % cells - beyond).float() + 0.5) * (2 * self.pixel) - 41 * torch.cos(angle)
        return torch.stack([x, y, angle], 1)

    def _refine(
        self, frames: torch.Tensor, pusher: torch.Tensor, pose: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Refine ``pose`` by Levenberg-Marquardt; returns the pose, the misfit, and the area in sight of a T there."""
        reach = int(np.ceil(84 / self.pixel)) + 2
        middle = pose[:, :2] + 41 * torch.stack([-torch.sin(pose[:, 2]), torch.cos(pose[:, 2])], 1)
        corner = (middle / self.pixel).long() - reach
        n = torch.arange(len(frames), dtype=torch.int64)[:, None, None]

        def window(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
            """Return rows ``(b, s, 1)`` and columns ``(b, 1, s)`` of the window in a picture of ``samples`` points a pixel side."""
            offset = torch.arange(2 * reach * samples, dtype=torch.int64)
            return (corner[:, 1:] * samples + offset)[:, :, None], (corner[:, :1] * samples + offset)[:, None, :]

        row, column = window(1)
        edge = self.size - 1
        # Pixels outside the picture, in the outermost row (walls) and under the pusher are unknown.
        free = _free(pusher)
        inner = (row > 0) & (row < edge) & (column > 0) & (column < edge)
        row, column = row.clamp(0, edge), column.clamp(0, edge)
        weight = (inner & free[n, row, column])[:, None].float()
        seen = frames[n, row, column].movedim(-1, 1) * weight

        def at_fineness(samples: int) -> Callable[[torch.Tensor], torch.Tensor]:
            """Return a function that draws the T over the goal ``(b, 3, s, s)``, ``samples`` squared points a pixel, edges that soft."""
            row, column = window(samples)
            x, y = ((i.float() + 0.5) * (self.pixel / samples) for i in (column, row))
            last = self.size * samples - 1
            scene = self._scene[samples][:, row.clamp(0, last), column.clamp(0, last)].movedim(0, 1)

            def drawn(at: torch.Tensor) -> torch.Tensor:
                inside, outline = _draw(at[:, :, None, None], x, y, soft=self.pixel / samples)
                mixture = torch.stack([inside, outline], 1)
                picture = scene * (1 - inside - outline)[:, None]
                if samples > 1:
                    mixture, picture = F.avg_pool2d(mixture, samples), F.avg_pool2d(picture, samples)
                colours = torch.stack([self._light, self._dark], 1)
                return (picture + torch.einsum("bkyx,ck->bcyx", mixture, colours)) * weight

            return drawn

        steps = torch.tensor([0.5, 0.5, 0.5 / ARM], dtype=torch.float32)
        for samples, iterations in REFINEMENTS:
            drawn = at_fineness(samples)
            image = drawn(pose)
            error = (image - seen).square().sum((1, 2, 3))
            damping = torch.full((len(frames),), 1e-3, dtype=torch.float32)
            for _ in range(iterations):
                slopes = torch.stack(
                    [
                        (drawn(pose + steps * torch.eye(3, dtype=torch.float32)[i]) - image).flatten(1) / 0.5
                        for i in range(3)
                    ],
                    -1,
                )
                normal = slopes.mT @ slopes
                scale = normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-3
                normal = normal + (damping * scale)[:, None, None] * torch.eye(3, dtype=torch.float32)
                pull = slopes.mT @ (seen - image).flatten(1)[..., None]
                move = torch.linalg.solve(normal, pull)[..., 0].clamp(-12, 12)
                trial = pose + move * torch.tensor([1, 1, 1 / ARM], dtype=torch.float32)
                trial_image = drawn(trial)
                trial_error = (trial_image - seen).square().sum((1, 2, 3))
                better = trial_error < error
                pose = torch.where(better[:, None], trial, pose)
                image = torch.where(better[:, None, None, None], trial_image, image)
                error = torch.where(better, trial_error, error)
                damping = torch.where(better, damping * 0.2, damping * 10).clamp(1e-5, 1e4)
        background = self._background[row, column].movedim(-1, 1) * weight
        most = torch.maximum((image - background).abs(), (seen - background).abs()).sum((1, 2, 3))
        misfit = (image - seen).abs().sum((1, 2, 3)) / most.clamp(min=1)
        angle = torch.remainder(pose[:, 2] + np.pi, 2 * np.pi) - np.pi
        x, y = ((i.float() + 0.5) * self.pixel for i in window(1)[::-1])
        cover = sum(_draw(pose[:, :, None, None], x, y, soft=self.pixel)) * weight[:, 0]
        shown = cover.sum((1, 2)) * self.pixel**2
        return (
            torch.cat([pose[:, :2] - torch.tensor(DRAWN_CENTRE, dtype=torch.float32), angle[:, None]], 1),
            misfit.clamp(max=1),
            shown,
        )


def _draw(pose: torch.Tensor, x: torch.Tensor, y: torch.Tensor, soft: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cover of each point by the T's inside and by its outline, edges ``soft`` units wide.

    pose ``(b, 3, 1, 1)``, x ``(b or 1, 1, s)``, y ``(b or 1, s, 1)``; both results ``(b, s, s)``.
    """
    sine, cosine = torch.sin(pose[:, 2]), torch.cos(pose[:, 2])
    dx, dy = x - pose[:, 0], y - pose[:, 1]
    u, v = dx * cosine + dy * sine, dy * cosine - dx * sine
    distances = []
    for (cx, cy), (hx, hy) in (BAR, STEM):
        a, b = (u - cx).abs() - hx, (v - cy).abs() - hy
        distances.append(torch.hypot(a.clamp(min=0), b.clamp(min=0)) + torch.maximum(a, b).clamp(max=0))
    bar, stem = distances
    cover = (0.5 - (torch.minimum(bar, stem) - OUTLINE) / soft).clamp(0, 1)
    edge = torch.minimum(cover, (0.5 - (torch.minimum(bar.abs(), stem.abs()) - OUTLINE) / soft).clamp(0, 1))
    return cover - edge, edge


def _free(pusher: torch.Tensor) -> torch.Tensor:
    """Mark the pixels that the pusher's mask does not touch, bool ``(n, h, w)``."""
    return F.max_pool2d(pusher[:, None], 3, 1, 1)[:, 0] < 0.1


def _pieces(mask: np.ndarray) -> np.ndarray:
    """Count the connected parts (corners touch) of at least two pixels in each of ``(n, h, w)``."""
    out = np.zeros(len(mask), np.int64)
    for i, one in enumerate(mask.astype(np.uint8)):
        _, _, stats, _ = cv2.connectedComponentsWithStats(one, connectivity=8)
        out[i] = int((stats[1:, cv2.CC_STAT_AREA] >= 2).sum())
    return out


def _colours() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the colours of block inside, block outline and pusher (mean of its disc and its rim), float ``(3,)`` in 0..255."""
    slate, blue = (np.array(tuple(pygame.Color(c))[:3], np.float64) for c in ("LightSlateGray", "RoyalBlue"))
    bright = np.minimum(1.2 * blue, 255)
    inner = ((PUSHER_RADIUS - 4) / PUSHER_RADIUS) ** 2
    return np.minimum(1.2 * slate, 255), slate, inner * bright + (1 - inner) * blue


def _background(size: int) -> np.ndarray:
    """Draw the scene without pusher and block, float ``(size, size, 3)``: each half from a drawing in which both are in the other."""
    env = PushTRealEnv(size=size)
    halves = []
    for block_y, pusher_y in ((330.0, 480.0), (30.0, 200.0)):
        env.set_state([40.0, pusher_y, 400.0, block_y, 0.0])
        halves.append(env.frame(size).astype(np.float64))
    return np.concatenate([halves[0][: size // 2], halves[1][size // 2 :]])
