"""llama.cpp's tests of its server, run against this one.

The tests run with `DEBUG_EXTERNAL=1`: they start no server. Each file has a server of `o2o serve` with
fitting flags. Each test passes, fails, or is not applicable, with a reason.
"""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.server_clients.servers import served
from o2o.streams.temporary import temporary_folder

FLAGS = ("--temperature=0.8", "--seed=42", "--max-new-tokens=64", "--any-model", "--parallel=2")
KEY = "sk-this-is-the-secret-key"
FILES: Mapping[str, Sequence[str]] = {
    "basic": (),
    "chat_completion": (),
    "completion": (),
    "security": (f"--api-key={KEY}",),
    "stream": (),
    "tokenize": (),
    "tool_call": (),
}
"""The files of tests that this server has the endpoints for, with further flags of the server."""

_OWN_TEXT = "it expects a text, or numbers of tokens, of its own model and tokenizer"
_RESTART = "it starts the server with other flags"
_CORS = "it wants CORS for all origins, which this server allows only to those of --allow-origin"
_PROBABILITIES = "probabilities after sampling are not offered: n_probs are those of the model"

REASONS: Sequence[tuple[str, str]] = (
    (r"basic.*(props|slots)", "it expects a GGUF file, or a server without slots"),
    (r"basic.*(multiple_addresses|no_ui|no_webui|aliases|split)", _RESTART),
    (r"chat_completion.*::test_chat_completion\[", _OWN_TEXT),
    (r"chat_completion.*::test_chat_completion_(stream\[|with_openai_library|cached_tokens)", _OWN_TEXT),
    (r"chat_completion.*::test_(chat_template|apply_chat_template)", _RESTART),
    (r"chat_completion.*messages7", "it refuses an answer after an answer; here the template decides"),
    (r"chat_completion.*(progress|verbose)", "progress and verbose output are not offered"),
    (r"completion.*::test_completion(_stream)?\[", _OWN_TEXT),
    (r"completion.*(with_openai_library|openai_library_stops|response_fields)", _OWN_TEXT),
    (r"completion.*unified", "slots of this server have their own KV caches"),
    (r"completion.*post_(sampling|backend)", _PROBABILITIES),
    (r"security.*cors", _CORS),
    (r"security.*(media|static)", "images, and files of its page, are not offered"),
    (r"stream", "it needs a router that loads models from a folder"),
    (r"tool_call", _RESTART),
)
"""Why a test that fails is not applicable: by a pattern of its name."""


@dataclass(frozen=True)
class Result:
    """The result of a test.

    Attributes:
        name: The test.
        outcome: `pass`, `fail`, or `n/a`.
        reason: Why it is not applicable, or the message of the failure.
    """

    name: str
    outcome: str
    reason: str = ""


def run_tests(folder: Path, package: str, python: str) -> Iterator[Result]:
    """Run the tests.

    Args:
        folder: The folder `tools/server/tests` of llama.cpp.
        package: A package with a chat template and a context of 256 tokens.
        python: An interpreter with pytest and the packages that the tests need.

    Yields:
        The results.
    """
    for name, flags in FILES.items():
        file = folder / "unit" / f"test_{name}.py"
        if not file.is_file():
            continue
        with served(f"tinyllama-2={package}", *FLAGS, *flags) as server, temporary_folder() as place:
            report = place / "report.xml"
            environment = {**os.environ, "DEBUG_EXTERNAL": "1", "PORT": str(server.port)}
            command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
            subprocess.run(
                [*command, str(file)], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False
            )
            yield from read_report(report)


def read_report(report: Path) -> Iterator[Result]:
    """Read the report of pytest.

    Args:
        report: A file in the format of JUnit.

    Yields:
        The results.
    """
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        bad = [each for each in case if each.tag in ("failure", "error", "skipped")]
        if not bad:
            yield Result(name, "pass")
            continue
        message = " ".join(bad[0].get("message", "").split())[:120]
        if bad[0].tag == "skipped":
            yield Result(name, "n/a", f"llama.cpp skips it: {message}")
            continue
        reason = next((reason for pattern, reason in REASONS if re.search(pattern, name)), "")
        yield Result(name, "n/a", f"{reason} ({message})") if reason else Result(name, "fail", message)
