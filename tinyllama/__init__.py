"""TinyLlama on a device: the demo of the toolchain, with its model, commands and verification."""
