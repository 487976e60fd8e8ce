"""convert_to_tflite.py: a checkpoint as one TFLite file with AI Edge's signatures."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from export import pipeline, shell
from export.tflite_commands import Conversion
from o2o import formats
from o2o.errors import ModelError, UsageError
from runtime_py.package import Package
from tests.checkpoints import GROUPED, write_checkpoint, write_first_layers
from tests.conftest import ROOT
from tests.pipelines import in_process
from tests.processes import spawn
from tests.test_guide import DEMO, PROMPTS, assert_generates_the_same
from tinyllama.convert_to_tflite import conversion_of, main, parser, target_of

SIZES = ["--prefill_seq_lens=4,8", "--kv_cache_max_len=32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), **GROUPED | {"num_hidden_layers": 1})


def asked(*flags: str) -> Conversion:
    return conversion_of(parser().parse_args(flags), DEMO)


# --- flags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        (["--kv_cache_max_len=1024", "--quantize=true"], "tinyllama_q8_ekv1024.tflite"),
        (["--kv_cache_max_len=256", "--quantize=false"], "tinyllama_f32_ekv256.tflite"),
        ([], "tinyllama_q8_ekv1280.tflite"),
        (["--quantize"], "tinyllama_q8_ekv1280.tflite"),
        (["--noquantize"], "tinyllama_f32_ekv1280.tflite"),
        (["--quantize=float16"], "tinyllama_f16_ekv1280.tflite"),
        (["--quantize=dynamic_int4_block32"], "tinyllama_q4_block32_ekv1280.tflite"),
        (["--quantize=dynamic_int4_block128"], "tinyllama_q4_block128_ekv1280.tflite"),
        (["--quantize=weight_only_int8", "--output_name_prefix=other"], "other_wi8_ekv1280.tflite"),
        (["--output_path=/tmp/my.tflite"], "my.tflite"),
    ],
)
def test_the_files_name(flags: list[str], file: str) -> None:
    args = parser().parse_args(flags)
    assert target_of(args, conversion_of(args, DEMO)) == Path("/tmp", file)


def test_prefill_lengths_in_one_flag_or_in_several() -> None:
    assert asked("--prefill_seq_lens=256,64", "--prefill_seq_lens", "128").prefill_lengths == [64, 128, 256]
    assert asked("--prefill_seq_lens=64,64").prefill_lengths == [64]
    assert asked().prefill_lengths == [64]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("", False), ("--noNAME", False), ("--NAME=false", False), ("--NAME=no", False)),
        *(("--NAME", True), ("--NAME=true", True), ("--NAME=1", True), ("--NAME=T", True)),
    ],
)
@pytest.mark.parametrize("name", ["use_flash_attention", "enable_hlfb", "output_logits_on_prefill"])
def test_booleans_are_absls(name: str, flag: str, value: bool) -> None:
    args = parser().parse_args([flag.replace("NAME", name)] if flag else [])
    assert getattr(args, name) is value


def test_no_more_positions_than_the_model_has(checkpoint: Path) -> None:
    assert conversion_of(parser().parse_args([]), checkpoint).capacity == GROUPED["max_position_embeddings"]


def test_the_commands() -> None:
    commands = "".join(
        asked("--prefill_seq_lens=64,128", "--quantize=true", "--kv_cache_max_len=512").commands()
    )
    assert "-m export " in commands
    assert "--max-length 512 --prefill-lengths 64,128 --cache static" in commands
    assert "--attn-implementation grouped" in commands
    assert "merge.circles.py prefill_64.circle prefill_128.circle decode.circle" in commands
    assert "| quantize.weights.py --recipe dynamic_int8 " in commands
    assert "| lower.litert.py --flash never | sign.ai_edge.py | bind.weights.py -o model.tflite" in commands
    reported = "".join(asked("--report=a b.json").commands())
    assert (
        f"| quantize.weights.py --recipe dynamic_int8 --report '{Path.cwd()}/a b.json' | fuse.fc.py | lower"
        in (" ".join(reported.replace("\\", "").split()))
    )
    more = ["--quantize=false", "--enable_hlfb", "--output_logits_on_prefill", "--use_flash_attention"]
    commands = "".join(asked(*more).commands())
    assert "quantize" not in commands
    assert "--attn-implementation flash\n" in commands
    assert "| sign.ai_edge.py --output_logits_on_prefill | wrap.composites.py | bind.weights.py" in commands


@pytest.mark.parametrize(
    ("flags", "blocks"),
    [
        (["--flash_q_block=16", "--flash_kv_block=128"], "flash:16,128"),
        (["--flash_q_block=16"], "flash:16,512"),
        (["--flash_kv_block=128", "--prefill_seq_lens=64,256"], "flash:64,128"),
    ],
)
def test_blocks_of_flash_attention(flags: list[str], blocks: str) -> None:
    assert f"--attn-implementation {blocks}\n" in asked("--use_flash_attention", *flags).commands()[0]


def test_scores_that_are_capped_are_one_operator_too(tmp_path: Path) -> None:
    config = {"model_type": "gemma2", "max_position_embeddings": 128, "attn_logit_softcapping": 50.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    conversion = conversion_of(parser().parse_args([]), tmp_path)
    assert "--attn-implementation grouped\n" in conversion.commands()[0]
    assert "--attn-implementation flash\n" in replace(conversion, flash=True).commands()[0]


def test_positions_in_the_words_of_gpt_2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_positions": 96}')
    assert conversion_of(parser().parse_args([]), tmp_path).capacity == 96
    (tmp_path / "config.json").write_text('{"max_position_embeddings": "many"}')
    with pytest.raises(ModelError, match=r"no usable config.json \(max_position_embeddings is 'many'\)"):
        conversion_of(parser().parse_args([]), tmp_path)


# --- what is refused, before anything is done -----------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    code = main(flags)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "internal error" not in err
    return code, err.removeprefix("convert_to_tflite.py: ").strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize=false", "--report=x.json"], "--report describes quantization: it needs --quantize"),
        (["--report=/no/such/x.json"], "--report: no such folder: /no/such"),
        (["--quantize=int3"], "unknown recipe 'int3': choose from dynamic_int8, weight_only_int8"),
        (
            ["--prefill_seq_lens=64,128", "--kv_cache_max_len=100"],
            "--kv_cache_max_len 100 is below the prefill length 128: use 128 or more",
        ),
        (
            ["--kv_cache_max_len=4096"],
            "--kv_cache_max_len 4096: this llama model has 2048 positions: use 2048 or less",
        ),
        (["--use_flash_attention", "--flash_kv_block=0"], "must be 1 or more"),
        (["--prefill_seq_lens=1"], "a prefill reads 2 tokens or more"),
        (["--prefill_seq_lens=all"], "'all' is not a list of numbers such as 64,128,256"),
        (["--use_flash_attention=maybe"], "'maybe' is neither true nor false"),
        (["--flash_q_block=64"], "need --use_flash_attention"),
        (["--output_path=/no/such/folder"], "--output_path: no such folder: /no/such/folder"),
        (["--output_path=/dev/full"], "--output_path: /dev/full is not a folder"),
        (["--kv_cache_max_len=abc"], "argument --kv_cache_max_len: 'abc' is not an integer"),
        (["--output_path=/no/such/model.tflite"], "--output_path: no such folder: /no/such"),
        (["--checkpoint_path=/no/such/checkpoint"], "no such folder: /no/such/checkpoint"),
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
        (["--kv_cache_max_len=0"], "--kv_cache_max_len 0 is below the prefill length 64"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    code, said = refused(capsys, *flags)
    assert code == 2
    assert message in said


def test_a_checkpoint_in_the_wrong_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    suffixes = ".safetensors, .bin"
    shutil.copy(checkpoint / "config.json", tmp_path)
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    for path in (tmp_path, tmp_path / "model.h5"):
        code, said = refused(capsys, f"--checkpoint_path={path}")
        assert code == 1
        assert suffixes in said
    (tmp_path / "model.safetensors").write_bytes(b"no such thing at all")
    code, said = refused(capsys, f"--checkpoint_path={tmp_path}")
    assert code == 1
    assert "model.safetensors" in said


def test_a_weights_file_that_is_not_the_one_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "both"))
    shutil.copy(folder / "model.safetensors", folder / "pytorch_model.bin")
    code, said = refused(capsys, f"--checkpoint_path={folder / 'pytorch_model.bin'}")
    assert code == 1
    assert "also holds model.safetensors, which takes precedence" in said


# --- the whole road -------------------------------------------------------------------------------------


def test_a_file_of_weights_does_for_its_folder(
    shared_directory: Path, tmp_path: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also: what is said, what is left, and what is in the file."""
    weights = checkpoint / "model.safetensors"
    with in_process(shared_directory):
        flags = [f"--checkpoint_path={weights}", *SIZES, f"--output_path={tmp_path}", "--quantize=float16"]
        assert main(flags) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tinyllama_f16_ekv32.tflite"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "export: prefill_4, prefill_8, decode of 32 tokens: about" in err
    assert "sign.ai_edge.py: prefill_4, prefill_8, decode: 2 caches of [1, 32, 2, 10]" in err
    assert err.splitlines()[-1].startswith(
        f"convert_to_tflite.py: wrote {tmp_path}/tinyllama_f16_ekv32.tflite, 0."
    )
    model = formats.load(tmp_path / "tinyllama_f16_ekv32.tflite")
    assert {s.name: "logits" in s.outputs for s in model.signatures} == {
        "prefill_4": False,
        "prefill_8": False,
        "decode": True,
    }
    filters = [entry["filter"] for entry in model.history if "filter" in entry]
    assert filters[-4:] == ["quantize.weights.py", "fuse.fc.py", "lower.litert.py", "sign.ai_edge.py"]


