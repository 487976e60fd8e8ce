"""Who is measured: the peers, and in which forms. A new form of this project is a line in `VARIANTS`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

SMALL = ("15m", "135m")
EVERY = (*SMALL, "tinyllama-1.1b")


@dataclass(frozen=True)
class Peer:
    """key: of its runner, in the package `runners`, and its converter. model: what the runner loads, in the
    folder of what was converted.

    requirements: of its virtual environment, for pip; none for who runs in this one. building: variables of
    the environment while pip builds it. torch: PyTorch comes first. converts: else it takes the checkpoint
    as it is. fixed: whether its files are made for one capacity.
    """

    key: str
    name: str
    model: str = ""
    requirements: tuple[str, ...] = ()
    building: Mapping[str, str] = field(default_factory=dict)
    torch: bool = False
    converts: bool = True
    fixed: bool = False
    runners: str = "bench.peers.runners"
    ours: bool = False


@dataclass(frozen=True)
class Variant:
    """One form of a peer. bits: of the weights, nominally 4, 8, 16 or 32. engine: of this project; what that
    runs is of the form `FORMS` says. shapes: it is measured on these.
    """

    peer: Peer
    precision: str
    bits: int
    engine: str = ""
    shapes: Collection[str] = EVERY

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.peer.name, self.precision, self.engine)))

    @property
    def form(self) -> str:
        return FORMS.get(self.engine, "")

    @property
    def ours(self) -> bool:
        return self.peer.ours


FORMS = {"litert": "tflite", "onnx": "circle"}
"""By engine. Circle files run on both, but who wants LiteRT has a command that makes TFLite at once."""

THIS_PROJECT = Peer("this_project", "this project", "model.{form}", fixed=True, ours=True)
LLAMA_CPP = Peer(
    "llama_cpp",
    "llama.cpp",
    "model.gguf",
    ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy"),
    # As llama.cpp builds itself, for this very processor; without what reads pictures.
    {
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_LLAMAFILE=ON -DLLAVA_BUILD=OFF",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        "PIP_NO_BINARY": "llama-cpp-python",
    },
)
ORT_GENAI = Peer(
    "ort_genai",
    "onnxruntime-genai",
    requirements=("onnxruntime-genai==0.18.0", "transformers==5.23.0", "onnx==1.23.2", "onnx-ir==1.1.0"),
    torch=True,
)
HUGGING_FACE = Peer(
    "hugging_face", "Hugging Face", requirements=("transformers==5.23.0",), torch=True, converts=False
)
LITERT_TORCH = Peer(
    "litert_torch",
    "litert-torch",
    "model.tflite",
    ("litert-torch==0.10.0", "tensorflow-cpu==2.21.0"),  # which it imports, but does not ask for
    torch=True,
    fixed=True,
)
PEERS = (THIS_PROJECT, LLAMA_CPP, ORT_GENAI, HUGGING_FACE, LITERT_TORCH)

VARIANTS = (
    Variant(THIS_PROJECT, "int8", 8, "litert"),
    Variant(THIS_PROJECT, "int4", 4, "litert"),
    Variant(THIS_PROJECT, "int4-head", 4, "litert", SMALL),
    Variant(THIS_PROJECT, "float32", 32, "litert", SMALL),
    Variant(THIS_PROJECT, "float32", 32, "onnx", SMALL),  # before the others, which are made of its file
    Variant(THIS_PROJECT, "int8", 8, "onnx", SMALL),
    Variant(THIS_PROJECT, "int4", 4, "onnx", SMALL),
    Variant(THIS_PROJECT, "int4-head", 4, "onnx", SMALL),
    Variant(LLAMA_CPP, "Q8_0", 8),
    Variant(LLAMA_CPP, "Q4_0", 4),
    Variant(LLAMA_CPP, "F16", 16, shapes=("15m",)),
    Variant(ORT_GENAI, "int4", 4),
    Variant(ORT_GENAI, "fp32", 32, shapes=SMALL),
    Variant(HUGGING_FACE, "bfloat16", 16),
    Variant(HUGGING_FACE, "float32", 32, shapes=SMALL),
    # Its converter needs 13.7 GB and four minutes for 1.1 billion weights.
    Variant(LITERT_TORCH, "int8", 8, shapes=SMALL),
    Variant(LITERT_TORCH, "float32", 32, shapes=SMALL),
)
