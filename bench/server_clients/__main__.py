"""Call `o2o serve` with programs of others, and run llama.cpp's tests of its own server against it.

    python -m bench.server_clients PACKAGE [--llama-cpp FOLDER] [--schemathesis MINUTES]

The clients are `openai` and `litellm` of Python and `ai` of npm: chats, streams, structured output, tools.
schemathesis sends requests by the OpenAPI document. FOLDER is `tools/server/tests` of llama.cpp. The first
run installs the clients into the folder of `--environments`. PACKAGE is a folder with a tokenizer, and a
context of 256 tokens. The server gets a copy with a chat template. The exit code is 1 if a check fails.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("server_clients")

import argparse
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.peers.environments import user_folder
from bench.server_clients.llama_cpp_tests import run_tests
from bench.server_clients.servers import served
from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.streams.temporary import temporary_folder

HERE = Path(__file__).resolve().parent
PYTHON_PACKAGES = ("openai", "litellm", "schemathesis", "pytest", "requests", "wget", "filelock")
NPM_PACKAGES = ("ai", "@ai-sdk/openai-compatible")
TEMPLATE = (
    "{{ bos_token }}{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""In the manner of ChatML, with tools in the format of Hermes."""


def install(folder: Path, npm: bool) -> str:
    """Install the clients, if they are not installed.

    Args:
        folder: The folder of their environment.
        npm: Whether to install the packages of npm, too.

    Returns:
        The interpreter.
    """
    python = folder / "bin" / "python"
    stamp = folder / "installed.txt"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES], check=True)
        stamp.write_text("\n".join(PYTHON_PACKAGES))
    if npm and not (folder / "node_modules" / "ai").exists():
        (folder / "package.json").write_text("{}")
        subprocess.run(["npm", "install", "--silent", *NPM_PACKAGES], cwd=folder, check=True)
    return str(python)


def execute(args: argparse.Namespace) -> int:
    """Run all clients.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    folder = args.environments / "server-clients"
    npm = shutil.which("npm") is not None
    python = install(folder, npm)
    code = 0
    with temporary_folder() as place:
        package = place / "package"
        shutil.copytree(args.package, package)
        (package / "chat_template.jinja").write_text(TEMPLATE)
        with served(str(package), "--any-model") as server:
            address = f"http://127.0.0.1:{server.port}"
            commands = [
                [python, str(HERE / f"{name}_client.py"), f"{address}/v1"] for name in ("openai", "litellm")
            ]
            if npm:
                copy = shutil.copy(HERE / "ai_client.mjs", folder)
                commands.append(["node", str(copy), f"{address}/v1"])
            else:
                print("skip  ai: npm is not installed")
            if args.schemathesis:
                schemathesis = Path(python).with_name("schemathesis")
                config = f"--config-file={HERE / 'schemathesis.toml'}"
                limit = f"--max-time={round(args.schemathesis * 60)}"
                commands.append([str(schemathesis), config, "run", f"{address}/openapi.json", limit])
            for command in commands:
                code |= subprocess.run(command, check=False).returncode
        if args.llama_cpp is not None:
            code |= _llama_cpp(args.llama_cpp.resolve(), str(package), python)
    return int(code != 0)


def _llama_cpp(folder: Path, package: str, python: str) -> int:
    counts: Counter[str] = Counter()
    for result in run_tests(folder, package, python):
        counts[result.outcome] += 1
        print(
            f"{result.outcome:<4}  {result.name}{'  ' + result.reason if result.reason else ''}", flush=True
        )
    print("llama.cpp:", ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    return int(counts["fail"] > 0)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(prog="python -m bench.server_clients", description=__doc__)
    parser.add_argument("package", metavar="PACKAGE", type=Path)
    parser.add_argument("--llama-cpp", metavar="FOLDER", type=Path)
    parser.add_argument("--schemathesis", metavar="MINUTES", type=float, default=1.0)
    parser.add_argument("--environments", metavar="DIR", type=Path, default=user_folder())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return run("server_clients", lambda: execute(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
