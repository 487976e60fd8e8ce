"""What LiteRT's Interpreter would take all the same, or refuse in words of its own, is explained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from o2o.errors import UsageError
from runtime_py.interpreter import InputError, Interpreter
from tests.runtime_py.toy import Toy
from tests.tolerances import assert_close

T, S, K, H = 4, 8, 2, 3


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(prefill_length=0, cached_lengths=[T], capacity=S, ai_edge=True)


@pytest.fixture
def interpreter(toy) -> Interpreter:
    interpreter = Interpreter(model_content=toy.file, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def caches() -> dict[str, Any]:
    return {f"kv_cache_{kind}_0": np.zeros((1, S, K, H), np.float32) for kind in "kv"}


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_does_what_litert_does(toy, interpreter):
    assert list(interpreter.get_signature_list()) == ["prefill_4", "decode"]
    prefill, decode = map(interpreter.get_signature_runner, ("prefill_4", "decode"))
    assert prefill.get_input_details()["input_pos"]["shape"].tolist() == [T]
    assert decode.get_output_details()["logits"]["shape"].tolist() == [1, 1, toy.vocab]
    past = prefill(tokens=ids(1, 2, 0, 0)[None], input_pos=np.arange(T, dtype=np.int32), **caches())
    assert set(past) == {"kv_cache_k_0", "kv_cache_v_0"}
    for position, token in enumerate([2, 7, 5], start=1):
        past = decode(tokens=ids(token)[None], input_pos=ids(position), **past)
        logits = past.pop("logits")[0, 0]
    assert_close(logits, toy.logits([1, 2, 7, 5]))


def test_from_a_file(toy, tmp_path):
    (tmp_path / "model.tflite").write_bytes(toy.file)
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    decode = interpreter.get_signature_runner("decode")
    logits = decode(tokens=ids(3)[None], input_pos=ids(0), **caches())["logits"]
    assert_close(logits[0, 0], toy.logits([3]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_pos": ids(0, 1, 0, 0)}, "input_pos is padded with zeros at index 2: .*rotary embedding"),
        ({"input_pos": ids(0, 1, 0, 0)}, r"np.arange\(0, 4, dtype=np.int32\)$"),
        ({"input_pos": ids(0, 0, 0, 0)}, "padded with zeros at index 1"),
        ({"input_pos": ids(3, 0, 0, 0)}, r"padded with zeros at index 1: .*np.arange\(3, 7,"),
        ({"input_pos": ids(0, 1, 1, 2)}, "input_pos jumps from 1 to 1 at index 2"),
        ({"input_pos": ids(0, 1, 3, 4)}, "input_pos jumps from 1 to 3 at index 2"),
        (
            {"input_pos": ids(5, 6, 7, 8)},
            "input_pos is 5 to 8, but the caches hold 0 to 7: .*kv_cache_max_len",
        ),
        ({"input_pos": ids(-1, 0, 1, 2)}, "input_pos is -1 to 2, but the caches hold 0 to 7"),
        ({"input_pos": np.arange(4)}, r"input_pos is int64 \[4\], not int32 \[4\]: pass np.arange"),
        ({"input_pos": ids(0)}, r"input_pos is int32 \[1\], not int32 \[4\]: pass np.arange\(p, p \+ 4"),
        ({"tokens": ids(1, 2)[None]}, r"tokens is int32 \[1, 2\], not int32 \[1, 4\]: pad a shorter prompt"),
        ({"tokens": np.ones((1, 4), np.int64)}, r"tokens is int64 \[1, 4\], not int32 \[1, 4\]"),
        ({"tokens": [[1, 2, 3, 4]]}, "tokens is a list, not a numpy array"),
        (
            {"kv_cache_k_0": np.zeros((1, 16, K, H), np.float32)},
            r"kv_cache_k_0 is float32 \[1, 16, 2, 3\], not float32 \[1, 8, 2, 3\]: "
            r"start with np.zeros\(\(1, 8, 2, 3\), np.float32\)",
        ),
        ({"kv_cache_v_0": np.zeros((1, K, S, H), np.float32)}, r"kv_cache_v_0 is float32 \[1, 2, 8, 3\]"),
        ({"kv_cache_v_0": np.zeros((1, S, K, H))}, r"kv_cache_v_0 is float64 .*, not float32"),
        ({"kv_cache_k_1": np.zeros(1)}, "there is no kv_cache_k_1: its inputs are input_pos, tokens"),
        ({"tokens": None}, "tokens missing: its inputs are input_pos, tokens, kv_cache_k_0, kv_cache_v_0"),
        ({"tokens": None, "token": ids(1)}, "tokens missing and there is no token: its inputs"),
    ],
)
def test_explains(interpreter, changed, message):
    given = {"tokens": ids(1, 2, 3, 4)[None], "input_pos": ids(0, 1, 2, 3)} | caches() | changed
    prefill = interpreter.get_signature_runner("prefill_4")
    with pytest.raises(InputError, match=f"^prefill_4: .*{message}") as error:
        prefill(**{name: value for name, value in given.items() if value is not None})
    assert "\n" not in str(error.value)


def test_a_step_beyond_the_caches(interpreter):
    decode = interpreter.get_signature_runner("decode")
    with pytest.raises(InputError, match="decode: input_pos is 8 to 8, but the caches hold 0 to 7"):
        decode(tokens=ids(1)[None], input_pos=ids(8), **caches())


def test_signatures_that_are_not_there(interpreter):
    with pytest.raises(InputError, match="no signature 'prefill': the model has prefill_4, decode"):
        interpreter.get_signature_runner("prefill")
    with pytest.raises(InputError, match="which signature"):
        interpreter.get_signature_runner()


def test_the_only_signature_needs_no_name():
    toy = Toy(prefill_length=0, capacity=S, ai_edge=True)
    interpreter = Interpreter(model_content=toy.file)
    interpreter.allocate_tensors()
    logits = interpreter.get_signature_runner()(tokens=ids(3)[None], input_pos=ids(0), **caches())["logits"]
    assert_close(logits[0, 0], toy.logits([3]))


def test_errors_are_wrong_usage_and_wrong_values():
    """A command ends with one line and exit code 2; a program that catches LiteRT's ValueError catches it."""
    assert issubclass(InputError, UsageError)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("token", [-1, 11, 2**31 - 1])
def test_ids_are_those_of_the_model(interpreter, capfd, token):
    """Prefills return no logits: the number of ids is that of decode."""
    prefill, decode = map(interpreter.get_signature_runner, ("prefill_4", "decode"))
    message = f"tokens has {token}, the model has token ids from 0 to 10"
    with pytest.raises(InputError, match=message):
        decode(tokens=ids(token)[None], input_pos=ids(0), **caches())
    with pytest.raises(InputError, match=message):
        prefill(tokens=ids(1, token, 0, 0)[None], input_pos=np.arange(T, dtype=np.int32), **caches())
    assert capfd.readouterr() == ("", "")
