"""Texts of LiteRT-LM, by its Python API and by its server. Runs in its environment, without this project.

python -m bench.litert_lm.texts '{"model": ..., "prompts": [...], "tokens": 100}' ANSWER
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("bench.litert_lm.texts")

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import litert_lm

WAIT = 60.0
"""Seconds in which the server must answer."""


def texts(model: str, prompts: Sequence[str], tokens: int) -> list[str]:
    """Continue prompts.

    Args:
        model: A `.litertlm` file.
        prompts: Texts.
        tokens: New tokens at most.

    Returns:
        What follows each.
    """
    engine = litert_lm.Engine(model, backend=litert_lm.interfaces.CPU(thread_count=2), cache_dir=":nocache")
    continued = []
    for prompt in prompts:
        with engine.create_session(apply_prompt_template=False, max_output_tokens=tokens) as session:
            session.run_prefill([prompt])
            continued.append("".join("".join(part.texts) for part in session.run_decode_async()))
    return continued


def served(model: str, prompt: str, tokens: int) -> str:
    """Ask LiteRT-LM's server.

    Args:
        model: A `.litertlm` file.
        prompt: The user's message.
        tokens: New tokens at most.

    Returns:
        The answer's text.
    """
    command = [str(Path(sys.executable).with_name("litert-lm"))]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home}
        subprocess.run([*command, "import", model, "model"], env=environment, check=True, stdout=sys.stderr)
        with _server([*command, "serve"], environment) as port:
            body = {
                "model": "model",
                "messages": [{"role": "user", "content": prompt}],
                "max_completion_tokens": tokens,
            }
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=WAIT) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"])


@contextlib.contextmanager
def _server(command: Sequence[str], environment: dict[str, str]) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=sys.stderr)
    try:
        end = time.monotonic() + WAIT
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("LiteRT-LM's server does not start")
            time.sleep(0.2)
        yield port
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    result = {
        "texts": texts(**request),
        "served": served(request["model"], request["prompts"][0], request["tokens"]),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))
