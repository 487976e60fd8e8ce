"""The files of a package, and the errors for missing or wrong ones."""

from __future__ import annotations

import json
import warnings

import pytest

from o2o.errors import ModelError
from o2o.litertlm.container import PREFILL_DECODE, Contents, plan_bundle, read_bundle
from o2o.litertlm.package_files import sections_of
from o2o.streams import open_file
from runtime_py.generation.generation_config import UnsupportedSettingWarning
from runtime_py.generation.sampling import GREEDY
from runtime_py.package import Package
from tests.litertlm import TOY, pack
from tests.litertlm import write_package as write_litertlm_package
from tests.runtime_py.tokenizers_on_disk import write_sentencepiece
from tests.runtime_py.toy import Toy


def package(folder, **files) -> Package:
    (folder / "model.tflite").write_bytes(b"")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Package.load(folder)


def test_the_circle_file_comes_first(tmp_path):
    for name in ("model.tflite", "model.circle"):
        (tmp_path / name).write_bytes(b"")
    assert Package.load(tmp_path).model.name == "model.circle"


def test_a_file_may_be_named(tmp_path):
    (tmp_path / "tinyllama_q8_ekv1024.tflite").write_bytes(b"")
    opened = Package.load(tmp_path / "tinyllama_q8_ekv1024.tflite")
    assert (opened.directory, opened.model.name) == (tmp_path, "tinyllama_q8_ekv1024.tflite")
    (tmp_path / "elsewhere").mkdir()
    assert Package.load(opened.model, tmp_path / "elsewhere").directory == tmp_path / "elsewhere"
    with pytest.raises(ModelError, match="no such folder"):
        Package.load(opened.model, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({}, []),
        ({"config": {"eos_token_id": 2}}, [2]),
        ({"config": {"eos_token_id": [2, 3]}}, [2, 3]),
        ({"config": {"eos_token_id": 0}}, [0]),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [5, 7]}}, [5, 7]),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": 5}}, [5]),
        ({"config": {"eos_token_id": 2}, "generation_config": {}}, [2]),
        ({"config": {"eos_token_id": None}}, []),
    ],
)
def test_end_of_sequence(tmp_path, files, eos):
    assert package(tmp_path, **files).eos == frozenset(eos)


def test_end_of_sequence_that_is_no_id(tmp_path):
    with pytest.raises(
        ModelError, match=r"config.json: eos_token_id is '</s>': it must be a token id or a list"
    ):
        _ = package(tmp_path, config={"eos_token_id": "</s>"}).eos


def test_settings_that_are_not_supported_are_named_once(tmp_path):
    write_sentencepiece(tmp_path)
    opened = package(tmp_path, generation_config={"num_beams": 2})
    opened.model.write_bytes(Toy(vocab=380).file)
    with opened:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            greedy = list(opened.stream([1], max_new_tokens=3, sampling=GREEDY))
        with pytest.warns(UnsupportedSettingWarning, match="not supported, and ignored: num_beams"):
            assert list(opened.stream([1], max_new_tokens=3)) == greedy
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            list(opened.stream([1], max_new_tokens=3))


def test_files_are_read_when_asked_for(tmp_path):
    (tmp_path / "config.json").write_text("{")
    opened = package(tmp_path)
    with pytest.raises(ModelError, match="is not JSON"):
        _ = opened.eos


def test_a_litertlm_file_is_a_package(tmp_path):
    folder = write_litertlm_package(tmp_path / "toy")
    file = pack(folder)
    with Package.load(folder) as expected, Package.load(file) as packed:
        assert packed.tokenizer.encode("a b c") == expected.tokenizer.encode("a b c") == [0, 3, 4, 5]
        assert packed.eos == {1}
        prompt = "a b c d e f g"
        assert packed.generate(prompt, max_new_tokens=6) == expected.generate(prompt, max_new_tokens=6)
        assert packed.chat()._template.render([{"role": "user", "content": "a"}]) == "<s><u> a "
    (folder / "model.tflite").unlink()
    file.rename(folder / "model.litertlm")
    with Package.load(folder) as moved:
        assert moved.generate("a b", max_new_tokens=3)


def test_a_litertlm_file_of_another_program(tmp_path):
    """Without the package's files: what LiteRT-LM itself reads is enough."""
    folder = write_litertlm_package(tmp_path / "toy")
    bundle = read_bundle(open_file(pack(folder)))
    foreign = tmp_path / "foreign.litertlm"
    sections = [
        Contents.of(section.kind, bundle.data(section), section.items)
        for section in bundle.sections
        if section.kind != "GenericBinaryData"
    ]
    with open(foreign, "wb") as sink:
        plan_bundle({}, sections).write(sink)
    with Package.load(folder) as expected, Package.load(foreign) as opened:
        assert opened.generate("a b c", max_new_tokens=6) == expected.generate("a b c", max_new_tokens=6)
        assert opened.eos == {1}


@pytest.mark.parametrize("layout", ["BTNH", "BNTH"])
def test_a_litertlm_file_whose_model_has_no_contract(tmp_path, layout):
    """As those of Google's converter: what an input is shows in the graph."""
    toy = Toy(**TOY | {"cache_layout": layout})
    sections = sections_of(write_litertlm_package(tmp_path / "toy"), 16, toy.vocab)[0]
    sections.append(Contents.of("TFLiteModel", toy.file_without_contract, {"model_type": PREFILL_DECODE}))
    with open(tmp_path / "x.litertlm", "wb") as sink:
        plan_bundle({}, sections).write(sink)
    with Package.load(tmp_path / "x.litertlm") as opened:
        generated = [token.id for token in opened.stream("a b c", max_new_tokens=5)]
    expected = toy.greedy([0, 3, 4, 5], 5)
    assert generated == expected[: len(generated)]
    assert len(generated) == 5 or generated[-1] == 1


def test_a_language_model_in_parts_is_refused(tmp_path):
    """As Gemma 3n's, whose embeddings another model computes."""
    bundle = read_bundle(open_file(pack(write_litertlm_package(tmp_path / "toy"))))
    sections = [Contents.of(one.kind, bundle.data(one), one.items) for one in bundle.sections]
    sections.append(Contents.of("TFLiteModel", b"", {"model_type": "tf_lite_embedder"}))
    with open(tmp_path / "parts.litertlm", "wb") as sink:
        plan_bundle({}, sections).write(sink)
    with pytest.raises(ModelError, match=r"parts.litertlm: .* needs the sections tf_lite_embedder"):
        Package.load(tmp_path / "parts.litertlm").engine()


def test_damaged_litertlm_files(tmp_path):
    data = pack(write_litertlm_package(tmp_path / "toy")).read_bytes()
    for content, message in (
        (data[:20_000], "truncated LiteRT-LM file"),
        (b"\x89PNG\r\n", "no LiteRT-LM file"),
        (b"", "no LiteRT-LM file"),
    ):
        (tmp_path / "x.litertlm").write_bytes(content)
        with pytest.raises(ModelError, match=message):
            Package.load(tmp_path / "x.litertlm")
