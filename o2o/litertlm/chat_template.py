"""The chat template of a checkpoint, in the form that LiteRT-LM renders as transformers does.

Its engine (minijinja) gives a template no special tokens, and has no `{% generation %}`. And it puts the
start token before the rendered text, where transformers does not. So special tokens become variables of the
template, and a template that writes the start token itself loses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from jinja2.sandbox import ImmutableSandboxedEnvironment

PLAIN = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
"""The template for a model without one: the texts of the messages."""
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_SAMPLE = ({"role": "user", "content": "Hello"},)


def adapt(template: str, special_tokens: Mapping[str, str], starts: bool) -> str:
    """Adapt a chat template to LiteRT-LM.

    Args:
        template: The checkpoint's template.
        special_tokens: Text by role, such as `bos_token`.
        starts: Whether LiteRT-LM puts `bos_token` before a text.

    Returns:
        The template for its metadata.
    """
    template = _GENERATION.sub("", template)
    bos = special_tokens.get("bos_token", "")
    tokens = {**special_tokens, "bos_token": ""} if starts else dict(special_tokens)
    if starts and bos and (rendered := _rendered(template, tokens)) and rendered.startswith(bos):
        without = template.replace(bos, "", 1)
        if _rendered(without, tokens) == rendered.removeprefix(bos):
            template = without
    used = {role: text for role, text in tokens.items() if role in template}
    return "".join(f"{{% set {role} = {json.dumps(text)} %}}" for role, text in used.items()) + template


def _rendered(template: str, special_tokens: Mapping[str, str]) -> str | None:
    """A message in the template; None if it cannot be rendered."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda format: ""
    try:
        rendered = environment.from_string(template).render(
            messages=list(_SAMPLE), add_generation_prompt=True, **special_tokens
        )
    except Exception:  # templates are programs of the checkpoint
        return None
    return rendered
