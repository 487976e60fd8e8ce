"""Tests mirror the packages by name: `o2o/cli/text.py` is tested by `tests/o2o/cli/test_text.py`.

Modules without a test of their name are parts of a larger behavior. COVERED names the test of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ["export", "o2o", "runtime_py", "tinyllama"]
COVERED = {
    "tests/o2o/formats/test_handover.py": ["o2o/formats/tensor_order.py"],
    "tests/runtime_py/engines/test_window_rows.py": ["runtime_py/model/window_size.py"],
    "tests/o2o/filters/test_history_model.py": ["o2o/filters/recorded_pipelines.py"],
    "tests/export/test_build_graph.py": [
        "export/modules.py",
        "export/traced_cache.py",
    ],
    "tests/export/test_flash_attention.py": [
        "export/attention.py",
    ],
    "tests/export/test_graph_groups.py": [
        "export/traced_graph.py",
    ],
    "tests/export/test_graph_cache.py": [
        "export/tied_parameters.py",
    ],
    "tests/export/test_package_builder.py": [
        "export/circle_commands.py",
        "tinyllama/pipeline.py",
    ],
    "tests/o2o/check/test_compare.py": [
        "o2o/check/constants.py",
        "o2o/check/feeds.py",
        "o2o/check/model_copies.py",
        "o2o/check/reference_runner.py",
        "o2o/check/runner.py",
        "o2o/check/signature_comparison.py",
    ],
    "tests/o2o/check/test_engine_process.py": [
        "o2o/check/engine_worker.py",
    ],
    "tests/o2o/cli/test_command.py": [
        "o2o/errors.py",
    ],
    "tests/o2o/raising/test_attention_onnx.py": [
        "o2o/raising/cache_rows.py",
        "o2o/raising/dot_product.py",
    ],
    "tests/o2o/filters/test_raise_circle.py": [
        "o2o/filters/onnx_raising.py",
        "o2o/rewriting/attention/seen_keys.py",
    ],
    "tests/o2o/onnx_fusion/test_attention.py": [
        "o2o/onnx_fusion/forms.py",
        "o2o/onnx_fusion/rule.py",
        "o2o/onnx_fusion/twin.py",
    ],
    "tests/o2o/raising/test_convolution.py": [
        "o2o/raising/images.py",
    ],
    "tests/o2o/raising/test_graphs.py": [
        "o2o/raising/operation.py",
        "o2o/raising/rules.py",
    ],
    "tests/o2o/filters/test_defects.py": [
        "o2o/check/derived_roles.py",
        "o2o/check/interface.py",
        "o2o/check/small_tables.py",
    ],
    "tests/o2o/filters/test_diff_model.py": [
        "o2o/diff/compare.py",
        "o2o/diff/constant_changes.py",
        "o2o/diff/correspondence.py",
        "o2o/diff/interfaces.py",
        "o2o/diff/metadata.py",
        "o2o/diff/operators.py",
        "o2o/diff/tensor_fields.py",
        "o2o/diff/text.py",
    ],
    "tests/o2o/filters/test_downcast_input_ids.py": [
        "o2o/rewriting/downcast_inputs.py",
    ],
    "tests/o2o/filters/test_fuse_attention.py": [
        "o2o/rewriting/attention/match.py",
        "o2o/rewriting/attention/parts.py",
        "o2o/rewriting/attention/proof.py",
        "o2o/rewriting/attention/proofs.py",
        "o2o/rewriting/attention/rule.py",
        "o2o/rewriting/attention/token_axis.py",
        "o2o/rewriting/attention/visibility.py",
    ],
    "tests/export/test_gguf_checkpoint.py": [
        "export/gguf_config.py",
        "export/gguf_weights.py",
    ],
    "tests/o2o/weights/test_gguf_file.py": [
        "o2o/weights/gguf_tensor.py",
    ],
    "tests/o2o/weights/test_stored_tensor.py": [
        "o2o/weights/file_tensor.py",
        "o2o/weights/weight_source.py",
    ],
    "tests/o2o/rewriting/static_caches/test_conversion.py": [
        "o2o/check/static_caches.py",
        "o2o/rewriting/static_caches/instances.py",
        "o2o/rewriting/static_caches/interface.py",
        "o2o/rewriting/static_caches/masks.py",
        "o2o/rewriting/static_caches/moving_rows.py",
        "o2o/rewriting/static_caches/past_numbers.py",
        "o2o/rewriting/static_caches/position_numbers.py",
    ],
    "tests/o2o/rewriting/attention/test_core_rule.py": [
        "o2o/rewriting/attention/layouts.py",
        "o2o/rewriting/attention/mask_axes.py",
        "o2o/rewriting/attention/mask_operand.py",
        "o2o/rewriting/attention/mask_proof.py",
        "o2o/rewriting/attention/mask_rule.py",
        "o2o/rewriting/attention/scores.py",
    ],
    "tests/o2o/filters/test_fuse_bmm_lhs_const.py": [
        "o2o/rewriting/bmm_const.py",
        "o2o/rewriting/constant_matrices.py",
    ],
    "tests/o2o/filters/test_fuse_fc.py": [
        "o2o/rewriting/stacked_products.py",
        "o2o/rewriting/stacked_weights.py",
    ],
    "tests/o2o/filters/test_fuse_rms_norm.py": [
        "o2o/rewriting/matchers.py",
        "o2o/rewriting/rewrite_rule.py",
        "o2o/rewriting/rms_norm.py",
    ],
    "tests/o2o/filters/test_fuse_rope.py": [
        "o2o/filters/fusion.py",
        "o2o/rewriting/rope.py",
    ],
    "tests/o2o/filters/test_inspect.py": [
        "o2o/describe.py",
    ],
    "tests/o2o/rewriting/test_cache_buckets.py": [
        "o2o/rewriting/graph_copies.py",
    ],
    "tests/o2o/filters/test_remove_io.py": [
        "o2o/rewriting/selectors.py",
    ],
    "tests/o2o/filters/test_rename_io.py": [
        "o2o/rewriting/rename_io.py",
    ],
    "tests/o2o/filters/test_select_op.py": [
        "o2o/rewriting/boundaries.py",
        "o2o/rewriting/extraction.py",
    ],
    "tests/o2o/filters/test_transpose_io_kvcache.py": [
        "o2o/rewriting/cache_layout.py",
        "o2o/rewriting/simplify_layout_ops.py",
    ],
    "tests/o2o/filters/test_verify_model.py": [
        "o2o/verifier/engines.py",
        "o2o/verifier/graphs.py",
        "o2o/verifier/issue.py",
        "o2o/verifier/operators.py",
        "o2o/verifier/roles.py",
        "o2o/verifier/tables.py",
        "o2o/verifier/tico.py",
        "o2o/verifier/verify.py",
    ],
    "tests/o2o/formats/test_lossless.py": [
        "o2o/formats/tables.py",
    ],
    "tests/o2o/lower/litert/test_attention.py": [
        "o2o/lower/litert/sdpa.py",
    ],
    "tests/o2o/lower/litert/test_prefill_buckets.py": [
        "o2o/lower/litert/added_signatures.py",
    ],
    "tests/o2o/lower/litert/test_lowering.py": [
        "o2o/lower/litert/rms_norm.py",
        "o2o/lower/litert/rope.py",
        "o2o/lower/rotate_halves.py",
        "o2o/rewriting/builder.py",
        "o2o/rewriting/cache_outputs.py",
    ],
    "tests/o2o/lower/onert/test_lowering.py": [
        "o2o/lower/onert/attention.py",
        "o2o/lower/onert/dynamic_update_slice.py",
        "o2o/lower/onert/fully_connected.py",
        "o2o/lower/onert/lookup.py",
        "o2o/lower/onert/outputs.py",
        "o2o/lower/onert/rms_norm.py",
        "o2o/lower/onert/rope.py",
        "o2o/lower/onert/split_v.py",
    ],
    "tests/o2o/check/test_symbolic_sizes.py": ["o2o/dimension_expressions.py"],
    "tests/o2o/filters/test_fix_shape.py": [
        "o2o/rewriting/fix_dimensions.py",
        "o2o/rewriting/onnx_folding.py",
    ],
    "tests/o2o/filters/test_onnx_models.py": [
        "o2o/check/onnx_runner.py",
        "o2o/operators/onnx_shape_inference.py",
        "o2o/rewriting/onnx_builder.py",
        "o2o/verifier/onnx_checker.py",
    ],
    "tests/o2o/quantization/test_onnx_forms.py": [
        "o2o/formats/computed_tensors.py",
        "o2o/quantization/onnx_weight_uses.py",
    ],
    "tests/o2o/quantization/test_weight_uses.py": [
        "o2o/quantization/matrix.py",
    ],
    "tests/o2o/formats/test_onnx_composition.py": [
        "o2o/formats/onnx_branches.py",
        "o2o/formats/onnx_names.py",
        "o2o/formats/onnx_splitting.py",
        "o2o/rewriting/onnx_merging.py",
    ],
    "tests/o2o/formats/test_onnx_reader.py": [
        "o2o/formats/onnx_proto.py",
        "o2o/streams/external_file.py",
    ],
    "tests/o2o/lower/onnx/test_attention.py": [
        "o2o/lower/onnx/cached_attention.py",
        "o2o/lower/onnx/rotation.py",
    ],
    "tests/o2o/lower/onnx/test_lowering.py": [
        "o2o/lower/onnx/builder.py",
        "o2o/lower/onnx/norms.py",
        "o2o/lower/onnx/ort_form.py",
        "o2o/lower/onnx/per_token.py",
        "o2o/lower/onnx/standard_form.py",
    ],
    "tests/o2o/lower/onnx/test_operators.py": [
        "o2o/lower/onnx/fused_activation.py",
        "o2o/lower/onnx/layout.py",
    ],
    "tests/o2o/lower/onnx/test_quantized.py": [
        "o2o/lower/onnx/weights.py",
    ],
    "tests/o2o/reduction/test_reducer.py": [
        "o2o/reduction/changes.py",
    ],
    "tests/o2o/operators/test_reference.py": [
        "o2o/operators/attention.py",
    ],
    "tests/runtime_py/generation/test_prompt_cache.py": [
        "runtime_py/generation/stored_rows.py",
    ],
    "tests/o2o/lower/litert/test_block_weights.py": [
        "o2o/formats/quantization_parameters.py",
    ],
    "tests/o2o/visualization/test_blocks.py": [
        "o2o/visualization/layer_drawing.py",
    ],
    "tests/runtime_py/engines/onnx/decoder/test_engine.py": [
        "runtime_py/engines/onnx/decoder/caches.py",
        "runtime_py/engines/onnx/decoder/graph.py",
        "runtime_py/engines/onnx/decoder/inputs.py",
        "runtime_py/engines/onnx/decoder/interface.py",
        "runtime_py/engines/onnx/decoder/trial.py",
    ],
    "tests/o2o/roles/test_onnx_inputs.py": [
        "o2o/roles/onnx_caches.py",
        "o2o/roles/onnx_flow.py",
    ],
    "tests/o2o/lower/onnx/test_genai.py": ["o2o/weights/checkpoint_files.py"],
    "tests/runtime_py/model/test_find_model.py": ["runtime_py/model/model_config.py"],
    "tests/runtime_py/engines/litert/test_engine.py": [
        "runtime_py/engines/litert/bound_signature.py",
        "runtime_py/engines/litert/compiled_model.py",
        "runtime_py/engines/litert/tensor_views.py",
    ],
    "tests/runtime_py/engines/litert/test_prepare.py": [
        "runtime_py/engines/prepared_artifacts.py",
        "runtime_py/engines/litert/pack.py",
    ],
    "tests/runtime_py/engines/onert/test_engine.py": [
        "runtime_py/engines/onert/nnfw.py",
        "runtime_py/engines/onert/prepare.py",
    ],
    "tests/runtime_py/engines/onnx/test_engine.py": [
        "runtime_py/engines/onnx/inference_session.py",
        "runtime_py/engines/onnx/run_sizes.py",
    ],
    "tests/runtime_py/engines/onnx/test_prepare.py": [
        "runtime_py/engines/onnx/lowered_file.py",
    ],
    "tests/runtime_py/engines/test_selection.py": [
        "runtime_py/engines/registry.py",
    ],
    "tests/runtime_py/generation/test_logits_processors.py": [
        "runtime_py/generation/logits_processors/constraints.py",
        "runtime_py/generation/logits_processors/penalties.py",
        "runtime_py/generation/logits_processors/truncation.py",
    ],
    "tests/runtime_py/generation/test_sampling.py": [
        "runtime_py/generation/setting_types.py",
        "runtime_py/sampling.py",
    ],
    "tests/runtime_py/test_bench.py": [
        "runtime_py/benchmark/report.py",
    ],
    "tests/o2o/rewriting/test_layer_norm.py": ["o2o/rewriting/normalization.py"],
    "tests/runtime_py/server/test_app.py": [
        "runtime_py/server/errors.py",
        "runtime_py/server/metrics.py",
        "runtime_py/server/models.py",
        "runtime_py/server/request_log.py",
    ],
    "tests/runtime_py/server/test_completions.py": [
        "runtime_py/server/log_probabilities.py",
        "runtime_py/server/responses.py",
        "runtime_py/server/schemas.py",
        "runtime_py/server/service.py",
        "runtime_py/server/texts.py",
    ],
    "tests/runtime_py/server/test_llama_cpp.py": ["runtime_py/server/tokens.py"],
    "tests/runtime_py/server/test_listener.py": ["runtime_py/server/settings.py"],
    "tests/runtime_py/test_cache.py": ["o2o/streams/cache_folder.py", "o2o/weights/cached_checkpoints.py"],
    "tests/runtime_py/test_conversation.py": [],
    "tests/runtime_py/test_perplexity.py": [
        "runtime_py/evaluation/dataset.py",
    ],
    "tests/tinyllama/test_convert_to_tflite.py": [
        "export/tflite_commands.py",
        "tinyllama/absl_flags.py",
        "tinyllama/checkpoint_flag.py",
    ],
    "tests/tinyllama/test_demo_checkpoint.py": [
        "tinyllama/demo/corpus.py",
        "tinyllama/demo/held_out.py",
        "tinyllama/demo/notation.py",
        "tinyllama/demo/plot.py",
        "tinyllama/demo/plots_of_days.py",
        "tinyllama/demo/plots_of_things.py",
        "tinyllama/demo/things.py",
        "tinyllama/demo/tokenizer.py",
        "tinyllama/demo/train.py",
        "tinyllama/demo/words.py",
    ],
    "tests/tinyllama/test_tiny_llama.py": [
        "tinyllama/kv_cache.py",
        "tinyllama/model_config.py",
    ],
    "tests/tinyllama/test_verify.py": [
        "tinyllama/verification/check_exported.py",
        "tinyllama/verification/exported.py",
        "tinyllama/verification/flags.py",
        "tinyllama/verification/hugging_face.py",
        "tinyllama/verification/output.py",
        "tinyllama/verification/protocol.py",
    ],
    "tests/tinyllama/test_verify_flash.py": [
        "tinyllama/debug_flash_generation.py",
        "tinyllama/test_flash_attention.py",
    ],
    "tests/tinyllama/test_verify_tflite.py": [
        "tinyllama/verification/check_tflite.py",
        "tinyllama/verification/litert_interpreter.py",
        "tinyllama/verification/quantized_reference.py",
        "tinyllama/verification/tflite.py",
        "tinyllama/verification/tolerances.py",
        "tinyllama/verification/weights.py",
    ],
}
"""Test file -> the modules that it covers and that have no test of their name."""


def mirror_of(module: Path) -> Path:
    """Return the test file that mirrors a module."""
    name = "main" if module.stem == "__main__" else module.stem
    return ROOT / "tests" / module.parent.relative_to(ROOT) / f"test_{name}.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_test(package: str) -> None:
    covered = {module for modules in COVERED.values() for module in modules}
    missing = [
        name
        for module in sorted((ROOT / package).rglob("*.py"))
        if module.name != "__init__.py"
        and not mirror_of(module).exists()
        and (name := module.relative_to(ROOT).as_posix()) not in covered
    ]
    assert missing == [], "write a test of its name, or add it to COVERED"


@pytest.mark.parametrize("test", COVERED)
def test_the_list_is_not_stale(test: str) -> None:
    assert (ROOT / test).is_file()
    for module in COVERED[test]:
        assert (ROOT / module).is_file(), f"{module} is gone"
        assert not mirror_of(ROOT / module).exists(), f"{module} has a test of its name"
