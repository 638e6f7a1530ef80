"""NeuralSim: a learned world you can open with ``gym.make``.

Importing this package is cheap: it registers the Gymnasium ids. The public names, listed in ``__init__.pyi``, are imported
on first use, and so are torch, diffusers and pygame.
"""

import importlib
import os
from pathlib import Path

import lazy_loader

# OpenMP threads that spin while another process holds a core slow torch up to 70 times; it is read when torch is first
# imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "envs" / "__init__.py").is_file():
    __path__.append(str(_root))  # a source checkout: envs, agents and assets lie beside this folder

from neuralsim.version import __version__ as __version__  # noqa: E402

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

importlib.import_module("neuralsim.envs.registry")  # registers the real worlds: Gymnasium ids and short names
