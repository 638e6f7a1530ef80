"""Instructions: one English sentence for each of Meta-World's fifty tasks."""

from __future__ import annotations

import difflib

import numpy as np

INSTRUCTIONS = {
    "assembly": "put the ring on the peg",
    "basketball": "put the ball into the basket",
    "bin-picking": "move the block from one bin to the other",
    "box-close": "put the lid on the box",
    "button-press-topdown": "press the button down from above",
    "button-press-topdown-wall": "reach over the wall and press the button down",
    "button-press": "press the button",
    "button-press-wall": "reach round the wall and press the button",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "hand-insert": "put the hand into the hole",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-open": "open the faucet",
    "faucet-close": "close the faucet",
    "hammer": "hammer the nail into the box",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever up",
    "pick-place-wall": "lift the puck over the wall to the goal",
    "pick-out-of-hole": "pick the puck out of the hole",
    "pick-place": "pick up the puck and hold it at the goal",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "plate-slide-back": "slide the plate back out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "peg-insert-side": "put the peg into the hole in the side",
    "peg-unplug-side": "pull the peg out of the hole in the side",
    "soccer": "kick the ball into the goal",
    "stick-push": "push the thermos with the stick",
    "stick-pull": "pull the thermos with the stick",
    "push": "push the puck to the goal",
    "push-wall": "push the puck round the wall to the goal",
    "push-back": "push the puck back to the goal",
    "reach": "move the hand to the goal",
    "reach-wall": "move the hand over the wall to the goal",
    "shelf-place": "put the block on the shelf",
    "sweep-into": "sweep the block into the hole",
    "sweep": "sweep the block off the table",
    "window-open": "open the window",
    "window-close": "close the window",
}
"""The sentence of each task, by the task's name without its version."""

LONGEST = 120
"""Bytes of an instruction at most."""


def encode(text: str) -> np.ndarray:
    """Convert an instruction to its UTF-8 bytes with zeros after them, uint8 ``(120,)``; a ValueError for one that does not fit."""
    if not isinstance(text, str) or "\0" in text or len(raw := text.encode()) > LONGEST:
        raise ValueError(
            f"instruction: expected a text of {LONGEST} bytes at most, without zeros, got {str(text)[:200]!r}"
        )
    return np.frombuffer(raw.ljust(LONGEST, b"\0"), np.uint8).copy()


def decode(tokens: np.ndarray) -> str:
    """Convert bytes ``(120,)`` back to the instruction; the inverse of ``encode``."""
    return bytes(np.asarray(tokens, np.uint8)).rstrip(b"\0").decode()


def task_name(task: str) -> str:
    """Return ``task`` without a trailing "-v3"; a ValueError for a task that there is not names the nearest."""
    name = str(task).removesuffix("-v3")
    if name not in INSTRUCTIONS:
        near = difflib.get_close_matches(name, INSTRUCTIONS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(INSTRUCTIONS)}"
        raise ValueError(f"task: no task {task!r} in Meta-World; {hint}")
    return name
