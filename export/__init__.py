"""From a Hugging Face checkpoint to the graphs of a device: prefill and decode, as `o2o` models.

    hub          where a checkpoint is: a folder, or a model of the hub
    model        the model of a config.json: structure without weights
    cache        what stands in for transformers' KV cache while a graph is traced
    operators    the operators that torch lacks and Circle has
    graphs       what prefill and decode take and give
    circle       torch.export -> TICO -> Circle
    naming       readable tensor names
    fx           what TICO's passes need not do again and again
    weights      parameters become constants: numbers of the checkpoint, or references to them
    build        all of it, in order: `prefill()` and `decode()`
    jobs         which graphs a package is made of
    resources    what an export needs, and whether that is there
    package      the tokenizer's and other files that go along with the model

`python -m export MODEL -o DIR` is all of it.

Shapes are told in these letters: B batch, T tokens, S (or C) cache capacity, N query heads, K key/value
heads, H head dimension, D model dimension, V vocabulary.
"""
