"""check_world: tests that a model keeps the WorldModel contract, as Gymnasium's ``check_env`` does for environments."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from neuralsim.noise import Noise
from neuralsim.spec import WorldSpec
from neuralsim.world_model import State, WorldModel


class WorldCheckError(AssertionError):
    """A model breaks the WorldModel contract; the message names the call, the value and the expectation."""


def check_world(model: WorldModel, seed: int = 0, tolerance: float = 1e-2) -> None:
    """Raise a WorldCheckError at the first rule of the WorldModel contract that ``model`` breaks.

    Checked: shapes, types and ranges of every method; that rows of a batch are independent of each other and of the
    batch's size (features within ``tolerance``, frames within one grey level on average); that steps are functions of
    state, action and noise, and change neither their inputs nor global random state; that states can be indexed,
    repeated and mixed; that ``save_pretrained`` and ``from_pretrained`` give the same weights back to the bit. Warns where
    actions have no effect. Takes seconds, on the model's device.
    """
    with torch.inference_mode():
        check = _Check(model, seed, tolerance)
        check.describes_itself()
        check.encodes()
        check.can_be_read()
        check.steps()
        check.unrolls()
        check.rows_are_independent()
        check.states_are_values()
        check.actions_matter()
        check.survives_saving()


def _expect(condition: bool, what: str, came: object, expected: object) -> None:
    if not condition:
        raise WorldCheckError(f"{what}: expected {expected}, got {came}")


class _Check:
    """Checks of one model on three random rows, each also rolled out on its own."""

    rows = 3

    def __init__(self, model: WorldModel, seed: int, tolerance: float) -> None:
        self.model, self.tolerance = model, tolerance
        _expect(isinstance(model, WorldModel), "model", type(model).__name__, "a WorldModel")
        _expect(
            isinstance(getattr(model, "spec", None), WorldSpec),
            "model.spec",
            getattr(model, "spec", None),
            "a WorldSpec",
        )
        self.spec = model.spec
        rng = np.random.default_rng(seed)
        t = self.spec.context + 2
        # Blocks of colour rather than noise per pixel: closer to what a codec can represent.
        small = rng.integers(0, 256, (self.rows, t, self.spec.height // 8, self.spec.width // 8, 3), dtype=np.uint8)
        self.frames = self._tensor(small.repeat(8, 2).repeat(8, 3))
        self.past = self._tensor(self.spec.random_actions(rng, self.rows, t - 1))
        self.plan = self._tensor(self.spec.random_actions(rng, self.rows, 3))
        self.noise = Noise.from_seeds(range(seed, seed + self.rows), model.device)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, device=self.model.device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Return ``model.name(*arguments)``, which must not raise, change its arguments or draw from global random state."""
        kept = [_copy(a) for a in arguments]
        before = _global_random_state()
        try:
            result = getattr(self.model, name)(*arguments)
        except Exception as error:
            raise WorldCheckError(f"{name}: raised {type(error).__name__} on valid input: {error}") from error
        for i, (argument, copied) in enumerate(zip(arguments, kept, strict=True)):
            _expect(
                _equal(argument, copied), f"{name}, argument {i}", "a changed one", "its arguments left as they were"
            )
        _expect(
            before == _global_random_state(),
            name,
            "a draw from torch's, numpy's or Python's global generator",
            "all randomness from noise",
        )
        return result

    def _encode(self, t: int, rows: slice = slice(None)) -> State:
        frames, past = self.frames[rows, -t:], self.past[rows]
        return self._call("encode", frames, past[:, past.shape[1] - (t - 1) :])

    def _expect_state(self, state: Any, what: str, lead: tuple[int, ...]) -> None:
        _expect(isinstance(state, State) and is_dataclass(state), what, type(state).__name__, "a State")
        for f in fields(state):
            value = getattr(state, f.name)
            _expect(isinstance(value, torch.Tensor), f"{what}, field {f.name}", type(value).__name__, "a tensor")
            shape = tuple(value.shape)
            _expect(shape[: len(lead)] == lead, f"{what}, field {f.name}", f"shape {shape}", f"shape {lead} + (...)")
            if value.is_floating_point():
                _expect(
                    bool(torch.isfinite(value).all()), f"{what}, field {f.name}", "NaN or infinity", "finite numbers"
                )

    def _expect_tensor(self, value: Any, what: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        _expect(isinstance(value, torch.Tensor), what, type(value).__name__, "a tensor")
        _expect(value.dtype == dtype, what, value.dtype, dtype)
        _expect(tuple(value.shape) == shape, what, f"shape {tuple(value.shape)}", f"shape {shape}")
        if value.is_floating_point():
            _expect(bool(torch.isfinite(value).all()), what, "NaN or infinity", "finite numbers")

    def _opposite(self, actions: torch.Tensor) -> torch.Tensor:
        """Return minus ``actions``, or the choices counted from the other end."""
        if not self.spec.discrete:
            return -actions
        return torch.tensor(self.spec.action_choices, dtype=torch.int64, device=actions.device) - 1 - actions

    # -- the rules, one method each ---------------------------------------------------------------------------------

    def describes_itself(self) -> None:
        size = self.model.feature_size
        _expect(isinstance(size, int) and size > 0, "feature_size", repr(size), "a whole number above 0")
        names = self.model.head_names
        ok = isinstance(names, tuple) and all(isinstance(n, str) for n in names)
        _expect(ok, "head_names", repr(names), "a tuple of names")

    def encodes(self) -> None:
        for t in (1, self.spec.context, self.spec.context + 2):
            self._expect_state(self._encode(t), f"encode of {t} frames", (self.rows,))
        self.state = self._encode(self.spec.context)

    def can_be_read(self) -> None:
        b, spec = self.rows, self.spec
        self._expect_tensor(self._call("features", self.state), "features", (b, self.model.feature_size), torch.float32)
        self._expect_tensor(self._call("decode", self.state), "decode", (b, *spec.frame_shape), torch.uint8)
        uncertainty = self._call("uncertainty", self.state)
        self._expect_tensor(uncertainty, "uncertainty", (b,), torch.float32)
        _expect(bool((uncertainty >= 0).all()), "uncertainty", f"{uncertainty.min().item():.4g}", "at least 0")
        heads = self._call("read", self.state)
        _expect(isinstance(heads, dict), "read", type(heads).__name__, "a dict")
        _expect(
            set(heads) == set(self.model.head_names),
            "read",
            sorted(heads),
            f"head_names, {sorted(self.model.head_names)}",
        )
        for name, value in heads.items():
            self._expect_tensor(value, f"read, {name}", (b,), torch.float32)

    def steps(self) -> None:
        action = self.plan[:, 0]
        after = self._call("step", self.state, action, self.noise)
        self._expect_state(after, "step", (self.rows,))
        _expect(type(after) is type(self.state), "step", type(after).__name__, type(self.state).__name__)
        for f in fields(after):
            new, old = getattr(after, f.name), getattr(self.state, f.name)
            came, expected = (f"{x.dtype} {tuple(x.shape)}" for x in (new, old))
            _expect(came == expected, f"step, field {f.name}", came, f"{expected}, as encode made it")
        again = self._call("step", self.state, action, self.noise)
        _expect(_equal(after, again), "step, twice from one state with one action and one noise", "two states", "one")
        encoded = self._encode(self.spec.context)
        _expect(_equal(encoded, self.state), "encode, twice from one history", "two states", "one")

    def unrolls(self) -> None:
        k = self.plan.shape[1]
        for n in (1, k):
            states = self._call("unroll", self.state, self.plan[:, :n], self.noise)
            self._expect_state(states, f"unroll of {n} actions", (self.rows, n))
        again = self._call("unroll", self.state, self.plan, self.noise)
        _expect(
            _equal(states, again), "unroll, twice from one state with the same actions and noise", "two futures", "one"
        )
        last = states.map(lambda x: x[:, -1])
        self._expect_state(
            self._call("step", last, self.plan[:, 0], self.noise.advance(k)), "step after unroll", (self.rows,)
        )
        last = self._call("unroll_last", self.state, self.plan, self.noise)
        self._expect_state(last, f"unroll_last over {k} actions", (self.rows,))
        again = self._call("unroll_last", self.state, self.plan, self.noise)
        _expect(
            _equal(last, again),
            "unroll_last, twice from one state with the same actions and noise",
            "two futures",
            "one",
        )
        reduced = self._call("without_ensemble", self.state)
        self._expect_state(reduced, "without_ensemble", (self.rows,))
        features = self._call("features", self._call("unroll_last", reduced, self.plan, self.noise))
        self._expect_tensor(
            features,
            "features of unroll_last without the ensemble",
            (self.rows, self.model.feature_size),
            torch.float32,
        )

    def _roll_out(self, state: State, plan: torch.Tensor, noise: Noise) -> State:
        for i in range(plan.shape[1]):
            state = self._call("step", state, plan[:, i], noise.advance(i))
        return state

    def _expect_close(self, one: State, other: State, what: str) -> None:
        features = [self._call("features", s) for s in (one, other)]
        far = (features[0] - features[1]).abs().max().item()
        _expect(far <= self.tolerance, f"{what}: features", f"a difference of {far:.4g}", f"at most {self.tolerance:g}")
        frames = [self._call("decode", s).float() for s in (one, other)]
        grey = (frames[0] - frames[1]).abs().mean().item()
        _expect(grey <= 1, f"{what}: frames", f"a mean difference of {grey:.4g} grey levels", "at most 1")

    def rows_are_independent(self) -> None:
        together = self._roll_out(self.state, self.plan, self.noise)
        for i in range(self.rows):
            row = slice(i, i + 1)
            index = torch.tensor([i], dtype=torch.int64, device=self.model.device)
            alone = self._roll_out(self._encode(self.spec.context, row), self.plan[row], self.noise.index(index))
            self._expect_close(
                together.index(row), alone, f"row {i} in a batch of {self.rows} against the same row alone"
            )
        changed = self.plan.clone()
        changed[0] = self._opposite(changed[0])
        other = self._roll_out(self.state, changed, self.noise)
        rest = slice(1, None)
        self._expect_close(together.index(rest), other.index(rest), "rows 1 and on, when only row 0's actions change")

    def states_are_values(self) -> None:
        device = self.model.device
        action = self.plan[:, 0]
        after = self._call("step", self.state, action, self.noise)
        order = torch.tensor([2, 0], dtype=torch.int64, device=device)
        picked = self._call("step", self.state.index(order), action[order], self.noise.index(order))
        self._expect_close(picked, after.index(order), "state.index(rows), then step")
        rows = torch.arange(self.rows, dtype=torch.int64, device=device).repeat_interleave(2)
        repeated = self._call("step", self.state.repeat(2), action[rows], self.noise.index(rows))
        self._expect_close(repeated, after.index(rows), "state.repeat(2), then step")
        mask = torch.tensor([True, False, True], dtype=torch.bool, device=device)
        mixed = self.state.where(mask, after)
        for i in range(self.rows):
            source = after if bool(mask[i]) else self.state
            row = slice(i, i + 1)
            _expect(
                _equal(mixed.index(row), source.index(row)),
                f"state.where, row {i}",
                "another row",
                "this state's or the other's",
            )

    def actions_matter(self) -> None:
        if self.spec.action_size == 0 or set(self.spec.action_choices) == {1}:
            return  # there is only one thing to do
        # Where actions are choices: always the first of them, then always the last.
        one = torch.ones_like(self.plan) if not self.spec.discrete else torch.zeros_like(self.plan)
        futures = [
            self._call("features", self._roll_out(self.state, x, self.noise)) for x in (one, self._opposite(one))
        ]
        if torch.equal(*futures):
            warnings.warn(
                f"{type(self.model).__name__}: opposite actions lead to equal futures; this world does not respond to actions",
                stacklevel=4,
            )

    def survives_saving(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.model.save_pretrained(folder)
                # Only safetensors: unpickling a world from others is not safe.
                loaded: Any = type(self.model).from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
            except Exception as error:
                raise WorldCheckError(
                    f"save_pretrained, from_pretrained: raised {type(error).__name__}: {error}"
                ) from error
        _expect(loaded.spec == self.spec, "from_pretrained: spec", loaded.spec, self.spec)
        loaded = loaded.to(device=self.model.device).train(self.model.training)
        mine, theirs = self.model.state_dict(), loaded.state_dict()
        _expect(mine.keys() == theirs.keys(), "from_pretrained: weights", sorted(theirs), sorted(mine))
        for name, weight in mine.items():
            _expect(
                torch.equal(weight, theirs[name]),
                f"from_pretrained: {name}",
                "other numbers",
                "what was saved, to the bit",
            )
        before = self._roll_out(self.state, self.plan, self.noise)
        self.model, kept = loaded, self.model
        try:
            after = self._roll_out(self._encode(self.spec.context), self.plan, self.noise)
        finally:
            self.model = kept
        # Not to the bit: loaded weights may have another memory layout, and then sums round differently.
        self._expect_close(before, after, "a rollout of the saved model against the loaded one's")


def _global_random_state() -> tuple[Any, ...]:
    """Return the state of every global random generator."""
    legacy: Any = np.random.get_state()  # noqa: NPY002 (read only, to see that it is unchanged)
    return torch.get_rng_state().numpy().tobytes(), legacy[1].tobytes(), legacy[2:], random.getstate()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [getattr(value, f.name) for f in fields(value) if isinstance(getattr(value, f.name), torch.Tensor)]


def _copy(value: Any) -> Any:
    """Copy a tensor, a State or a Noise."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    copies: Callable[[torch.Tensor], torch.Tensor] = torch.clone
    if isinstance(value, State):
        return value.map(copies)
    return Noise(value.seed.clone(), value.count.clone(), value.temperature)


def _equal(one: Any, other: Any) -> bool:
    """Compare tensors, States or Noises to the bit."""
    return all(torch.equal(x, y) for x, y in zip(_tensors(one), _tensors(other), strict=True))
