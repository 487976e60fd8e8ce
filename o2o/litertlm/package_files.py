"""The tokenizer and configuration of a package, as sections of a `.litertlm` file and back.

LiteRT-LM reads the sections `LlmMetadataProto` and `HF_Tokenizer_Zlib` or `SP_Tokenizer`. The configuration
files themselves are stored in a section `GenericBinaryData`, which it ignores: a ZIP archive. So a package
that was packed has the same files as before. For other files, they are derived from the metadata.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o.errors import ModelError
from o2o.litertlm import chat_template
from o2o.litertlm.container import Bundle, Contents
from o2o.litertlm.llm_metadata import TOP_K, TOP_P, LlmMetadata, Sampler

TOKENIZER_JSON, TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"
CONFIGURATION = (
    "config.json",
    "generation_config.json",
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
"""The files of a checkpoint besides its weights and vocabulary. Each is a name or a pattern."""
ARCHIVE_KEY, ARCHIVE = "o2o.content", "package files"
"""The item that marks the section with the archive."""
LIMIT = 1 << 28
"""Bytes of an unpacked section at most. It is in memory."""
_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in the archive: the same files give the same bytes
_DEFAULT_TOP_K = 50  # of transformers, where the file samples and has no `top_k`


def has_vocabulary(folder: Path) -> bool:
    """Check for a vocabulary that LiteRT-LM reads.

    Args:
        folder: A package's folder.

    Returns:
        Whether it has `tokenizer.json` or `tokenizer.model`.
    """
    return any((folder / name).is_file() for name in (TOKENIZER_JSON, TOKENIZER_MODEL))


# ---- from files to sections -------------------------------------------------------------------------------


def sections_of(folder: Path, capacity: int, vocab_size: int) -> tuple[list[Contents], list[str]]:
    """Return the sections for the files of a package.

    Args:
        folder: The folder with the tokenizer and the configuration.
        capacity: S, tokens of context.
        vocab_size: V, number of logits.

    Returns:
        The sections before the model, and notes for the user: what LiteRT-LM will not do.

    Raises:
        ModelError: There is no vocabulary, or a file is damaged.
        OSError: A file cannot be read.
    """
    metadata, notes = _metadata(folder, capacity, vocab_size)
    return [
        Contents.of("LlmMetadataProto", metadata.packed()),
        _vocabulary(folder),
        Contents.of("GenericBinaryData", _archive(folder), {ARCHIVE_KEY: ARCHIVE}),
    ], notes


def _vocabulary(folder: Path) -> Contents:
    if (path := folder / TOKENIZER_JSON).is_file():
        data = path.read_bytes()
        return Contents.of("HF_Tokenizer_Zlib", len(data).to_bytes(8, "little") + zlib.compress(data))
    if (path := folder / TOKENIZER_MODEL).is_file():
        return Contents.of("SP_Tokenizer", path.read_bytes())
    raise ModelError(
        f"{folder} has no {TOKENIZER_JSON} and no {TOKENIZER_MODEL}: give the folder of the checkpoint's "
        "tokenizer with --tokenizer"
    )


def _archive(folder: Path) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (path for pattern in CONFIGURATION for path in sorted(folder.glob(pattern))):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _TIME)
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return data.getvalue()


def _metadata(folder: Path, capacity: int, vocab_size: int) -> tuple[LlmMetadata, list[str]]:
    config, tokenizer_config = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    config = {**_object(config.get("text_config")), **config}
    # As in transformers: the settings of config.json count where there is no generation_config.json.
    own = folder / "generation_config.json"
    generation = _json(own) if own.exists() else config
    notes = []
    stops = _ids(generation.get("eos_token_id")) or _ids(config.get("eos_token_id"))
    if not stops:
        notes.append("no file has an eos_token_id: an answer ends with the context")
        stops = [vocab_size]  # LiteRT-LM needs a stop token: the id of none
    template = _template(folder, tokenizer_config)
    if not template:
        notes.append("the checkpoint has no chat template: LiteRT-LM joins the messages without one")
    if lost := sorted(
        key for key in _UNSUPPORTED if key in generation and generation[key] != _UNSUPPORTED[key]
    ):
        notes.append(f"LiteRT-LM's metadata has no field for {', '.join(lost)}: pass it to the runtime")
    start = _start(folder, tokenizer_config)
    special = _special_tokens(tokenizer_config, _json(folder / "special_tokens_map.json"))
    adapted = chat_template.adapt(template, special, start is not None) if template else chat_template.PLAIN
    pad = _ids(generation.get("pad_token_id")) or _ids(config.get("pad_token_id"))
    metadata = LlmMetadata(
        start=start,
        stops=tuple((stop,) for stop in stops),
        max_tokens=capacity,
        template=adapted,
        sampler=_sampler(generation, vocab_size),
        pad=pad[0] if pad else None,
        suppressed=tuple(_ids(generation.get("suppress_tokens"))),
        supports_thinking="enable_thinking" in template,
        supports_tools="tools" in template,
    )
    return metadata, notes


_UNSUPPORTED: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": None,
    "typical_p": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "stop_strings": None,
}
"""Settings that change the text, have no field in LiteRT-LM's metadata, and their values without effect."""


