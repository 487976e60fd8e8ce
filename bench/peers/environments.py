"""The peers' virtual environments, created when they are first needed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from bench.peers.processes import run_to_end
from bench.peers.variants import Peer

TORCH = "torch==2.13.0"


def user_folder() -> Path:
    """Return the default folder for environments and models.

    Returns:
        A folder in the user's cache.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "o2o-peers"


def python_of(peer: Peer, folder: Path, log: Path, torch: str = TORCH) -> str:
    """Return the interpreter that runs a peer. Create its environment if needed.

    A complete environment has a file with its requirements. An incomplete one, or one with other
    requirements, is created again.

    Args:
        peer: The peer.
        folder: The folder of all environments.
        log: The file for the output of pip.
        torch: The requirement for PyTorch.

    Returns:
        The path of the interpreter.

    Raises:
        PeerFailed: The peer cannot be installed.
    """
    if not peer.requirements:
        return sys.executable
    environment, requirements = folder / (peer.environment or peer.key), requirements_text(peer, torch)
    stamp, python = environment / "wanted.txt", str(environment / "bin" / "python")
    if stamp.is_file() and stamp.read_text() == requirements:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    try:
        run_to_end([sys.executable, "-m", "venv", "--without-pip", str(environment)], log)
        pip = [sys.executable, "-m", "pip", "--python", python]
        install = [*pip, "install", "--disable-pip-version-check"]
        if peer.torch:  # first, so that later packages do not fetch a larger build
            run_to_end([*install, torch], log)
        run_to_end([*install, *([torch] if peer.torch else []), *peer.requirements], log, peer.building)
        stamp.write_text(requirements)
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise
    return python


def requirements_text(peer: Peer, torch: str) -> str:
    """Return the requirements that identify an environment.

    Args:
        peer: The peer.
        torch: The requirement for PyTorch.

    Returns:
        One requirement or build variable a line.
    """
    lines = [*([torch] if peer.torch else []), *peer.requirements]
    lines += [f"{name}={value}" for name, value in peer.building.items() if name == "CMAKE_ARGS"]
    return "\n".join(lines) + "\n"
