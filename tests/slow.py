"""Tests that `make test-fast` leaves out: each takes more than half a second, or its file imports torch.

Tests of exported models, which import torch, are left out without being listed (`tests/conftest.py`).
"""

from __future__ import annotations

FILES = [
    "tests/bench/peers/test_command.py",
    "tests/bench/peers/test_rounds.py",
    "tests/bench/test_make_checkpoint.py",
    "tests/bench/test_tokenizer_matrix.py",
    "tests/docs/test_author_a_model.py",
    "tests/docs/test_demo_model.py",
    "tests/export/authoring/test_adapter.py",
    "tests/export/authoring/test_building_blocks.py",
    "tests/export/authoring/test_checkpoint.py",
    "tests/export/authoring/test_config.py",
    "tests/export/authoring/test_meta_parameters.py",
    "tests/export/authoring/test_model_file.py",
    "tests/export/models/test_openelm.py",
    "tests/export/test_adapter.py",
    "tests/export/test_build_graph.py",
    "tests/export/test_circle.py",
    "tests/export/test_config.py",
    "tests/export/test_convert.py",
    "tests/export/test_custom_ops.py",
    "tests/export/test_derive.py",
    "tests/export/test_flash_attention.py",
    "tests/export/test_fx_passes.py",
    "tests/export/test_gguf_checkpoint.py",
    "tests/export/test_gguf_tokenizer.py",
    "tests/export/test_gpt_neo.py",
    "tests/export/test_loading_flags.py",
    "tests/export/test_mask_rules.py",
    "tests/export/test_model.py",
    "tests/export/test_parameter_binding.py",
    "tests/export/test_parameter_matching.py",
    "tests/export/test_pipeline.py",
    "tests/export/test_rotary.py",
    "tests/export/test_stored_names.py",
    "tests/export/test_text_part.py",
    "tests/export/test_trial_run.py",
    "tests/export/test_varying_heads.py",
    "tests/o2o/check/test_checkpoint.py",
    "tests/o2o/cli/test_interrupt.py",
    "tests/o2o/filters/test_any_size.py",
    "tests/o2o/filters/test_bind_weights.py",
    "tests/o2o/filters/test_composites_pass_filters.py",
    "tests/o2o/filters/test_defects.py",
    "tests/o2o/filters/test_fix_shape.py",
    "tests/o2o/filters/test_fuse_bmm_lhs_const.py",
    "tests/o2o/filters/test_manners.py",
    "tests/o2o/filters/test_mutations.py",
    "tests/o2o/filters/test_onnx_models.py",
    "tests/o2o/filters/test_processes.py",
    "tests/o2o/filters/test_quantize_weights.py",
    "tests/o2o/formats/test_unbound_tensor.py",
    "tests/o2o/lower/onert/test_defects.py",
    "tests/o2o/lower/onnx/test_exported.py",
    "tests/o2o/lower/onnx/test_mutations.py",
    "tests/o2o/lower/onnx/test_quantized.py",
    "tests/o2o/quantization/test_tensors.py",
    "tests/o2o/rewriting/test_cache_buckets.py",
    "tests/o2o/rewriting/test_grouped_query.py",
    "tests/o2o/rewriting/test_prefill_logits.py",
    "tests/o2o/weights/test_binding.py",
    "tests/o2o/weights/test_checkpoint.py",
    "tests/o2o/weights/test_checkpoint_tensor.py",
    "tests/o2o/weights/test_pytorch_file.py",
    "tests/o2o/weights/test_safetensors.py",
    "tests/runtime_py/engines/test_window_caches.py",
    "tests/runtime_py/generation/test_logits_processors.py",
    "tests/runtime_py/generation/test_processor_chain.py",
    "tests/runtime_py/generation/test_prompt_cache.py",
    "tests/runtime_py/server/test_page.py",
    "tests/runtime_py/test_against_transformers.py",
    "tests/runtime_py/test_child_process.py",
    "tests/runtime_py/test_conversation.py",
    "tests/runtime_py/test_interrupt.py",
    "tests/runtime_py/test_perplexity.py",
    "tests/runtime_py/test_quantized.py",
    "tests/runtime_py/test_remember.py",
    "tests/runtime_py/test_run.py",
    "tests/runtime_py/text/test_chat_template.py",
    "tests/runtime_py/text/tokenizer/test_classes.py",
    "tests/runtime_py/text/tokenizer/test_special_tokens.py",
    "tests/runtime_py/text/tokenizer/test_vocabulary.py",
    "tests/test_guide.py",
    "tests/test_prefill_lengths.py",
    "tests/tinyllama/test_demo_checkpoint.py",
    "tests/tinyllama/test_manual_inference.py",
    "tests/tinyllama/test_tiny_llama.py",
    "tests/tinyllama/test_tinyllama.py",
    "tests/tinyllama/test_verify.py",
    "tests/tinyllama/test_verify_flash.py",
    "tests/tinyllama/test_verify_package.py",
    "tests/tinyllama/test_verify_tflite.py",
]
"""Files in which all tests are slow. `make test-fast` does not import them."""