def _sampler(generation: Mapping[str, Any], vocab_size: int) -> Sampler:
    if not generation.get("do_sample"):
        return Sampler()
    settings = {"top_k": _DEFAULT_TOP_K, "top_p": 1.0, "temperature": 1.0}
    settings |= {key: generation[key] for key in settings if generation.get(key) is not None}
    try:
        top_k = int(settings["top_k"]) or vocab_size  # LiteRT-LM has no value for all tokens
        return Sampler(TOP_P, top_k, float(settings["top_p"]), float(settings["temperature"]))
    except (TypeError, ValueError) as error:
        raise ModelError("generation_config.json: top_k, top_p and temperature must be numbers") from error


def _start(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The ids that the tokenizer puts before a text. LiteRT-LM does not run its post-processor."""
    if (path := folder / TOKENIZER_JSON).is_file():
        tokenizer = load_tokenizer_json(path.read_bytes(), str(path))
        return tuple(tokenizer.encode("").ids) or None
    if not tokenizer_config.get("add_bos_token"):
        return None
    return _sentence_piece_start((folder / TOKENIZER_MODEL).read_bytes(), str(folder / TOKENIZER_MODEL))


def _sentence_piece_start(data: bytes, name: str) -> tuple[int, ...] | None:
    start = _sentence_piece(data, name).trainer_spec.bos_id
    return (start,) if start >= 0 else None


def _special_tokens(*files: Mapping[str, Any]) -> dict[str, str]:
    """Text by role. Later files override earlier ones."""
    tokens: dict[str, str] = {}
    for content in files:
        for role, token in content.items():
            text = token.get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(text, str):
                tokens[role] = text
    return tokens


def _template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """The default chat template, in the order of precedence of transformers; "" for none."""
    if (path := folder / "chat_template.jinja").exists():
        return _text(path)
    template = tokenizer_config.get("chat_template")
    if template is None:
        template = _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in map(_object, template)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool) and one >= 0]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ModelError(f"{path} is not UTF-8: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    return {key: value for key, value in content.items() if value is not None}


def load_tokenizer_json(data: bytes, name: str) -> Any:
    """Parse `tokenizer.json`.

    Args:
        data: Its bytes.
        name: The name of the file, for messages.

    Returns:
        A tokenizer of the library `tokenizers`.

    Raises:
        ModelError: It is damaged.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{name} is not a tokenizer: {' '.join(str(error).split())[:200]}") from error


def _sentence_piece(data: bytes, name: str) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as schema

    model = schema.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{name} is not a SentencePiece model") from error
    return model


# ---- from sections to files -------------------------------------------------------------------------------


def files_of(bundle: Bundle) -> dict[str, bytes]:
    """Return the tokenizer and configuration of a `.litertlm` file, as the files of a package.

    Args:
        bundle: The file.

    Returns:
        Contents by name.

    Raises:
        ModelError: A section is damaged.
    """
    name = bundle.source.name
    try:
        vocabulary = dict(_vocabulary_files(bundle))
        for section in bundle.sections:
            if section.kind == "GenericBinaryData" and section.items.get(ARCHIVE_KEY) == ARCHIVE:
                return vocabulary | _unpacked(bundle.data(section))
        metadata = metadata_of(bundle) or LlmMetadata()
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return vocabulary | dict(_derived(metadata, vocabulary, name))


def metadata_of(bundle: Bundle) -> LlmMetadata | None:
    """Read the metadata of a `.litertlm` file.

    Args:
        bundle: The file.

    Returns:
        The metadata; None if it has none.

    Raises:
        ModelError: The section is damaged.
    """
    section = bundle.section("LlmMetadataProto")
    return None if section is None else LlmMetadata.parse(bundle.data(section))


def _vocabulary_files(bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    if (section := bundle.section("HF_Tokenizer_Zlib")) is not None:
        yield TOKENIZER_JSON, _inflated(bundle.data(section))
    elif (section := bundle.section("SP_Tokenizer")) is not None:
        yield TOKENIZER_MODEL, bundle.data(section)


def _inflated(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(data[8:], LIMIT)
    except zlib.error as error:
        raise ModelError("damaged: its tokenizer cannot be unpacked") from error
    if len(content) != size or not inflate.eof:
        raise ModelError(f"damaged: its tokenizer has {len(content):,} bytes, not {size:,}")
    return content


def _unpacked(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (size := sum(info.file_size for info in archive.infolist())) > LIMIT:
                raise ModelError(f"its package files have {size:,} bytes: the limit is {LIMIT:,}")
            return {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ModelError("damaged: its package files cannot be unpacked") from error


def _derived(
    metadata: LlmMetadata, vocabulary: Mapping[str, bytes], name: str
) -> Iterator[tuple[str, bytes]]:
    """Configuration files with the settings of the metadata, for a file of another program."""
    pieces: Sequence[str] = ()
    tokenizer: Any = None
    if (data := vocabulary.get(TOKENIZER_JSON)) is not None:
        tokenizer = load_tokenizer_json(data, f"{name}: {TOKENIZER_JSON}")
    elif (data := vocabulary.get(TOKENIZER_MODEL)) is not None:
        pieces = [piece.piece for piece in _sentence_piece(data, f"{name}: {TOKENIZER_MODEL}").pieces]

    def ids_of(token: tuple[int, ...] | str) -> tuple[int, ...] | None:
        if not isinstance(token, str):
            return token
        if tokenizer is not None:
            known = tokenizer.token_to_id(token)
            return None if known is None else (known,)
        return (pieces.index(token),) if token in pieces else None

    def text_of(token: tuple[int, ...] | str) -> str:
        if isinstance(token, str):
            return token
        if tokenizer is not None:
            return str(tokenizer.decode(token, skip_special_tokens=False))
        return "".join(pieces[one] for one in token if one < len(pieces)).replace("▁", " ")

    config: dict[str, Any] = {}
    start = None if metadata.start is None else ids_of(metadata.start)
    if start:
        if pieces:
            config = {"add_bos_token": True, "bos_token": text_of(start[:1])}
        elif tokenizer is not None and (bos := tokenizer.id_to_token(start[0])) is not None:
            config = {"bos_token": bos}
            if tuple(tokenizer.encode("").ids) != start:
                yield TOKENIZER_JSON, _with_start(tokenizer, bos, start[0])
    if template := metadata.template or _template_of(metadata.affixes):
        yield "chat_template.jinja", template.encode()
    yield "tokenizer_config.json", json.dumps(config).encode()
    yield "generation_config.json", json.dumps(_generation(metadata, ids_of, text_of)).encode()


def _with_start(tokenizer: Any, bos: str, number: int) -> bytes:
    """`tokenizer.json` of a tokenizer that puts one token before a text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], special_tokens=[(bos, number)]
    )
    return str(tokenizer.to_str()).encode()


def _generation(metadata: LlmMetadata, ids_of: Any, text_of: Any) -> dict[str, Any]:
    ids, texts = [], []
    for stop in metadata.stops:
        known = ids_of(stop)
        if known is not None and len(known) == 1:
            ids += known
        else:
            texts.append(text_of(stop))
    generation: dict[str, Any] = {"do_sample": False}
    if ids:
        generation["eos_token_id"] = ids
    if texts:
        generation["stop_strings"] = texts
    if metadata.suppressed:
        generation["suppress_tokens"] = list(metadata.suppressed)
    sampler = metadata.sampler
    if sampler is not None and sampler.kind in (TOP_K, TOP_P) and sampler.temperature > 0 and sampler.k != 1:
        generation |= {"do_sample": True, "top_k": sampler.k, "temperature": round(sampler.temperature, 6)}
        if sampler.kind == TOP_P and 0 < sampler.p <= 1:
            generation["top_p"] = round(sampler.p, 6)
    return generation


def _template_of(affixes: Mapping[str, tuple[str, str]] | None) -> str:
    """The text before and after each message, as a chat template."""
    if not affixes or not any("".join(pair) for pair in affixes.values()):
        return ""
    cases = "".join(
        f"{{% {'el' * (number > 0)}if message['role'] == {json.dumps(role)} %}}"
        f"{{{{ {json.dumps(before)} }}}}{{{{ message['content'] }}}}{{{{ {json.dumps(after)} }}}}"
        for number, (role, (before, after)) in enumerate(affixes.items())
    )
    opening = json.dumps(affixes.get("assistant", ("", ""))[0])
    generation = f"{{% if add_generation_prompt %}}{{{{ {opening} }}}}{{% endif %}}"
    return f"{{% for message in messages %}}{cases}{{% endif %}}{{% endfor %}}{generation}"
