"""TinyLlama on a device: the demo side of the toolchain (model, tokenizer, and what runs them)."""
