"""Settings of the server: addresses, access and limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime_py.generation.sampling import Sampling


@dataclass(frozen=True)
class ServerSettings:
    """How the server runs.

    Attributes:
        host: The address to listen on.
        port: The port; 0 for a free one.
        api_keys: The keys of which each request needs one; none for a server without keys.
        allowed_hosts: Names that the header `Host` may have, in addition to IP addresses and localhost.
        allowed_origins: Origins of pages elsewhere that may call the API; `*` for all.
        parallel: The largest number of texts of a model that are generated at the same time.
        queue: The largest number of requests of a model that wait for one of these.
        max_body: The largest body of a request, in bytes.
        max_grammar: The largest grammar or JSON schema, in bytes.
        body_timeout: Seconds in which a body must arrive.
        timeout: Seconds that a request may wait in the queue, and then may generate.
        grace: Seconds in which running requests may end after SIGINT or SIGTERM.
        max_loaded: The largest number of models in memory; the least recently used one is unloaded.
        any_model: An unknown name of a model means the first one.
        sampling: The choice of tokens, for fields that a request does not set. None: as the package says.
        seed: The seed of requests without one; None for random ones.
        max_new_tokens: The largest number of new tokens of a text; None for no limit.
        slot_save_path: The folder of saved slots; None for a server that saves none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    parallel: int = 4
    queue: int = 32
    max_body: int = 8 << 20
    max_grammar: int = 64 << 10
    body_timeout: float = 30
    timeout: float = 600
    grace: float = 10
    max_loaded: int = 1
    any_model: bool = False
    sampling: Sampling | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    slot_save_path: Path | None = None
