"""Conversations: turns, what is forgotten, and what is computed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from o2o.errors import ModelError, UsageError
from runtime_py.package import Package
from runtime_py.run import main
from tests.conftest import ROOT
from tests.processes import spawn
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_llama_json, write_sentencepiece
from tests.runtime_py.toy import Toy

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}a"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('No system here.') }}{% endif %}" + TEMPLATE
VOCAB, CAPACITY = 380, 48


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(vocab=VOCAB, prefill_length=0, cached_lengths=[8], capacity=CAPACITY)


@pytest.fixture(scope="module")
def directory(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces = write_config(write_sentencepiece(tmp_path_factory.mktemp("pieces")), **LLAMA)
    folder = write_llama_json(tmp_path_factory.mktemp("package"), pieces)
    (folder / "model.tflite").write_bytes(toy.file)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def strict(directory: Path, tmp_path: Path) -> Path:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(STRICT)
    return tmp_path


def expected(toy: Toy, directory: Path, messages: list[dict[str, str]], count: int) -> tuple[list[int], str]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
    new = toy.greedy(ids, count)
    return new, tokenizer.decode(new, skip_special_tokens=True)


def test_turns(toy: Toy, directory: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}]
    with Package.load(directory) as package:
        conversation = package.chat("Be kind.", max_new_tokens=4)
        for text in ("a dog", "the cat"):
            messages.append({"role": "user", "content": text})
            ids, answer = expected(toy, directory, messages, 4)
            tokens = list(conversation.say(text))
            assert [token.id for token in tokens] == ids
            assert "".join(token.text for token in tokens) == answer
            messages.append({"role": "assistant", "content": answer})
            assert conversation.messages == messages
        assert conversation.session.runs[0].start > 8, "the first turn is not read again"
        conversation.reset()
        assert conversation.messages == messages[:1]


def test_an_answer_that_is_broken_off_is_what_was_said(directory: Path) -> None:
    with Package.load(directory) as package:
        conversation = package.chat()
        tokens = conversation.say("a dog")
        answer = next(tokens).text + next(tokens).text
        tokens.close()
        assert conversation.messages == [
            {"role": "user", "content": "a dog"},
            {"role": "assistant", "content": answer},
        ]
        whole = list(conversation.say("go on"))
        with Package.load(directory) as other:
            again = other.chat()
            again.messages = conversation.messages[:2]
            assert list(again.say("go on")) == whole


def test_a_message_during_an_answer_is_refused_and_leaves_it(toy: Toy, directory: Path) -> None:
    with Package.load(directory) as package:
        conversation = package.chat(max_new_tokens=4)
        ids, answer = expected(toy, directory, [{"role": "user", "content": "a dog"}], 4)
        tokens = conversation.say("a dog")
        first = next(tokens)
        with pytest.raises(UsageError, match="is generating another text"):
            next(conversation.say("the cat"))
        assert [first.id, *(token.id for token in tokens)] == ids
        assert [message["content"] for message in conversation.messages] == ["a dog", answer]


def test_reset_during_an_answer_forgets_it(directory: Path) -> None:
    with Package.load(directory) as package:
        conversation = package.chat("Be kind.", max_new_tokens=4)
        tokens = conversation.say("a dog")
        next(tokens)
        conversation.reset()
        list(tokens)
        assert conversation.messages == [{"role": "system", "content": "Be kind."}]


def test_what_does_not_fit_was_not_said(directory: Path) -> None:
    with Package.load(directory) as package:
        conversation = package.chat(max_new_tokens=2)
        list(conversation.say("a"))
        before = list(conversation.messages)
        with pytest.raises(UsageError, match=r"has \d+ tokens, the KV caches hold 48"):
            list(conversation.say("a dog " * 30))
        assert conversation.messages == before
        list(conversation.say("b"))


def test_without_a_template(directory: Path, tmp_path: Path) -> None:
    for name in ("model.tflite", "tokenizer.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    with pytest.raises(ModelError, match="has no chat template"):
        Package.load(tmp_path).chat()


# `python -m runtime_py.run --chat`


def chat(monkeypatch: pytest.MonkeyPatch, directory: Path, lines: str, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return main([str(directory), "--chat", "--max-new-tokens", "3", *options])


def test_a_line_is_a_message(
    toy: Toy, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "user", "content": "a dog"}]
    first = expected(toy, directory, messages, 3)[1]
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "and"}]
    second = expected(toy, directory, messages, 3)[1]
    assert chat(monkeypatch, directory, "a dog\n\nand\n/reset\na dog") == 0
    assert capsys.readouterr() == (f"{first}\n{second}\n{first}\n", "")
    assert main([str(directory), "--chat", "--max-new-tokens", "3", "--prompt", "a dog"]) == 0
    assert capsys.readouterr() == (f"{first}\n", "")


def test_what_does_not_fit_is_told_and_the_rest_goes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, directory, f"{'a dog ' * 30}\na dog\n") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.count("\n") == 1
    assert err.endswith("with a larger --max-length (/reset starts a new conversation)\n")
    assert chat(monkeypatch, directory, "a dog " * 30) == 2


def test_stats_of_every_answer(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, directory, "a dog\nand\n", "--stats") == 0
    err = capsys.readouterr().err
    assert (err.count("load:"), err.count("prefill:"), err.count("decode:")) == (1, 2, 2)


@pytest.mark.parametrize("hint", [" (/reset starts a new conversation)", ""])
def test_the_context_is_full(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hint: str
) -> None:
    """/reset is for those who can say more."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("a dog\n"))
    options = [] if hint else ["--prompt", "a dog"]
    assert main([str(directory), "--chat", *options]) == 0
    err = capsys.readouterr().err
    assert err.startswith("run: the context is full: the KV caches hold 48 tokens;")
    assert err.endswith(f"--max-length for longer texts{hint}\n")


