"""System libraries that slim containers lack: one line that names the package to install, instead of a linker's error."""

from __future__ import annotations

import importlib.metadata
import traceback
from pathlib import Path

DEBIAN_PACKAGES = {
    "libGL.so": "libgl1",
    "libEGL.so": "libegl1",
    "libgthread": "libglib2.0-0",
    "libglib": "libglib2.0-0",
    "libSM.so": "libsm6",
    "libXext.so": "libxext6",
    "libXrender.so": "libxrender1",
    "libX11.so": "libx11-6",
    "libxcb.so": "libxcb1",
    "libfreetype": "libfreetype6",
    "libgomp": "libgomp1",
}
"""Beginnings of library names, and the Debian package of each."""


def explain_missing_library(error: BaseException) -> str | None:
    """Return one line for the failed import of a compiled package (cv2 without libGL, say); None for any other error.

    pygame turns the ImportError of one of its parts into a NotImplementedError on first use; that counts too.
    """
    text = " ".join(str(error).split())
    broken = ("cannot open shared object file", "DLL load failed", "Library not loaded", "undefined symbol")
    if not isinstance(error, ImportError | NotImplementedError) or not any(words in text for words in broken):
        return None
    package = _failing_package(error)
    line = f"{package} cannot be imported: {text}" if package else text
    debian = next((name for library, name in DEBIAN_PACKAGES.items() if library in text), None)
    if debian is not None:
        line += f"; install the system package {debian} (Debian, Ubuntu: apt-get install {debian})"
    if package.startswith("cv2"):
        line += ", or use opencv-python-headless in place of opencv-python"
    return line


def _failing_package(error: BaseException) -> str:
    """Name of the imported package, with its distribution's, by the last frame of the traceback in site-packages."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).parts
        if parts[0].startswith("<") or "neuralsim" in parts[-3:]:
            continue
        if "site-packages" in parts or "dist-packages" in parts:
            at = max(parts.index(name) for name in ("site-packages", "dist-packages") if name in parts)
            top = Path(parts[at + 1]).stem
        elif len(parts) > 1 and parts[-1] == "__init__.py":
            top = parts[-2]
        else:
            continue
        names = importlib.metadata.packages_distributions().get(top, [])
        return f"{top} (from {', '.join(sorted(set(names)))})" if names else top
    return getattr(error, "name", None) or ""
