"""Do two forms of one model say the same? What the verifying commands beside this folder have in common.

predictor      what is compared: something that gives logits, step by step
hugging_face, exported, tflite     its forms: transformers, torch.export's program, a file on LiteRT
interpreted    that file with every tensor on the way to be seen
comparison     both fed the same tokens: how far are their logits apart, where do their choices part
weights        are those in a file the checkpoint's?
imitation      transformers with the weights of a quantised file, rounding as its kernels do
precision      how a file stores and computes, and so what may be asked of its logits
trace          the tensors on the way to the logits, and the first that differs
reauthored     the check of verify.py and verify_flash.py
converted      the check of verify_tflite.py
report         what is printed, and the verdict
flags          the commands' flags
"""
