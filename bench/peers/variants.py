"""The peers and their variants. A new variant is a line in `VARIANTS`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

SMALL_SHAPES = ("15m", "135m")
ALL_SHAPES = (*SMALL_SHAPES, "tinyllama-1.1b")


@dataclass(frozen=True)
class Peer:
    """A project to measure.

    Attributes:
        key: The module name of its runner and its converter.
        name: Its name in tables.
        model: The file in the conversion's folder that the runner loads; "" for the folder.
        requirements: Requirements of its virtual environment; none to run in this environment.
        building: Environment variables while pip builds it.
        torch: Whether PyTorch is installed first.
        converts: Whether it has a converter; otherwise it loads the checkpoint.
        fixed: Whether a conversion has one fixed capacity.
        files_of: The key of the peer whose converter makes its files; "" for its own.
        environment: The key of the peer whose virtual environment it shares; "" for its own.
        runners: The package of its runner.
        ours: Whether it is this project.
    """

    key: str
    name: str
    model: str = ""
    requirements: tuple[str, ...] = ()
    building: Mapping[str, str] = field(default_factory=dict)
    torch: bool = False
    converts: bool = True
    fixed: bool = False
    files_of: str = ""
    environment: str = ""
    runners: str = "bench.peers.runners"
    ours: bool = False


@dataclass(frozen=True)
class Variant:
    """A peer with one precision and engine.

    Attributes:
        peer: The peer.
        precision: The weight dtype, in the peer's own words.
        bits: Nominal bits of a weight: 4, 8, 16 or 32.
        engine: The engine of this project, or the kind of file that is loaded.
        shapes: The shapes that it is measured on.
    """

    peer: Peer
    precision: str
    bits: int
    engine: str = ""
    shapes: Collection[str] = ALL_SHAPES

    @property
    def name(self) -> str:
        engine = "" if self.engine == BUNDLE and not self.ours else self.engine
        return " ".join(filter(None, (self.peer.name, self.precision, engine)))

    @property
    def form(self) -> str:
        return FORMS.get(self.engine, "")

    @property
    def runtime(self) -> str:
        """The name of the engine of this project."""
        return "litert" if self.engine == BUNDLE else self.engine

    @property
    def ours(self) -> bool:
        return self.peer.ours


BUNDLE = "litertlm"
AUTO = "auto"
"""The engines that this project measures as the fastest."""
FORMS = {"litert": "tflite", "onnx": "circle", AUTO: "circle", BUNDLE: "litertlm"}
"""File format by engine. Circle files run on both; for LiteRT there is a command that converts to TFLite.
LiteRT-LM and this project on LiteRT load the same `.litertlm` files."""

THIS_PROJECT = Peer("this_project", "this project", "model.{form}", fixed=True, ours=True)
LLAMA_CPP = Peer(
    "llama_cpp",
    "llama.cpp",
    "model.gguf",
    ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy"),
    # As llama.cpp builds by default for this processor, without image input.
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
    ("litert-torch==0.10.0", "tensorflow-cpu==2.21.0"),  # imported, but not among its requirements
    torch=True,
    fixed=True,
)
LITERT_LM = Peer(
    "litert_lm",
    "LiteRT-LM",
    "model.litertlm",
    ("litert-lm==0.18.1", "numpy"),
    fixed=True,
    files_of="this_project",
)
LITERT_LM_BENCHMARK = replace(
    LITERT_LM, key="litert_lm_benchmark", name="LiteRT-LM benchmark", environment=LITERT_LM.key
)
PEERS = (THIS_PROJECT, LLAMA_CPP, ORT_GENAI, HUGGING_FACE, LITERT_TORCH, LITERT_LM, LITERT_LM_BENCHMARK)

VARIANTS = (
    Variant(THIS_PROJECT, "int8", 8, "litert"),
    Variant(THIS_PROJECT, "int4", 4, "litert"),
    Variant(THIS_PROJECT, "int4-head", 4, "litert", SMALL_SHAPES),
    Variant(THIS_PROJECT, "float32", 32, "litert", SMALL_SHAPES),
    Variant(THIS_PROJECT, "float32", 32, "onnx", SMALL_SHAPES),  # first: the others are quantized from it
    Variant(THIS_PROJECT, "int8", 8, "onnx", SMALL_SHAPES),
    Variant(THIS_PROJECT, "int4", 4, "onnx"),
    Variant(THIS_PROJECT, "int4-head", 4, "onnx", SMALL_SHAPES),
    Variant(THIS_PROJECT, "float32", 32, AUTO, SMALL_SHAPES),
    Variant(THIS_PROJECT, "int8", 8, AUTO),
    Variant(THIS_PROJECT, "int4", 4, AUTO),
    Variant(THIS_PROJECT, "int4-head", 4, AUTO, SMALL_SHAPES),
    Variant(LLAMA_CPP, "Q8_0", 8),
    Variant(LLAMA_CPP, "Q4_0", 4),
    Variant(LLAMA_CPP, "F16", 16, shapes=("15m",)),
    Variant(ORT_GENAI, "int4", 4),
    Variant(ORT_GENAI, "fp32", 32, shapes=SMALL_SHAPES),
    Variant(HUGGING_FACE, "bfloat16", 16),
    Variant(HUGGING_FACE, "float32", 32, shapes=SMALL_SHAPES),
    # For 1.1 billion weights, its converter needs 13.7 GB and four minutes.
    Variant(LITERT_TORCH, "int8", 8, shapes=SMALL_SHAPES),
    Variant(LITERT_TORCH, "float32", 32, shapes=SMALL_SHAPES),
    Variant(THIS_PROJECT, "int8", 8, BUNDLE, SMALL_SHAPES),
    Variant(LITERT_LM, "int8", 8, BUNDLE, SMALL_SHAPES),
    Variant(LITERT_LM_BENCHMARK, "int8", 8, BUNDLE, SMALL_SHAPES),
    Variant(THIS_PROJECT, "int4", 4, BUNDLE, SMALL_SHAPES),
    Variant(LITERT_LM, "int4", 4, BUNDLE, SMALL_SHAPES),
    Variant(LITERT_LM_BENCHMARK, "int4", 4, BUNDLE, SMALL_SHAPES),
    Variant(THIS_PROJECT, "float32", 32, BUNDLE, SMALL_SHAPES),
    Variant(LITERT_LM, "float32", 32, BUNDLE, SMALL_SHAPES),
)