TESTS = {
    "tests/o2o/lower/litert/test_attention.py": [
        "test_all_at_once",
        "test_in_blocks",
    ],
    "tests/runtime_py/test_several_texts.py": [
        "test_a_forked_child_loads_its_own_engine",
        "test_closing_the_package_while_texts_are_generated",
        "test_two_packages_in_two_threads",
    ],
    "tests/o2o/filters/test_verify_model.py": [
        "test_tico_is_a_second_opinion",
    ],
    "tests/bench/test_export.py": [
        "test_each_form_is_measured",
    ],
    "tests/export/test_graph_groups.py": [
        "test_a_cached_export_does_not_import_torch",
    ],
    "tests/export/test_export_graphs.py": [
        "test_ctrl_c_ends_a_command",
    ],
    "tests/export/test_main.py": [
        "test_weights_may_come_along",
        "test_all_graphs_and_the_tokenizer",
    ],
    "tests/export/test_onnx_decoder.py": [
        "test_a_package_of_circle",
    ],
    "tests/o2o/streams/test_temporary.py": [
        "test_an_interrupt_at_any_instruction_leaves_nothing",
    ],
    "tests/bench/test_families.py": [
        "test_memory_of_a_child_counts",
        "test_shapes",
    ],
    "tests/export/test_options.py": [
        "test_refused_before_torch_is_imported",
    ],
    "tests/export/test_package_builder.py": [
        "test_gpt_2_from_a_checkpoint_to_tokens",
    ],
    "tests/o2o/filters/test_fuse_attention.py": [
        "test_every_form_is_fused_and_means_the_same",
        "test_other_families_are_raised_to_the_core",
        "test_what_is_fused_lowers_to_the_same",
    ],
    "tests/o2o/filters/test_fuse_bmm_lhs_const.py": [
        "test_every_form_is_fused_and_means_the_same",
    ],
    "tests/o2o/filters/test_fuse_rms_norm.py": [
        "test_a_near_miss_is_left_alone_and_explained",
    ],
    "tests/o2o/filters/test_fuse_rope.py": [
        "test_a_near_miss_is_left_alone_and_explained",
    ],
    "tests/o2o/filters/test_merge_circles.py": [
        "test_any_models",
    ],
    "tests/o2o/filters/test_reshape_io.py": [
        "test_as_many_elements_keep_the_meaning",
    ],
    "tests/o2o/filters/test_select_op.py": [
        "test_head_and_tail_compute_what_the_whole_does",
    ],
    "tests/o2o/filters/test_sign_ai_edge.py": [
        "test_the_same_numbers",
    ],
    "tests/o2o/formats/test_lossless.py": [
        "test_random_graphs_survive",
    ],
    "tests/o2o/formats/test_onnx_writer.py": [
        "test_in_memory_in_a_pipe_and_beside",
    ],
    "tests/o2o/formats/test_reader.py": [
        "test_damage_is_refused_or_harmless",
    ],
    "tests/o2o/formats/test_read_paths.py": [
        "test_constants_of_any_size_in_any_order",
        "test_every_kind_of_model",
        "test_random_models",
    ],
    "tests/o2o/formats/test_tensors.py": [
        "test_of_every_dtype",
    ],
    "tests/o2o/formats/test_tico.py": [
        "test_the_command_accepts_a_file",
    ],
    "tests/o2o/lower/litert/test_composites.py": [
        "test_any_core",
    ],
    "tests/o2o/lower/litert/test_flash_attention.py": [
        "test_any_shape_at_any_position",
    ],
    "tests/o2o/lower/litert/test_lowering.py": [
        "test_attention",
        "test_attention_in_blocks",
    ],
    "tests/o2o/lower/onert/test_lowering.py": [
        "test_attention_by_the_reference",
        "test_attention_on_onert",
        "test_parts_of_several_sizes",
        "test_quantized_weights",
        "test_rotations",
        "test_updates_of_one_row_in_place",
    ],
    "tests/o2o/lower/onert/test_supported_ops.py": [
        "test_onert_computes_them_and_right",
    ],
    "tests/o2o/lower/onnx/test_lowering.py": [
        "test_prefill_and_decode_to_the_end_of_the_capacity",
    ],
    "tests/o2o/lower/onnx/test_operators.py": [
        "test_by_litert",
        "test_by_token",
    ],
    "tests/o2o/operators/test_reference.py": [
        "test_it_means_what_litert_computes",
    ],
    "tests/o2o/quantization/test_quantize.py": [
        "test_attention_takes_quantized_weights",
        "test_both_formats_say_the_same",
    ],
    "tests/o2o/rewriting/attention/test_core_rule.py": [
        "test_any_attention_becomes_its_core",
    ],
    "tests/o2o/rewriting/attention/test_causality.py": [
        "test_what_is_said_to_go_by_tokens_does",
    ],
    "tests/o2o/rewriting/test_axes.py": [
        "test_the_axes_of_a_product",
        "test_axes_are_where_the_numbers_go",
    ],
    "tests/o2o/rewriting/test_common_subexpression_elimination.py": [
        "test_nothing_changes_but_the_work",
    ],
    "tests/o2o/streams/test_source.py": [
        "test_much_data_costs_no_memory",
    ],
    "tests/o2o/test_lazy_sympy.py": [
        "test_no_filter_imports_anything_heavy",
    ],
    "tests/o2o/test_regressions.py": [
        "test_only_the_first_subgraph_of_a_merged_file_was_kept",
    ],
    "tests/runtime_py/engines/litert/test_engine.py": [
        "test_several_prefills",
    ],
    "tests/runtime_py/engines/litert/test_mapped_bytes.py": [
        "test_head_then_file",
        "test_the_memory_can_be_used_afterwards",
    ],
    "tests/runtime_py/engines/litert/test_prepare.py": [
        "test_a_disk_that_becomes_full",
        "test_a_model_that_changes_while_it_is_packed",
        "test_a_model_that_changes_while_it_is_read",
        "test_another_machine_or_another_lowering",
        "test_damaged",
        "test_done_once",
        "test_other_weights_in_the_same_place",
        "test_the_same_model_elsewhere",
        "test_weights_overwritten",
    ],
    "tests/runtime_py/engines/test_model_file.py": [
        "test_bench_reads_the_model_once_to_load_it_and_once_for_the_roofline",
    ],
    "tests/runtime_py/engines/test_prefill_plan.py": [
        "test_no_run_more_than_it_takes",
    ],
    "tests/export/test_known_answers.py": [
        "test_a_child_process_stores_them",
        "test_the_reason_why_there_are_none",
    ],
    "tests/o2o/cli/test_terminal.py": [
        "test_error_messages",
        "test_names_of_tensors",
        "test_prompts_answers_and_templates",
    ],
    "tests/runtime_py/benchmark/test_roofline.py": [
        "test_bandwidth_is_measured_in_a_child",
    ],
    "tests/runtime_py/test_bench.py": [
        "test_another_engine",
        "test_the_files_have_default_names",
        "test_every_line_and_every_figure",
        "test_the_plot_shows_axes_from_zero_and_the_roofline",
    ],
    "tests/runtime_py/server/test_body.py": [
        "test_slow_bodies_and_clients_that_leave",
    ],
    "tests/runtime_py/server/test_openai_client.py": [
        "test_every_way_to_call_it",
    ],
    "tests/runtime_py/server/test_listener.py": [
        "test_a_signal_ends_the_server_after_the_running_request",
    ],
    "tests/runtime_py/text/test_tokenizer.py": [
        "test_ids_of_any_text",
        "test_pieces_make_the_text",
    ],
    "tests/tinyllama/test_convert_to_tflite.py": [
        "test_a_file_of_weights_does_for_its_folder",
        "test_a_package_of_tflite",
        "test_a_signal_ends_the_commands_and_leaves_nothing",
    ],
    "tests/o2o/operators/test_traits.py": [
        "test_elementwise_operators_are_elementwise",
    ],
    "tests/o2o/filters/test_pipeline.py": [
        "test_the_bytes_are_those_of_separate_runs",
    ],
    "tests/docs/test_troubleshooting.py": [
        "test_a_quoted_message_exists",
    ],
    "tests/o2o/filters/test_check_models.py": [
        "test_a_lowering_with_and_without_a_contract",
    ],
    "tests/runtime_py/generation/test_sampler.py": [
        "test_drawn_as_often_as_likely",
    ],
    "tests/test_makefile.py": [
        "test_any_value_arrives_as_it_is",
    ],
    "tests/o2o/rewriting/static_caches/test_conversion.py": [
        "test_any_sizes",
        "test_forms_of_exporters",
    ],
    "tests/o2o/filters/test_resize_tokens.py": [
        "test_the_others_stay",
    ],
    "tests/o2o/raising/test_onnx_buckets.py": [
        "test_each_bucket_computes_what_decode_does",
        "test_with_prefill_two_sizes_select",
    ],
    "tests/o2o/rewriting/test_topological_sort.py": [
        "test_any_order_is_mended",
    ],
    "tests/export/test_preflight.py": [
        "test_a_refusal_comes_before_torch",
    ],
    "tests/o2o/quantization/test_compare.py": [
        "test_errors_are_those_of_quantizing",
    ],
}
"""Slow tests of other files, by function name."""
