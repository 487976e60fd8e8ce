"""`.litertlm`, the file of Google's LiteRT-LM: a language model with its tokenizer and metadata.

container       the sections of a file
llm_metadata    one section: tokens that start and stop, chat template, sampler
chat_template   chat templates, as LiteRT-LM renders them
package_files   the tokenizer and configuration files of a package, as sections and back
summary         the description of a file for inspect.model.py
"""

from o2o.litertlm.container import Bundle, is_bundle, language_model, read_bundle

__all__ = ["Bundle", "is_bundle", "language_model", "read_bundle"]
