"""PolicyArchive: the members of Stable-Baselines3's ``.zip``, read within bounds and without unpickling code.

A file from elsewhere may be a bomb: members that inflate to gigabytes, tensors that claim more than they hold, JSON of a million
lists. All sizes are checked before anything is allocated, and every error is a ValueError that names the file and the member.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NOT_A_POLICY = "not a file that Stable-Baselines3's model.save() wrote"
MEMBERS, TENSORS = 64, 2_000
"""Most members of an archive; most tensors of one member."""
WEIGHT_BYTES, TEXT_BYTES, PICKLE_BYTES = 128 * 2**20, 64 * 2**20, 2**20
"""Most bytes of a member's weights, of a text, and of the pickle that describes the weights."""
JSON_VALUES, SHOWN = 200_000, 200
"""Most values of a JSON text; characters of a library's error that a message repeats."""
_KINDS = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {f"torch {kind}Storage" for kind in _KINDS} | {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
"""All that the pickle of a state dict names; torch's safe loader knows more, some of it able to allocate at will."""


@dataclass(frozen=True)
class PolicyArchive:
    """The zip file at ``path``. Constructing it raises FileNotFoundError or ValueError where there is none."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path}: no such policy; expected the .zip that 'neuralsim rl' or SB3's save() wrote"
            )
        if len(names := self.names) > MEMBERS:
            raise ValueError(f"{self.path}: expected at most {MEMBERS} members, got {len(names)}")
        if len(set(names)) < len(names):
            raise ValueError(f"{self.path}: holds two members of one name")

    @property
    def names(self) -> list[str]:
        """Names of the members."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.namelist()
        except OSError:
            raise
        except Exception as error:  # zipfile raises various errors for a damaged directory
            raise ValueError(f"{self.path}: {NOT_A_POLICY} ({_one_line(error)})") from error

    def read(self, name: str, most: int) -> bytes:
        """Return the member ``name``, at most ``most`` bytes long."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                size = archive.getinfo(name).file_size
                if size <= most:
                    return archive.read(name)
        except Exception as error:  # zlib's, zipfile's and struct's errors, by the damage
            raise ValueError(f"{self.path}: {name} cannot be read ({_one_line(error)})") from error
        raise ValueError(f"{self.path}: {name} has {size:,} bytes, more than any policy needs ({most:,})")

    def read_object(self, name: str, most: int = TEXT_BYTES) -> dict[str, Any]:
        """Return the JSON object in the member ``name``."""
        text = self.read(name, most)
        if sum(map(text.count, (b",", b"[", b"{"))) > JSON_VALUES:
            raise ValueError(f"{self.path}: {name} holds more than {JSON_VALUES:,} values, more than any policy needs")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: {name} is damaged ({_one_line(error)})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}: {name} is damaged (expected an object, got {type(value).__name__})")  # noqa: TRY004
        return value

    def read_tensors(self, name: str) -> dict[str, Any]:
        """Return the state dict in the member ``name``: plain tensors on the CPU, in plain containers."""
        content = self.read(name, WEIGHT_BYTES)
        try:
            _check_pickle(content)
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not isinstance(found, dict):
                raise TypeError(f"expected a dict, got {type(found).__name__}")
            for key, tensor in _tensors(found):
                _check_tensor(key, tensor)
        except Exception as error:  # torch raises whatever the damage leads to
            raise ValueError(f"{self.path}: {name} does not hold plain weights ({_one_line(error)})") from error
        return found


def _check_pickle(content: bytes) -> None:
    """Raise a ValueError unless ``content`` is torch's zip format, no larger inside than allowed, and names state dicts' classes only."""
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        members = inner.infolist()
        pickles = [m for m in members if m.filename.endswith("data.pkl")]
        if len(pickles) != 1 or len(members) > TENSORS + MEMBERS or pickles[0].file_size > PICKLE_BYTES:
            raise ValueError(f"{len(members)} parts, {len(pickles)} of them descriptions")
        if sum(m.file_size for m in members) > WEIGHT_BYTES or any(m.compress_type for m in members):
            raise ValueError("compressed, or larger inside than outside")
        description = inner.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(description):
        if opcode.name in ("GLOBAL", "INST") and argument not in _GLOBALS:
            raise ValueError(f"names {str(argument)[:60]!r}, which no state dict needs")
        if opcode.name == "STACK_GLOBAL":
            raise ValueError("names classes in an unknown way")


def _tensors(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor inside dicts, lists and tuples, with its key."""
    if depth > 8:
        raise ValueError(f"{key[:60]}: nested too deep")
    if isinstance(value, torch.Tensor):
        yield key, value
    elif isinstance(value, dict | list | tuple):
        if len(value) > TENSORS:
            raise ValueError(f"{key[:60]}: {len(value)} entries, more than any policy has")
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, f"{key}.{name}" if key else str(name), depth + 1)


def _check_tensor(key: str, tensor: torch.Tensor) -> None:
    """Raise a ValueError for a tensor that is not dense, on the CPU, and as large in memory as it claims."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"{key}: expected a dense tensor on the CPU, got {tensor.layout} on {tensor.device.type}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() or not tensor.is_contiguous():
        raise ValueError(f"{key}: claims shape {tuple(tensor.shape)}, which its bytes do not hold")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
