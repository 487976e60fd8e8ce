"""Measure `o2o serve`: its overhead, several clients at once, clients that leave.

    python bench/server.py PACKAGE [--checks overhead together clients leaving] [--minutes 10]

`overhead`: a request for one token, and tokens per second of a stream, beside `Package.stream` in this
process. Rounds of both take turns; medians. `together`: tokens per second of 4 streams at once, relative to
one alone, and the longest pause of a stream. `clients`: 50 clients send greedy requests for `--minutes`; each
answer is compared with the answer that its prompt had alone. `leaving`: 1,000 clients leave in the middle of
a stream; then all slots are free, and memory, threads and files of the server are counted. The exit code is 1
if an answer is lost or differs, or something leaks.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("server.py")

import argparse
import http.client
import itertools
import json
import random
import socket
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from bench.server_clients.servers import Server, served
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from runtime_py.generation.sampling import GREEDY
from runtime_py.package import Package

PROMPT = "Once upon a time"
CLIENTS = 50
LEAVING = 1000
TOGETHER = 4
CHECKS = ("overhead", "together", "clients", "leaving")
TEXTS = (
    "Lily saw a",
    "The dog ran to",
    "One day, a boy",
    "It was late and",
    "Once there was",
    "The red ball",
)


@dataclass
class Times:
    """Seconds of rounds: of `Package.stream`, and of the server."""

    package: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)


def overhead(package: Package, server: Server, rounds: int, tokens: int) -> str:
    """Compare the server with `Package.stream`.

    Args:
        package: The package, in this process.
        server: A server of the same package.
        rounds: The number of rounds of each.
        tokens: The number of tokens of a stream.

    Returns:
        A line of figures.
    """
    connection = server.connect()
    request, stream = Times(), Times()
    fields = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True}
    ids = package.tokenizer.encode(PROMPT)
    for number in range(rounds + 1):
        begin = time.perf_counter()
        list(package.stream(ids, max_new_tokens=1, sampling=GREEDY))
        alone = time.perf_counter() - begin
        begin = time.perf_counter()
        server.complete(connection, max_tokens=1, **fields)
        served_one = time.perf_counter() - begin
        places = [time.perf_counter() for _ in package.stream(ids, max_new_tokens=tokens, sampling=GREEDY)]
        events = list(server.stream(connection, max_tokens=tokens, **fields))[: len(places)]
        if number:
            request.package.append(alone)
            request.server.append(served_one)
            stream.package.append((places[-1] - places[0]) / (len(places) - 1))
            stream.server.append((events[-1] - events[0]) / (len(events) - 1))
    more = [b - a for a, b in zip(request.package, request.server, strict=True)]
    ratios = [a / b for a, b in zip(stream.package, stream.server, strict=True)]
    return (
        f"overhead   request {statistics.median(more) * 1000:.2f} ms; stream "
        f"{1 / statistics.median(stream.server):.0f} tokens/s, ratio {statistics.median(ratios):.3f} of "
        f"Package.stream"
    )


def together(server: Server, rounds: int, tokens: int) -> str:
    """Compare 4 streams at once with one alone.

    Args:
        server: The server.
        rounds: The number of rounds of each.
        tokens: The number of tokens of a stream.

    Returns:
        A line of figures.
    """
    connections = [server.connect() for _ in range(TOGETHER)]
    ratios, pauses = [], []

    def read(number: int) -> list[float]:
        fields = {"prompt": TEXTS[number], "temperature": 0, "ignore_eos": True, "max_tokens": tokens}
        return list(server.stream(connections[number], **fields))

    with ThreadPoolExecutor(TOGETHER) as threads:
        for number in range(rounds + 1):
            begin = time.perf_counter()
            for one in range(TOGETHER):
                read(one)
            alone = time.perf_counter() - begin
            begin = time.perf_counter()
            events = list(threads.map(read, range(TOGETHER)))
            if number:
                ratios.append(alone / (time.perf_counter() - begin))
                pauses += [max(b - a for a, b in itertools.pairwise(each)) for each in events]
    return (
        f"together   {TOGETHER} streams at once: {statistics.median(ratios):.3f} of one alone; longest pause "
        f"{statistics.median(pauses) * 1000:.0f} ms (median), {max(pauses) * 1000:.0f} ms (maximum)"
    )


def clients(server: Server, minutes: float) -> tuple[str, bool]:
    """Send requests of 50 clients, and compare each answer with the answer alone.

    Args:
        server: The server.
        minutes: How long.

    Returns:
        A line of figures, and whether all answers were right.
    """
    prompts = [f"{text} {word}" for text in TEXTS for word in ("big", "little", "new", "old", "happy")]
    connection = server.connect()
    fields = {"temperature": 0, "max_tokens": 24}
    expected = {prompt: _text(server.complete(connection, prompt=prompt, **fields)) for prompt in prompts}
    end = time.monotonic() + minutes * 60
    answers, wrong, lost = [0] * CLIENTS, [0] * CLIENTS, [0] * CLIENTS

    def send(number: int) -> None:
        rng = random.Random(number)
        own = server.connect()
        while time.monotonic() < end:
            prompt = rng.choice(prompts)
            try:
                if rng.random() < 0.5:
                    text = _text(server.complete(own, prompt=prompt, **fields))
                else:
                    text = _streamed(server, own, prompt, fields)
            except (OSError, AssertionError, http.client.HTTPException):
                lost[number] += 1
                own = server.connect()
                continue
            answers[number] += 1
            wrong[number] += text != expected[prompt]

    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(send, range(CLIENTS)))
    right = not sum(wrong) and not sum(lost) and min(answers) > 0
    return (
        f"clients    {CLIENTS} clients, {minutes:g} minutes: {sum(answers)} answers, {sum(wrong)} wrong, "
        f"{sum(lost)} lost; {min(answers)} to {max(answers)} of a client",
        right,
    )


def leaving(server: Server) -> tuple[str, bool]:
    """Leave in the middle of 1,000 streams.

    Args:
        server: The server.

    Returns:
        A line of figures, and whether nothing leaked.
    """

    def leave(number: int) -> None:
        rng = random.Random(number)
        body = json.dumps({"prompt": rng.choice(TEXTS), "stream": True, "ignore_eos": True})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall((head + body).encode())
            if rng.random() < 0.9:
                connection.recv(rng.randrange(1, 2000))

    def wave(numbers: Sequence[int]) -> tuple[float, int, int]:
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(leave, numbers))
        deadline = time.monotonic() + 30
        while _running(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        return server.memory, server.threads, server.files

    first = wave(range(LEAVING // 4))
    last = wave(range(LEAVING // 4, LEAVING))
    running = _running(server)
    right = not running and last[1] <= first[1] + 2 and last[2] <= first[2] + 2 and last[0] < first[0] + 20
    return (
        f"leaving    {LEAVING} clients left: {running} running; memory {first[0]:.0f} to {last[0]:.0f} MB, "
        f"threads {first[1]} to {last[1]}, files {first[2]} to {last[2]}",
        right,
    )


def _text(content: dict[str, Any]) -> str:
    text: str = content["choices"][0]["text"]
    return text


def _streamed(
    server: Server, connection: http.client.HTTPConnection, prompt: str, fields: dict[str, Any]
) -> str:
    connection.request("POST", "/v1/completions", json.dumps({**fields, "prompt": prompt, "stream": True}))
    response = connection.getresponse()
    body = response.read().decode()
    if response.status == 429:
        time.sleep(random.uniform(0.05, 0.2))
        return _text(server.complete(connection, prompt=prompt, **fields))
    assert response.status == 200
    *events, done = body.strip().split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    return "".join(_text(chunk) for chunk in chunks if chunk["choices"])


def _running(server: Server) -> int:
    connection = server.connect()
    connection.request("GET", "/slots")
    return sum(slot["is_processing"] for slot in json.loads(connection.getresponse().read()))


def execute(args: argparse.Namespace) -> int:
    """Run the checks.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    code = 0
    with served(args.package) as server:
        if "overhead" in args.checks:
            with Package.load(args.package) as package:
                print(overhead(package, server, args.rounds, args.tokens), flush=True)
        if "together" in args.checks:
            print(together(server, args.rounds, args.tokens), flush=True)
        checks = {"clients": lambda: clients(server, args.minutes), "leaving": lambda: leaving(server)}
        for name, check in checks.items():
            if name in args.checks:
                line, right = check()
                print(line if right else f"{line}: WRONG", flush=True)
                code |= not right
    return int(code)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(prog="python bench/server.py", description=__doc__)
    parser.add_argument("package", metavar="PACKAGE")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--rounds", type=positive_int, default=15)
    parser.add_argument("--tokens", type=positive_int, default=128)
    parser.add_argument("--minutes", type=float, default=10.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return run("server.py", lambda: execute(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
