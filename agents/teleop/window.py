"""Window: dream, truth and their difference as three panels, with what there is to know around them; where there is no truth, the
dream and what the model reads of it.

``PanelRenderer`` draws on any pygame surface (the window's, or a video frame's); ``Window`` is the one on the screen. All of it
belongs to the main thread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pygame

from neuralsim.agents.teleop.keyboard import DIGITS, GENTLE
from neuralsim.agents.teleop.legend import PUSHT_KEYS, Legend
from neuralsim.agents.teleop.session import SessionFrame

MARGIN, GAP, TITLE, CAPTION = 16, 24, 34, 46
SCALES = (3, 14)
"""Smallest and largest magnification."""
VIDEO_SCALE = 4
"""Magnification in recorded videos, whatever the window's is."""

NIGHT, SLAB, EDGE = (18, 20, 26), (30, 33, 42), (52, 57, 71)
BRIGHT, PLAIN, DIM = (238, 240, 245), (178, 184, 198), (112, 119, 136)
BLUE, GREEN, RED, AMBER = (92, 148, 255), (94, 204, 132), (240, 92, 92), (240, 178, 74)

COMMANDS = (
    ("space", "pause and go on"),
    (".", "pause and take a single step"),
    ("backspace", "rewind two seconds, again for more"),
    ("r", "the same start again"),
    ("n", "a new start"),
    ("1 2 3 4", "denoising steps for each frame"),
    ("p", "hand over to the policy and back; a key of yours wins"),
    ("v", "record a video and episodes, stop recording"),
    ("+  -", "larger, smaller"),
    ("h", "this help"),
    ("esc, q", "quit; a recording is kept"),
)
KEYS = (*PUSHT_KEYS, *COMMANDS)
"""All keys, where Push-T is played."""
LEAST_READINGS = 340
"""Width of the panel of readings at least, in pixels."""
ROW = 21
"""Height of a reading."""
KEY_LINE = (
    ("h", "help"),
    ("space", "pause"),
    ("backspace", "rewind"),
    ("r", "again"),
    ("n", "new start"),
    ("v", "record"),
    ("p", "policy"),
    ("1-4", "denoising"),
    (".", "single step"),
    ("+ -", "size"),
    ("q", "quit"),
)
"""The line at the bottom; the most needed first, since a small window shows only as many as fit."""


@dataclass(frozen=True)
class Status:
    """What the window tells besides the Moment: rates per second, latency in seconds, and who may do what."""

    world_fps: float = 0.0
    window_fps: float = 0.0
    latency: float | None = None
    paused: bool = False
    driver: str = "human"
    denoise_steps: int = 1
    held: frozenset[str] = frozenset()
    recorded: float | None = None
    message: str = ""
    help: bool = False
    doubt_limit: float = math.inf
    starts: int = 1


