"""Comparison of two forms of one model: the modules that the verification commands share.

protocol             a predictor: it computes logits, step by step
hugging_face, exported, tflite     its forms: transformers, torch.export's program, a file on LiteRT
litert_interpreter   that file, with all intermediate tensors
comparison           both forms read the same tokens: the distance of logits, the first different choice
weights              a file's weights against the checkpoint's
quantized_reference  transformers with a quantized file's weights and rounding
tolerances           a file's precision, and the limits for its logits
trace                intermediate tensors by name, and the first that differs
check_exported       the check of verify.py and verify_flash.py
check_tflite         the check of verify_tflite.py
output               the console report and the exit code
flags                the flags of the commands
"""
