"""The notation that plots are written in, and the beats that several of them share.

A plot is a sequence of beats, and a beat a choice of ``str.format`` templates, one of which is told. The
first beat is the *hook*: its templates start with ``{N}``, so that a lead-in such as "One day, " can stand
before it, and it brings in what the story is about. From there on the hero's name may be replaced by a
pronoun, and the thing is always "the {o}" or "it". In the notation

* a beat starts with ``-`` and goes on over the following lines; ``|`` parts its templates, ``~`` is the
  empty one (which makes the beat optional), and ``@name`` stands for all the templates of a shared beat. A
  template that comes twice is told twice as often;
* after the beats may come the plot's variants, sets of extra fields of which each story gets one: a line
  starts with ``*`` and holds ``field = value`` parted by ``|``.

Fields (upper case at the start of a sentence): ``{N} {n} {he} {him} {his} {himself}`` the hero; ``{F} {fhe}
{fhim} {fhis}`` the friend; ``{gp} {ghe} {ghim}`` a grown-up of the hero's family (``{Gp}`` in direct
speech); ``{o} {ao} {os} {co} {aco}`` the thing, bare, with its article, in the plural, with its colour or
another adjective, with both; ``{fact} {fact2}`` sentences about it; ``{use} {used} {use2} {used2}`` what
one does with it; ``{broke}`` how it breaks; ``{o2} {ao2}`` another thing that would suit the plot;
``{in_place} {to_place} {sight}`` the place; ``{spot}`` where the thing lies; ``{seek1} {seek2} {seek3}``
where it is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tinyllama.demo.notation import entries

Beat = tuple[str, ...]
Variant = dict[str, str]

ALL_KINDS = ("nature", "toy", "food", "wear", "thing")

# The bare "picked up a Y." is the commonest way for a thing to appear: it is what the demo's prompt says.
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
    """The beats of a text in this module's notation."""
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
    """The variants of a text in this module's notation; the one without extra fields if it names none."""
    variants: list[Variant] = []
    for entry in entries(text, "*"):
        pairs = (part.partition(" = ") for part in entry)
        variants.append({name: value for name, _, value in pairs})
    return tuple(variants) or ({},)


@dataclass(frozen=True, eq=False)
class Plot:
    """One kind of story.

    ``text`` holds the beats and the variants in this module's notation. ``kinds`` and ``nouns`` restrict
    the thing that it may turn on (no ``nouns``: any of those kinds), ``cast`` who may be its hero ("child",
    "animal" or "any"). ``weight`` is the relative frequency among the plots. A plot that ``has_weather`` gets
    no opening that promises a sunny day.
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
