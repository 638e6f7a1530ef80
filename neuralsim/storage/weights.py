"""Models read from ``config.json`` and safetensors, and written to them, with all that a stranger's files may hold checked.

The caller gives the class; no file names code to import. Nothing is allocated that the size of the weights does not explain.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from neuralsim.runtime.files import atomic_file
from neuralsim.runtime.json_files import check_types, read_object, type_hints
from neuralsim.spec import WorldSpec, plain_name
from neuralsim.storage.manifest import CONFIG, WEIGHTS
from neuralsim.storage.quantization import SCALE, dequantize, quantize

Model = TypeVar("Model", bound=ModelMixin)
HIDDEN = {"_class_name", "_diffusers_version", "_name_or_path", "_commit_hash"}
"""Keys that diffusers writes into a config beside the constructor's arguments."""
LEAST_ALLOWANCE, ALLOWANCE = 64_000_000, 16
"""Bytes that a model may allocate while it is built: this much, and so many times what its weights take in float32."""
FACTORIES = {"empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "linspace", "eye"}
"""Functions of torch that make tensors from sizes."""


def read_model(folder: Path, kind: type[Model], config: Mapping[str, Any]) -> Model:
    """Build the ``kind`` that ``config`` (the content of config.json) and the weights in ``folder`` describe.

    Raises ValueError, naming the file and its fault. Leaves the global random state as it is.
    """
    check_config(folder / CONFIG, kind, config)
    name = kind.__name__
    try:
        tensors = dequantize(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder}: not a world ({WEIGHTS} is missing); World(model).save(folder) makes one"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{folder}: {CONFIG} and {WEIGHTS} do not make a {name}: {WEIGHTS}: {error}") from error
    limit = LEAST_ALLOWANCE + ALLOWANCE * 4 * sum(tensor.numel() for tensor in tensors.values())
    make: Any = kind  # diffusers' ConfigMixin has from_config, ModelMixin alone does not
    try:
        # A new model draws its first weights from the global generator.
        with torch.random.fork_rng(devices=[]), Allowance(limit):
            model = make.from_config(dict(config))
    except Exception as error:  # constructors raise what they like
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder}: {CONFIG} and {WEIGHTS} do not make a {name}: {CONFIG}: {reason:.500}") from error
    own = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    wrong = [f"{n}: {w}" for n in sorted(own.keys() | tensors.keys()) if (w := _wrong(own, tensors, n, parameters))]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(
            f"{folder}: {CONFIG} and {WEIGHTS} do not make a {name}: {WEIGHTS}: {wrong[0]}{more}; "
            "if another version of NeuralSim wrote it, use that one or train anew"
        )
    model.load_state_dict(tensors)
    return model


def read_packed(folder: Path, kind: type[Model]) -> Model | None:
    """Build the ``kind`` in ``folder`` if its weights are quantized; None if not, since diffusers reads those by itself.

    Raises ValueError as ``read_model`` does.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        return None
    with safe_open(weights, framework="pt") as file:
        if not any(name.endswith(SCALE) for name in file.keys()):  # noqa: SIM118 (no dict)
            return None
    return read_model(folder, kind, read_object(folder / CONFIG))


def check_config(path: Path, kind: type[ModelMixin], config: Mapping[str, Any]) -> None:
    """Raise a ValueError for keys that ``kind`` does not take, values of another type than declared, and a bad world name."""
    taken = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    if unknown := sorted(config.keys() - HIDDEN - set(taken)):
        raise ValueError(
            f"{path}: unknown key {unknown[0]!r}; {kind.__name__} takes {', '.join(taken)}. A newer NeuralSim may have written it"
        )
    check_types(f"{path}: ", config, type_hints(kind.__init__))
    spec = config.get("spec")
    if isinstance(spec, dict) and spec.keys() <= {f.name for f in fields(WorldSpec)}:
        check_types(f"{path}: spec.", spec, type_hints(WorldSpec))
        name = spec.get("name", "")
        if name != plain_name(name):
            raise ValueError(f"{path}: spec.name: expected a plain word such as {plain_name(name)!r}, got {name!r}")


def check_model(model: ModelMixin, path: Path) -> None:
    """Raise a ValueError for a model whose config could not be read back once it is written to ``path``."""
    config: dict[str, Any] = json.loads(cast(Any, model).to_json_string())
    check_config(path, type(model), config)
    if isinstance(spec := config.get("spec"), dict) and spec.keys() <= {f.name for f in fields(WorldSpec)}:
        WorldSpec(**spec)


def _wrong(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], name: str, parameters: set[str]
) -> str | None:
    """Describe the fault of the tensor ``name`` of a file, compared with the model's own; None where it has none."""
    if name not in tensors:
        return "missing"
    if name not in own:
        return "the model has no such tensor"
    came, expected = tensors[name], own[name]
    if came.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(came.shape)}"
    if came.dtype != expected.dtype and not (came.is_floating_point() and expected.is_floating_point()):
        return f"expected {expected.dtype}, got {came.dtype}"
    if came.is_floating_point():
        numbers = came.float()
        if bool(numbers.isnan().any()):
            return "holds NaN"
        if name in parameters and bool(numbers.isinf().any()):  # a buffer may be a limit that is never reached
            return "holds infinity"
    return None


class Allowance(TorchFunctionMode):
    """Limits the tensors made inside to ``limit`` bytes together; then it raises a ValueError."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = self.limit = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in FACTORIES:
            sizes = {k: v for k, v in given.items() if k not in ("out", "generator", "pin_memory")}
            self.left -= func(*args, **{**sizes, "device": "meta"}).nbytes  # a tensor without memory
            if self.left < 0:
                raise ValueError(
                    f"asks for a model of more than {self.limit / 1e6:.0f} MB, which weights of this size do not explain"
                )
        return func(*args, **given)


def save_world(model: Any, folder: Path) -> None:
    """Write config and weights as ``save_pretrained`` does, in a half or a quarter of the size.

    Parameters are stored in half precision, those that ``model.packed`` names in eight bits (see
    neuralsim.storage.quantization). They are rounded in ``model`` too, so that the model in memory equals the one read
    back, to the bit. Raises ValueError for a config that could not be read back, DiskFullError on a full disk.
    """
    check_model(model, folder / CONFIG)
    parameters = {name for name, _ in model.named_parameters()}
    tensors = quantize(model.state_dict(), model.packed)
    for name in parameters:
        if tensors[name].is_floating_point():
            tensors[name] = tensors[name].half()
    model.load_state_dict(dequantize(tensors))
    model.save_config(folder)
    weights = folder / WEIGHTS
    copies = cpu_copies(tensors)
    with atomic_file(weights, sum(t.nbytes for t in copies.values())) as temporary:
        save_file(copies, temporary, metadata={"format": "pt"})


def cpu_copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies: safetensors refuses shared or strided memory."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
