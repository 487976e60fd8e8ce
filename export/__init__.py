"""From a Hugging Face checkpoint to a package for a device.

    architectures       what transformers' source says about a model type
    config              the facts of config.json
    families            what a model family needs beyond the general rules
    preflight           refusal of models that cannot be converted
    model_traits        what is special about a model, for the plan
    options             the options of an export, and which exclude each other
    hub                 a checkpoint's folder, or a model of the hub
    model               the model's structure without weights
    authoring, models   models that transformers does not have: a user's, and those of this package
    attention           attention as one operator, for any model of transformers
    traced_cache        stand-ins for transformers' KV cache while a graph is traced
    custom_ops          operators that Circle has and torch lacks
    modules             the inputs and outputs of prefill and decode
    circle              torch.export, TICO, Circle
    tensor_names        readable tensor names
    fx_passes           torch.fx for TICO
    parameter_matching  which stored tensor belongs to which parameter
    parameter_binding   parameters become weights, or references to the checkpoint
    traced_graph        a graph without weights, and those of other lengths that follow from it
    graph_cache         traced graphs, for all checkpoints of one architecture
    build_graph         one graph, from a checkpoint's folder to an `o2o` model
    graph_specs         the graphs of a package
    graph_groups        which of them is traced, and which are derived
    resources           estimates of disk and memory
    export_graphs       all graphs of a package: `python -m export MODEL -o DIR`
    pipeline            the command that builds a package: `python -m export.pipeline`
    package_builder     a package, built by these shell commands:
    circle_commands     export, filters and binding, to a Circle model
    tflite_commands     export, filters and binding, to a TFLite model
    package_files       the tokenizer's and other files of a package
    shell, processes, staging           commands, children and files that leave nothing behind

Letters of dimensions: B batch, T tokens, S cache capacity, N query heads, K key/value heads, H head
dimension, D model dimension, V vocabulary.
"""
