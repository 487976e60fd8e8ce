"""The peers' virtual environments, made when they are first needed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from bench.peers.processes import finish
from bench.peers.variants import Peer

TORCH = "torch==2.13.0"


def user_folder() -> Path:
    """Where they are kept where nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "o2o-peers"


def python_of(peer: Peer, folder: Path, log: Path, torch: str = TORCH) -> str:
    """The interpreter that runs `peer`, installed in `folder` unless it is there. Raises PeerFailed.

    An environment is whole when it holds the list of what was wanted; what is not, or is of another list, is
    made anew. torch: what pip is to install as PyTorch.
    """
    if not peer.requirements:
        return sys.executable
    place, wanted = folder / peer.key, wanted_by(peer, torch)
    told, python = place / "wanted.txt", str(place / "bin" / "python")
    if told.is_file() and told.read_text() == wanted:
        return python
    shutil.rmtree(place, ignore_errors=True)
    try:
        finish([sys.executable, "-m", "venv", str(place)], log)
        install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
        if peer.torch:  # first and by itself: what comes later finds it, and does not fetch a larger one
            finish([*install, torch], log)
        finish([*install, *([torch] if peer.torch else []), *peer.requirements], log, peer.building)
        told.write_text(wanted)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return python


def wanted_by(peer: Peer, torch: str) -> str:
    """What makes an environment of `peer` the right one, as text."""
    lines = [*([torch] if peer.torch else []), *peer.requirements]
    lines += [f"{name}={value}" for name, value in peer.building.items() if name == "CMAKE_ARGS"]
    return "\n".join(lines) + "\n"
