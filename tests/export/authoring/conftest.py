"""Model files of tiny models, and their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.loading_flags import MODEL_FILE, VARIABLES

PLAIN = '''"""A model of plain PyTorch: learned positions, LayerNorm, attention without building blocks."""

from types import SimpleNamespace

import torch
from torch import nn


def get_model_config(fields):
    return SimpleNamespace(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, max_position_embeddings=32,
        num_attention_heads=4, num_key_value_heads=2, head_dim=6,
    )


class Layer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, D = layer, config.hidden_size
        self.norm = nn.LayerNorm(D)
        self.q, self.kv, self.o = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.norm2, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 40), nn.Linear(40, D)

    def forward(self, x, mask, cache):
        y = self.norm(x)
        T = y.shape[1]
        query = self.q(y).view(1, T, 4, 6).transpose(1, 2)
        key, value = self.kv(y).view(1, T, 4, 6).transpose(1, 2).split(2, dim=1)
        keys, values = cache.update(key, value, self.layer)
        S = keys.shape[2]
        keys, values = (t[:, :, None].expand(1, 2, 2, S, 6).reshape(1, 4, S, 6) for t in (keys, values))
        scores = query @ keys.transpose(2, 3) * 6**-0.5 + mask
        y = (scores.softmax(-1) @ values).transpose(1, 2).reshape(1, T, 24)
        x = x + self.o(y)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.register_buffer("scale", torch.tensor(config.hidden_size**-0.5), persistent=False)

    def forward(self, input_ids, position_ids, mask, cache):
        x = self.tokens(input_ids) + self.positions(position_ids)
        for layer in self.layers:
            x = layer(x, mask, cache)
        return self.norm(x) @ self.tokens.weight.T * self.scale


build_model = Model
'''

BLOCKS = '''"""A model of the building blocks: a window in every other layer, heads that differ by layer."""

from export.authoring.building_blocks import Decoder
from export.authoring.config import ModelConfig


def get_model_config(fields):
    return ModelConfig(
        vocab_size=40, hidden_size=24, intermediate_size=[32, 40, 48], num_hidden_layers=3,
        num_attention_heads=[4, 6, 4], num_key_value_heads=[2, 3, 1], head_dim=6, max_position_embeddings=64,
        normalize_queries=True, sliding_window=[5, 0, 5], rotary_dim=4, tie_word_embeddings=True,
    )


build_model = Decoder
'''


@pytest.fixture
def use_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a model file, and set `--model-file` to it."""

    def use(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        monkeypatch.setenv(VARIABLES[MODEL_FILE], str(path))
        return path

    return use


@pytest.fixture
def with_weights(tmp_path: Path, use_file):
    """Set a model file, and write a state dict of random numbers for it."""

    def write(text: str, name: str = "mine.py") -> tuple[Path, Path, object]:
        import torch

        from export.authoring.model_file import load

        path = use_file(text, name)
        source = load(path)
        torch.manual_seed(0)
        model = source.build(source.config({})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        weights = tmp_path / "weights.pt"
        torch.save(model.state_dict(), weights)
        return path, weights, model

    return write
