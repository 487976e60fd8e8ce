"""The notation of plots, and the beats that several plots share.

A plot is a sequence of beats. A beat is a choice of ``str.format`` templates, of which a story gets one. The
first beat is the *hook*. Its templates start with ``{N}``, so that a lead-in such as "One day, " can precede
it, and it introduces the topic. After the hook the hero's name may be replaced by a pronoun, and the thing is
always "the {o}" or "it". In the notation

* A beat starts with ``-`` and may continue on the following lines. ``|`` separates its templates.
* ``~`` is the empty template, which makes the beat optional.
* ``@name`` stands for all templates of a shared beat.
* A template that is listed twice is chosen twice as often.
* The plot's variants may follow the beats. Each is a set of extra fields, and each story gets one.
* A variant's line starts with ``*`` and holds ``field = value`` pairs, separated by ``|``.

Fields (upper case at the start of a sentence): ``{N} {n} {he} {him} {his} {himself}`` the hero; ``{F} {fhe}
{fhim} {fhis}`` the friend; ``{gp} {ghe} {ghim}`` a grown-up of the hero's family (``{Gp}`` in direct
speech); ``{o} {ao} {os} {co} {aco}`` the thing, bare, with its article, in the plural, with its colour or
another adjective, with both; ``{fact} {fact2}`` sentences about it; ``{use} {used} {use2} {used2}`` its
use; ``{broke}`` how it breaks; ``{o2} {ao2}`` another thing that would suit the plot;
``{in_place} {to_place} {sight}`` the place; ``{spot}`` the place of the thing; ``{seek1} {seek2} {seek3}``
places to search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tinyllama.demo.notation import entries

Beat = tuple[str, ...]
Variant = dict[str, str]

ALL_KINDS = ("nature", "toy", "food", "wear", "thing")

# The bare "picked up a Y." is the most frequent template: it is the demo's prompt.
_SHARED_BEATS = {
    "pick_up": """
- {N} picked up {ao}. | {N} picked up {ao}. | {N} picked up {ao}. | {N} picked up {aco}.
  | {N} saw {ao} {spot}. {He} picked it up. | {N} found {aco} {spot}. {He} picked it up.
""",
    "look": """
- {fact} | {fact} | {fact} {fact2} | {N} looked at the {o}. {fact}
""",
    "enjoy": """
- {He} {used}. | {He} wanted to {use}. So {he} {used}. | First, {he} {used}. Then {he} {used2}.
  | {He} {used} and smiled.
""",
    "happy_end": """
- {N} was very happy. | {N} smiled all day. | It was the best day ever. | {He} felt happy and warm inside. | ~
""",
    "home_end": """
- {N} was very happy. | {N} smiled all day. | {N} went home with a big smile. | It was the best day ever.
  | Then {n} went home and told {his} {gp} all about it. | ~
""",
    "friends_end": """
- They were both very happy. | They laughed and played all day. | They became best friends.
  | They played together until the sun went down. | {N} and {F} smiled at each other.
""",
    "hug_end": """
- {His} {gp} gave {him} a big hug. | {His} {gp} smiled and hugged {him}.
  | {His} {gp} was very proud of {him}. | "I love you," said {his} {gp}.
""",
}


def parse_beats(text: str) -> tuple[Beat, ...]:
    """Parse beats.

    Args:
        text: A text in this module's notation.

    Returns:
        The beats.
    """
    beats: list[Beat] = []
    for entry in entries(text, "-"):
        templates: list[str] = []
        for template in entry:
            if template.startswith("@"):
                (shared,) = parse_beats(_SHARED_BEATS[template[1:]])
                templates += shared
            else:
                templates.append("" if template == "~" else template)
        beats.append(tuple(templates))
    return tuple(beats)


def parse_variants(text: str) -> tuple[Variant, ...]:
    """Parse variants.

    Args:
        text: A text in this module's notation.

    Returns:
        The variants; one without extra fields if the text has none.
    """
    variants: list[Variant] = []
    for entry in entries(text, "*"):
        pairs = (part.partition(" = ") for part in entry)
        variants.append({name: value for name, _, value in pairs})
    return tuple(variants) or ({},)


@dataclass(frozen=True, eq=False)
class Plot:
    """One kind of story.

    Attributes:
        name: The plot's name.
        text: The beats and the variants, in this module's notation.
        kinds: The kinds of things that it may be about.
        nouns: The things that it may be about; empty for all of these kinds.
        cast: Who may be its hero: "child", "animal" or "any".
        weight: Its relative frequency.
        has_weather: Whether it mentions the weather; then no opening promises a sunny day.
    """

    name: str
    text: str
    kinds: tuple[str, ...] = ALL_KINDS
    nouns: tuple[str, ...] = ()
    cast: str = "any"
    weight: int = 2
    has_weather: bool = False

    @cached_property
    def beats(self) -> tuple[Beat, ...]:
        """The hook and the beats after it."""
        return parse_beats(self.text)

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The alternative sets of extra fields."""
        return parse_variants(self.text)