def test_a_template_that_refuses(strict: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(strict), "--chat", "--system", "Be kind.", "--prompt", "a dog"]) == 2
    assert "refuses the messages: No system here." in capsys.readouterr().err
    assert main([str(strict), "--system", "Be kind."]) == 2
    assert capsys.readouterr().err == "run: --system needs --chat\n"


def test_ctrl_c_ends_an_answer_and_not_the_conversation(directory: Path, tmp_path: Path) -> None:
    """An answer that would go on for long is broken off; the next message is answered, until it is, too."""
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    long = Toy(vocab=VOCAB, prefill_length=0, cached_lengths=[8], capacity=100_000)
    (tmp_path / "model.tflite").write_bytes(long.file)
    command = [sys.executable, "-m", "runtime_py.run", str(tmp_path), "--chat", "--stop", "no such text"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with spawn(command, cwd=ROOT, **pipes) as process:
        for lines in (b"a dog\n", b"/reset\na dog\n"):
            process.stdin.write(lines)
            process.stdin.flush()
            output = b""
            while len(output) < 50:
                output += os.read(process.stdout.fileno(), 100)
            process.send_signal(signal.SIGINT)
            while not output.endswith(b"\n"):
                output += os.read(process.stdout.fileno(), 1 << 16)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, b"")


# Text that is not UTF-8, and what templates see.


def chat_bytes(monkeypatch: pytest.MonkeyPatch, directory: Path, lines: bytes, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    return main([str(directory), "--chat", "--max-new-tokens", "3", *options])


def test_bytes_that_are_no_text_are_refused_and_the_rest_goes_on(
    toy: Toy, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = expected(toy, directory, [{"role": "user", "content": "a dog"}], 3)[1]
    for bad, name in (
        (b"\xff", "0xFF"),
        (b"a \xc3", "0xC3"),
        (b"\xed\xa0\x80", "0xED"),
        (b"x\x80" * 9, "0x80"),
    ):
        assert chat_bytes(monkeypatch, directory, bad + b"\na dog\r\n") == 0
        out, err = capsys.readouterr()
        assert out == f"{answer}\n", "the refused message is not in the conversation"
        assert (
            err == f"run: the text is not UTF-8: it has the byte {name} (/reset starts a new conversation)\n"
        )
    assert chat_bytes(monkeypatch, directory, b"a dog\n\xff") == 2, "the last message was refused"


def test_unusual_lines(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = b"nul\x00inside\n" + b"a" * 1_000_000 + b"\n\x0b\n\x1b[31m\n"
    assert chat_bytes(monkeypatch, directory, lines) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2
    assert err.count("\n") == 1
    assert "KV caches hold 48" in err


def test_a_lone_surrogate(directory: Path) -> None:
    with Package.load(directory) as package:
        with pytest.raises(UsageError, match=r"the text is not UTF-8: it has the lone surrogate U\+D800"):
            package.generate("a \ud800 dog")
        conversation = package.chat(max_new_tokens=2)
        with pytest.raises(UsageError, match=r"not UTF-8: it has the lone surrogate U\+DFFF"):
            list(conversation.say("\udfff"))
        assert conversation.messages == []
        assert len(list(conversation.say("a dog"))) == 2


TOOLS = (
    "{{ tools | tojson }}{{ mode }}{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.content }}{% endfor %}"
)


def test_tools_and_their_answers(toy: Toy, directory: Path, tmp_path: Path) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(TOOLS)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    with Package.load(tmp_path) as package:
        conversation = package.chat(tools=[{"name": "f"}], template_args={"mode": "x"}, max_new_tokens=3)
        conversation.messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [call]},
        ]
        result = {"role": "tool", "name": "f", "content": "b"}
        ids = theirs.apply_chat_template(
            [*conversation.messages, result], tools=[{"name": "f"}], mode="x", add_generation_prompt=True
        ).input_ids
        assert [token.id for token in conversation.say(result)] == toy.greedy(ids, 3)
        assert [message["role"] for message in conversation.messages] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]


def test_variables_from_the_command_line(
    toy: Toy, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(TOOLS)
    (tmp_path / "tools.json").write_text('[{"name": "f"}]')
    flags = ["--tools", str(tmp_path / "tools.json"), "--template-arg", "mode=7", "--max-new-tokens", "3"]
    assert main([str(tmp_path), "--chat", "--prompt", "a", *flags]) == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs.apply_chat_template(
        [{"role": "user", "content": "a"}], tools=[{"name": "f"}], mode=7, add_generation_prompt=True
    ).input_ids
    assert capsys.readouterr().out == f"{theirs.decode(toy.greedy(ids, 3), skip_special_tokens=True)}\n"
    assert main([str(tmp_path), "--chat", "--prompt", "a", "--template", "rag"]) == 2
    assert "has no chat template 'rag': it has default" in capsys.readouterr().err