class PanelRenderer:
    """Draws panels and text; keeps rendered words and magnified frames from one picture to the next. ``legend``: what the world's
    things are called."""

    def __init__(self, legend: Legend | None = None) -> None:
        pygame.font.init()
        self.legend = legend or Legend()
        self._fonts: dict[int, pygame.font.Font] = {}
        self._words: dict[tuple[str, int, tuple[int, int, int]], pygame.Surface] = {}
        self._panels: dict[tuple[str, int], tuple[SessionFrame, pygame.Surface]] = {}

    def text(
        self, to: pygame.Surface, words: str, at: tuple[int, int], colour: tuple[int, int, int] = PLAIN, size: int = 20,
        right: bool = False,
    ) -> int:  # fmt: skip
        """Write ``words`` with their left (or right) end and middle height at ``at``; returns their width."""
        key = (words, size, colour)
        if key not in self._words:
            if len(self._words) > 500:
                self._words.clear()
            # Drawn at twice its size and averaged down: the default font's hinting spaces small letters unevenly.
            large = self._font(2 * size).render(words, True, colour)
            self._words[key] = pygame.transform.smoothscale_by(large, 0.5)
        image = self._words[key]
        top = (
            at[1] - self._font(2 * size).get_height() // 4
        )  # the font's height, not the word's: all share one baseline
        to.blit(image, (at[0] - (image.get_width() if right else 0), top))
        return image.get_width()

    def panels(self, to: pygame.Surface, moment: SessionFrame, scale: int, doubt_limit: float = math.inf) -> None:
        """The panels with titles and captions, from the top left corner; see :func:`panels_size`."""
        height, width = moment.dream.shape[0] * scale, moment.dream.shape[1] * scale
        steps = f"{moment.denoise_steps} denoising step{'s' if moment.denoise_steps != 1 else ''}"
        titles = [("DREAM", f"the model, {steps}", BLUE, moment.dream, self.legend.share and moment.end > 0.5)]
        if moment.true is not None:
            difference = moment.difference
            titles += [
                ("TRUTH", "the simulator, same keys", GREEN, moment.truth, self.legend.share and moment.true.end),
                ("DIFFERENCE", f"mean {float(difference.mean()):.1f} of 255", AMBER, difference, False),
            ]
        top = MARGIN + TITLE
        for i, (title, about, colour, frame, success) in enumerate(titles):
            left = MARGIN + i * (width + GAP)
            self._title(to, left, width, title, about, colour)
            pygame.draw.rect(
                to, GREEN if success else EDGE, (left - 2, top - 2, width + 4, height + 4), 2, border_radius=3
            )
            to.blit(self._magnified(title, moment, frame, scale), (left, top))
        under = top + height + CAPTION // 2 + 2
        second = MARGIN + width + GAP
        limit = doubt_limit if math.isfinite(doubt_limit) and doubt_limit > 0 else 1.0
        shade = RED if moment.doubt > doubt_limit else AMBER
        unsure = f"{moment.doubt:.2f}" + (f" of {doubt_limit:.2f}" if math.isfinite(doubt_limit) else "")
        if moment.true is None:
            wide = max(width, LEAST_READINGS)
            self._title(to, second, wide, "READINGS", "of the dream, by the model", AMBER)
            self._readings(to, moment, pygame.Rect(second, top, wide, height))
            self._bar(to, (second, under), wide, "uncertainty", moment.doubt / limit, unsure, shade, show_value=False)
            return
        self._outcome(to, (MARGIN, under), width, moment.reward, f"{100 * moment.end:.0f} %", BLUE)
        self._outcome(to, (second, under), width, moment.true.reward, "yes" if moment.true.end else "no", GREEN)
        third = second + width + GAP
        self._bar(to, (third, under), width, "uncertainty", moment.doubt / limit, unsure, shade, show_value=False)

    def video_frame(self, moment: SessionFrame, doubt_limit: float = math.inf) -> np.ndarray:
        """The panels alone, uint8 ``(h, w, 3)`` with even sides, at VIDEO_SCALE."""
        frame = moment.dream.shape[1], moment.dream.shape[0]
        width, height = panels_size(*frame, VIDEO_SCALE, moment.true is not None)
        surface = pygame.Surface((width, height + 22))
        surface.fill(NIGHT)
        self.panels(surface, moment, VIDEO_SCALE, doubt_limit)
        foot = height + 6
        self.text(surface, f"step {moment.step}   start {moment.start}", (MARGIN, foot), DIM, 18)
        who = f"driven by {moment.driver}" if moment.action is not None else ""
        self.text(surface, who, (width - MARGIN, foot), DIM, 18, right=True)
        return np.ascontiguousarray(pygame.surfarray.pixels3d(surface).transpose(1, 0, 2))

    def status(self, to: pygame.Surface, moment: SessionFrame, status: Status, top: int) -> None:
        """The strip under the panels: who drives, counters, held keys, and the line of keys."""
        width = to.get_width()
        pygame.draw.rect(to, SLAB, (MARGIN, top, width - 2 * MARGIN, 62), border_radius=8)
        x = MARGIN + 12
        mine = status.driver == "human"
        x += self._chip(
            to, (x, top + 20), "YOU DRIVE" if mine else f"{status.driver.upper()} DRIVES", BLUE if mine else AMBER
        )
        if status.paused:
            x += self._chip(to, (x, top + 20), "PAUSED", PLAIN)
        if status.recorded is not None:
            x += self._chip(to, (x, top + 20), f"REC {status.recorded:.1f} s", RED)
        if status.message:
            self.text(to, status.message, (x + 4, top + 20), BRIGHT, 20)
        latency = "-" if status.latency is None else f"{1000 * status.latency:.0f} ms"
        facts = (
            ("step", f"{moment.step}"),
            ("world", f"{status.world_fps:.1f}/s"),
            ("key to frame", latency),
            ("denoising", f"{status.denoise_steps}"),
            ("window", f"{status.window_fps:.0f}/s"),
            ("start", f"{moment.start} of {status.starts}"),
        )
        self._pairs(to, facts, (MARGIN + 14, top + 45), width - MARGIN - 150, DIM, BRIGHT)
        self._pad(to, (width - MARGIN - 118, top + 6), status.held)
        self._pairs(to, KEY_LINE, (MARGIN + 2, top + 62 + 16), width - MARGIN, PLAIN, DIM)

    def help(self, to: pygame.Surface) -> None:
        """The list of keys over everything."""
        digits = any(key in DIGITS for key, _ in self.legend.keys)
        keys = (*self.legend.keys, *(k for k in COMMANDS if not (digits and k[0].startswith("1 "))))
        row, wide = min(26, (to.get_height() - 76) // len(keys)), 590
        high = row * len(keys) + 64
        shade = pygame.Surface(to.get_size(), pygame.SRCALPHA)
        shade.fill((10, 11, 15, 190))
        left, top = (to.get_width() - wide) // 2, max(4, (to.get_height() - high) // 2)
        pygame.draw.rect(shade, (*SLAB, 255), (left, top, wide, high), border_radius=10)
        pygame.draw.rect(shade, (*EDGE, 255), (left, top, wide, high), 1, border_radius=10)
        to.blit(shade, (0, 0))
        self.text(to, "KEYS", (left + 24, top + 28), BRIGHT, 24)
        for i, (key, what) in enumerate(keys):
            y = top + 62 + i * row
            self.text(to, key, (left + 168, y), BLUE, 20, right=True)
            self.text(to, what, (left + 188, y), PLAIN, 20)

    def _title(
        self, to: pygame.Surface, left: int, width: int, title: str, about: str, colour: tuple[int, int, int]
    ) -> None:
        middle = MARGIN + TITLE // 2 - 3
        pygame.draw.rect(to, colour, (left, middle - 7, 4, 14), border_radius=2)
        wide = self.text(to, title, (left + 12, middle), BRIGHT, 24)
        if wide + 24 + 7 * len(about) < width:
            self.text(to, about, (left + 12 + wide + 12, middle + 1), DIM, 19)

    def _outcome(
        self, to: pygame.Surface, at: tuple[int, int], width: int, reward: float, end: str, colour: tuple[int, int, int]
    ) -> None:
        """The caption under a panel: reward and end."""
        said = f"{self.legend.end} {end}"
        if self.legend.share:
            self._bar(to, at, width, self.legend.reward, reward, said, colour)
            return
        self.text(to, f"{self.legend.reward} {_number(reward)}", at, PLAIN, 20)
        self.text(to, said, (at[0] + width, at[1]), PLAIN, 20, right=True)

    def _readings(self, to: pygame.Surface, moment: SessionFrame, box: pygame.Rect) -> None:
        """What the model reads, and what is done, in as many rows as ``box`` has; why there is no truth at its foot."""
        pygame.draw.rect(to, SLAB, box, border_radius=3)
        words, lines = self.legend.untrue, []
        while words:
            cut = len(words)
            while self._font(36).size(words[:cut])[0] // 2 > box.width - 24:
                cut = max(words.rfind(" ", 0, cut), 1)
            lines.append(words[:cut].strip())
            words = words[cut:]
        rows = [
            (self.legend.reward, _number(moment.reward), None),
            ("return", _number(moment.total), None),
            (self.legend.end, f"{100 * moment.end:.0f} %" if math.isfinite(moment.end) else "not told", None),
            *self._done(moment),
            *((name, _number(x), None) for name, x in zip(self.legend.states, moment.told, strict=False)),
        ]
        room = max(1, (box.height - 18 * len(lines) - 16) // ROW)
        for i, (name, said, span) in enumerate(rows[:room]):
            y = box.top + 16 + i * ROW
            self.text(to, name, (box.left + 12, y), PLAIN, 20)
            self.text(to, said, (box.right - 12, y), BRIGHT, 20, right=True)
            if span is not None:
                self._needle(to, pygame.Rect(box.left + 120, y - 4, box.width - 120 - 76, 8), *span)
        for i, line in enumerate(lines[::-1]):
            self.text(to, line, (box.left + 12, box.bottom - 14 - 18 * i), DIM, 18)

    def _done(self, moment: SessionFrame) -> Iterator[tuple[str, str, tuple[float, float] | None]]:
        """Rows of what was done: a name, what it says in the world's own terms, and for a quantity where in its range of -1..1 it
        rests, and stands."""
        spec = self.legend.spec
        if moment.action is None or spec is None:
            return
        rest = spec.rest_action()
        for i, (name, value) in enumerate(zip(spec.action_names, moment.action, strict=True)):
            own = spec.action_offset[i] + spec.action_scale[i] * float(value)
            if not spec.discrete:
                yield name, f"{own:.2f}", (float(rest[i]), float(value))
            elif self.legend.choices:
                yield name, self.legend.choices[int(value)].removesuffix(" (rest)"), None
            else:
                yield name, f"{own:.0f}", None

    def _needle(self, to: pygame.Surface, box: pygame.Rect, rest: float, value: float) -> None:
        """A bar from where a range of -1..1 rests to ``value``."""
        pygame.draw.rect(to, EDGE, box, border_radius=4)
        left, right = sorted(box.left + round((x + 1) / 2 * box.width) for x in (rest, value))
        pygame.draw.rect(
            to, BLUE, (min(left, box.right - 3), box.top, max(right - left, 3), box.height), border_radius=4
        )

    def _font(self, size: int) -> pygame.font.Font:
        if size not in self._fonts:
            self._fonts[size] = pygame.font.Font(None, size)
        return self._fonts[size]

    def _magnified(self, title: str, moment: SessionFrame, frame: np.ndarray, scale: int) -> pygame.Surface:
        kept = self._panels.get((title, scale))
        if kept is not None and kept[0] is moment:
            return kept[1]
        small = pygame.surfarray.make_surface(frame.transpose(1, 0, 2))
        large = pygame.transform.scale(small, (frame.shape[1] * scale, frame.shape[0] * scale))  # nearest neighbour
        self._panels = {k: v for k, v in self._panels.items() if v[0] is moment}
        self._panels[title, scale] = (moment, large)
        return large

    def _bar(
        self, to: pygame.Surface, at: tuple[int, int], width: int, name: str, share: float, said: str,
        colour: tuple[int, int, int], show_value: bool = True,
    ) -> None:  # fmt: skip
        x, y = at
        end = x + width
        words = f"{name} {share:.2f}" if show_value else name
        self.text(to, words, (x, y), PLAIN, 20)
        self.text(to, said, (end, y), PLAIN, 20, right=True)
        left, right = x + 112, end - 104
        if right - left < 24:
            return
        pygame.draw.rect(to, EDGE, (left, y - 4, right - left, 8), border_radius=4)
        filled = round((right - left) * min(1.0, max(0.0, share))) if math.isfinite(share) else 0
        if filled > 0:
            pygame.draw.rect(to, colour, (left, y - 4, max(filled, 4), 8), border_radius=4)

    def _pairs(
        self, to: pygame.Surface, pairs: Sequence[tuple[str, str]], at: tuple[int, int], end: int,
        first: tuple[int, int, int], second: tuple[int, int, int],
    ) -> None:  # fmt: skip
        """Names and values in two colours, side by side, as many as end before ``end``."""
        x, y = at
        for name, value in pairs:
            if x + 5 + (self._font(38).size(name + value)[0] // 2) > end:
                return
            x += self.text(to, name, (x, y), first, 19) + 5
            x += self.text(to, value, (x, y), second, 19) + 18

    def _chip(self, to: pygame.Surface, at: tuple[int, int], words: str, colour: tuple[int, int, int]) -> int:
        wide = self._font(36).size(words)[0] // 2 + 18
        pygame.draw.rect(to, colour, (at[0], at[1] - 10, wide, 20), border_radius=10)
        self.text(to, words, (at[0] + 9, at[1] + 1), NIGHT, 18)
        return wide + 8

    def _pad(self, to: pygame.Surface, at: tuple[int, int], held: frozenset[str]) -> None:
        """Shift and the four arrows, lit while they are down."""
        x, y = at
        places = {"up": (62, 0), "left": (36, 26), "down": (62, 26), "right": (88, 26)}
        turns = {"up": 0, "right": 1, "down": 2, "left": 3}
        for key, (dx, dy) in places.items():
            lit = key in held
            box = pygame.Rect(x + dx, y + dy, 24, 24)
            pygame.draw.rect(to, BLUE if lit else EDGE, box, border_radius=5)
            arrow = [(0.0, -5.0), (5.0, 4.0), (-5.0, 4.0)]
            for _ in range(turns[key]):
                arrow = [(-b, a) for a, b in arrow]
            pygame.draw.polygon(to, NIGHT if lit else PLAIN, [(box.centerx + a, box.centery + b) for a, b in arrow])
        box = pygame.Rect(x - 12, y + 26, 42, 24)
        lit = GENTLE in held
        pygame.draw.rect(to, BLUE if lit else EDGE, box, border_radius=5)
        self.text(to, "shift", (box.left + 7, box.centery), NIGHT if lit else PLAIN, 18)


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not told"


def panels_size(width: int, height: int, scale: int, true: bool = True) -> tuple[int, int]:
    """Width and height in pixels of what ``PanelRenderer.panels`` draws for frames of this size, beside a truth or not; both even."""
    others = 2 * width * scale + 2 * GAP if true else GAP + max(width * scale, LEAST_READINGS)
    wide = 2 * MARGIN + width * scale + others
    high = MARGIN + TITLE + height * scale + CAPTION
    return wide + wide % 2, high + high % 2


class Window:
    """The window on the screen, ``scale`` times the frames' size; ``true``: there is a truth to show."""

    def __init__(
        self,
        frame_height: int,
        frame_width: int,
        scale: int,
        title: str,
        legend: Legend | None = None,
        true: bool = True,
    ) -> None:
        self._frame, self._true = (frame_width, frame_height), true
        self.scale = min(max(scale, SCALES[0]), SCALES[1])
        try:
            pygame.display.init()
            # SDL falls back to drawing where nobody sees it; that is only right where it was asked for.
            if pygame.display.get_driver() in ("offscreen", "dummy", "evdev") and "SDL_VIDEODRIVER" not in os.environ:
                raise pygame.error("no screen")
            pygame.display.set_caption(title)
            self._open()
        except pygame.error as error:
            raise OSError(
                f"no window can be opened here ({error}); run 'neuralsim play' on a machine with a screen, or with "
                "--headless and --script"
            ) from error
        self.painter = PanelRenderer(legend)

    def _open(self) -> None:
        width, height = panels_size(*self._frame, self.scale, self._true)
        self._panels_high = height
        self.surface = pygame.display.set_mode((width, height + 62 + 32))

    def resize(self, change: int) -> None:
        """Magnify by ``change`` more (or less), within SCALES."""
        scale = min(max(self.scale + change, SCALES[0]), SCALES[1])
        if scale != self.scale:
            self.scale = scale
            self._open()

    def draw(self, moment: SessionFrame, status: Status) -> None:
        """Draw everything and present it."""
        self.surface.fill(NIGHT)
        self.painter.panels(self.surface, moment, self.scale, status.doubt_limit)
        self.painter.status(self.surface, moment, status, self._panels_high)
        if status.help:
            self.painter.help(self.surface)
        pygame.display.flip()

    def panel(self, number: int) -> np.ndarray:
        """The pixels now shown in panel 0 (dream), 1 (truth) or 2 (difference), uint8 ``(h * scale, w * scale, 3)``."""
        width, height = self._frame[0] * self.scale, self._frame[1] * self.scale
        left = MARGIN + number * (width + GAP)
        part = self.surface.subsurface((left, MARGIN + TITLE, width, height))
        return pygame.surfarray.array3d(part).transpose(1, 0, 2)

    def close(self) -> None:
        """Take the window from the screen."""
        pygame.display.quit()
