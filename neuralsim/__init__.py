"""NeuralSim: a learned world you can open with ``gym.make``.

Importing this package is cheap: it registers the Gymnasium ids and nothing else. Models, diffusers and pygame load on first use.
"""

import os
from pathlib import Path

# OpenMP threads that spin while another process holds a core slow torch up to 70 times; it is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "envs" / "__init__.py").is_file():
    __path__.append(str(_root))  # a source checkout: envs, agents and assets lie beside this folder

from neuralsim.spec import WorldSpec  # noqa: E402

__all__ = ["WorldSpec"]
__version__ = "0.1.0"