def test_a_command_that_fails_leaves_the_old_file(
    tmp_path: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversion, "commands", lambda self: ["echo half > model.tflite; exit 3"])
    target = tmp_path / "model.tflite"
    flags = [f"--checkpoint_path={checkpoint}", *SIZES, f"--output_path={target}"]
    assert main(flags) == 1
    assert not list(tmp_path.iterdir())
    assert "a command failed (exit code 3), nothing was written" in capfd.readouterr().err
    target.write_bytes(b"old")
    assert main(flags) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]
    assert target.read_bytes() == b"old"
    assert f"(exit code 3), {target} is unchanged" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_commands_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys; from pathlib import Path; from o2o.cli import command\n"
        "from export import processes, shell, staging\n"
        "def body():\n"
        "    with processes.signals_interrupt(), staging.staging_folder(Path('.')) as folder:\n"
        "        shell.run(['echo $$ > ../started; sleep 60 | cat > half'], folder)\n"
        "sys.exit(command.run('test', body))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    with spawn([sys.executable, "-c", program], cwd=tmp_path, env=environment) as process:
        started = tmp_path / "started"
        for _ in range(200):
            if started.exists() and started.read_text():
                break
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=20) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["started"]
    group = int(started.read_text())
    for _ in range(100):
        if subprocess.run(["pgrep", "-g", str(group)], stdout=subprocess.DEVNULL).returncode:
            return
        time.sleep(0.05)
    pytest.fail("the commands go on")


