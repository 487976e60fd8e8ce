"""The process that `bench/load.py` measures. It imports little: that would be a part of the loading time."""

from __future__ import annotations

import resource
import time
from pathlib import Path

PROMPT = "Lily picked up a flower."
TOKENS = 5


def _memory() -> tuple[float, float]:
    """(resident, private dirty) memory of this process, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 / 1e6 for name, rest in (line.split(":") for line in lines)}
    return sizes["Rss"], sizes["Private_Dirty"]


def measure(folder: str, cache: bool, started: float) -> dict[str, float]:
    """Load a package and generate an answer.

    Args:
        folder: The package.
        cache: Whether to use the disk cache.
        started: time.time() before this process was started.

    Returns:
        Seconds and MB by the names of the docstring of `bench.load`.
    """
    from runtime_py.generation.generate import generate
    from runtime_py.generation.session import Session
    from runtime_py.generation.session_pool import SessionPool
    from runtime_py.package import Package
    from runtime_py.text.detokenizer import Detokenizer
    from runtime_py.text.tokenizer import has_tokenizer, token_ids

    has_ids_only = not has_tokenizer(Path(folder))  # as the conversions of bench.peers
    package = Package.load(folder, token_ids.NAME if has_ids_only else None)
    prompt = [1, 2, 3] if has_ids_only else package.tokenizer.encode(PROMPT)
    engine = package.engine() if cache else package.engine(disk_cache=None)
    load = time.time() - started
    resident, private = _memory()
    pool, detokenizer = SessionPool(engine), Detokenizer(package.tokenizer)
    tokens = generate(Session(pool), prompt, detokenizer, max_new_tokens=TOKENS)
    next(tokens)
    first_token = time.time() - started
    list(tokens)
    answer_resident, answer_private = _memory()
    packing = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    peak = max(packing, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    return {
        "load": load,
        "token": first_token,
        "resident": resident,
        "private": private,
        "answer resident": answer_resident,
        "answer private": answer_private,
        "packing": packing,
        "peak": peak,
    }
