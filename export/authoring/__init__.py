"""Models of one's own: a Python file defines the model, and the conversion takes it as it takes others.

`docs/author-a-model.md` builds one from scratch. The modules:

- `config`: the configuration that a model has, as `config.json` has it.
- `building_blocks`: attention, rotary embeddings, feed-forward layers, blocks, a whole decoder.
- `tensor_names`: a table that maps the tensors of a checkpoint onto parameters.
- `model_file`: loading of the file, and what it must define.
- `checkpoint`: the derived checkpoint of such a model.
- `adapter`: the model as a model of transformers, which export traces.
"""
