"""The configuration: numbers of one layer."""

from __future__ import annotations

from export.authoring.config import ModelConfig


def test_numbers_of_a_layer() -> None:
    config = ModelConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=[5, 6],
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=(2, 1),
        head_dim=2,
    )
    assert [config.of_layer("intermediate_size", layer) for layer in (0, 1)] == [5, 6]
    assert [config.of_layer("num_key_value_heads", layer) for layer in (0, 1)] == [2, 1]
    assert config.of_layer("num_attention_heads", 1) == 2
    assert config.of_layer("sliding_window", 1) == 0