def test_commands_that_fail_tell_their_exit_code(tmp_path: Path) -> None:
    with pytest.raises(shell.StepFailed) as failed:
        shell.run(["true | (exit 7) | true; echo not here > file", "echo not here > file"], tmp_path)
    assert failed.value.code == 7
    assert not list(tmp_path.iterdir())


def test_a_package_of_tflite(shared_directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `make package FORMAT=tflite` makes it; a Circle model that was there before goes."""
    from transformers import AutoTokenizer

    package = shared_directory / "tflite-package"
    checkpoint = shared_directory / "demo-of-one-layer"
    with FileLock(f"{package}.lock"):
        if not (package / "model.tflite").exists():
            write_first_layers(DEMO, checkpoint, 1)
            package.mkdir()
            (package / "model.circle").write_bytes(b"of an earlier build")
            flags = ["--format", "tflite", "--max-length", "48", "--prefill-lengths", "16,32"]
            flags += ["--model", str(checkpoint)]
            with in_process(shared_directory):
                assert pipeline.main(["--package", str(package), *flags]) == 0
            assert "model.circle, which model.tflite replaces" in capfd.readouterr().err
    found = {path.name for path in package.iterdir()}
    assert found >= {"model.tflite", "config.json", "tokenizer.json"}
    assert "model.circle" not in found
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    assert_generates_the_same(Package.load(package), checkpoint, [ids for ids in prompts if len(ids) <= 48])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize", "dynamic_int8"], "--quantize needs --format tflite"),
        (["--format", "tflite", "--dtype", "float16"], "--quantize float16 instead of --dtype"),
        (["--format", "tflite", "--quantize", "int3"], "unknown recipe 'int3'"),
    ],
)
def test_wrong_usage_of_the_pipeline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], message: str
) -> None:
    from tinyllama.pipeline import main as seeds_pipeline

    assert seeds_pipeline([*flags, "--package", str(tmp_path / "package")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "package").exists()


def test_a_length_that_no_package_has() -> None:
    with pytest.raises(UsageError, match="a prefill reads 2 tokens or more"):
        Conversion(DEMO, 64, [])
