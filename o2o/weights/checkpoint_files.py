"""Names of the files of a checkpoint that decide which tokens a text has."""

CONFIGS = ("config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
"""Each is a name or a pattern."""
