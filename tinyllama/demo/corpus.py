"""Short children's stories, generated from the hand-written grammar of ``words`` and the plots.

A story is about one hero, one thing, one place and one small problem. Each is drawn once and stored in a
:class:`Scene`. So pronouns agree, and the thing of the first sentence is the thing of the last.

Everything is a function of the seed. The generator also sums the information of its own choices. Their mean
per token bounds the loss of a perfect model of the grammar from above, and is the yardstick of training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TypeVar

from tinyllama.demo import words
from tinyllama.demo.plot import Plot
from tinyllama.demo.plots_of_days import DAY_PLOTS
from tinyllama.demo.plots_of_things import THING_PLOTS
from tinyllama.demo.things import THINGS, Thing, article, plural

T = TypeVar("T")

PLOTS = THING_PLOTS + DAY_PLOTS

# Share of the heroes that are animals where the plot leaves the choice, and of those that have no name.
ANIMAL_SHARE = 0.15
NAMELESS_SHARE = 0.5
NAMELESS_CHILD_SHARE = 0.06
# Share of the stories that open with "Once upon a time" or the like before the plot's hook, and of the
# others, the share of those whose hook has a lead-in such as "One day, ".
INTRO_SHARE = 0.35
LEAD_SHARE = 0.3

LEADS = ("One day, ", "One day, ", "One day, ", "One morning, ", "Today, ")
SUNNY_LEADS = (*LEADS, "One sunny day, ")
INTROS = (
    "Once upon a time, there was a little {kid}{named}.",
    "Once upon a time, there was a little {kid}{named}.",
    "Once upon a time, there was a {trait} {kid}{named}.",
    "Once there was a little {kid}{named}.",
    "There was a {trait} little {kid}{named}.",
    "A little {kid}{named} lived in {home}.",
)
WEATHER_INTRO = "It was a {weather} day."
WEATHER_INTRO_SHARE = 0.15
THING_INTROS = ("{N} loved {os}.", "{N} liked {os} very much.")
THING_INTRO_SHARE = 0.15
HABITS = ("{He} loved to {hobby}.", "{He} liked to {hobby}.")
CHILD_HABITS = (*HABITS, "{He} lived with {his} {gp}.", "{He} was {age} years old.", "")
ANIMAL_HABITS = (*HABITS, "{N} loved to {hobby}.", "")
WEATHERS = ("sunny", "warm", "nice", "beautiful")
AGES = ("three", "four", "five")
HOMES = ("a small house", "a big house", "a little town", "a house by the sea", "a red house")


class Dice:
    """A seeded source of choices that sums their information.

    Attributes:
        nats: The sum of ``-log p`` over all choices so far. It is an upper bound of the text's ``-log p``:
            a text may have several derivations.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.nats = 0.0

    def choice(self, options: Sequence[T]) -> T:
        """Choose one option; all are equally likely, and one that is listed twice is twice as likely.

        Args:
            options: The options.

        Returns:
            One of them.
        """
        chosen = options[self._random.randrange(len(options))]
        self.nats -= math.log(options.count(chosen) / len(options))
        return chosen

    def weighted(self, options: Sequence[T], weights: Sequence[int]) -> T:
        """Choose one option with probability proportional to its weight.

        Args:
            options: The options.
            weights: One for each option.

        Returns:
            One of the options.
        """
        index = self._random.choices(range(len(options)), weights)[0]
        self.nats -= math.log(weights[index] / sum(weights))
        return options[index]

    def chance(self, p: float) -> bool:
        """Draw a yes or no; certainties cost neither a draw nor information.

        Args:
            p: The probability of yes.

        Returns:
            Whether it is yes.
        """
        if p in (0.0, 1.0):
            return p == 1.0
        hit = self._random.random() < p
        self.nats -= math.log(p if hit else 1.0 - p)
        return hit


@dataclass(frozen=True)
class Story:
    """One story: its text (one line, sentences separated by single spaces), its plot, its information."""

    text: str
    plot: str
    nats: float


_PRONOUN_FORMS = ("he", "him", "his", "himself")
_SEEK_KEYS = ("seek1", "seek2", "seek3")


def _pronoun_keys(prefix: str) -> list[str]:
    """The field names of one person's pronouns: ``fhe``, ..., then ``Fhe``, ... for the prefix ``f``."""
    lower = [prefix + form for form in _PRONOUN_FORMS]
    return lower + [key.capitalize() for key in lower]


@cache
def _things_of(plot: Plot) -> tuple[Thing, ...]:
    """The things that the plot can be about."""
    fitting = (thing for thing in THINGS if thing.kind in plot.kinds)
    return tuple(thing for thing in fitting if not plot.nouns or thing.noun in plot.nouns)


class Scene(dict[str, str]):
    """The fields for the templates of one story; a field's value may itself contain fields.

    The hero is drawn first, everything else when a template needs it. So a story without a friend spends no
    choice on one, and the information that the dice count is that of the text.
    """

    def __init__(self, dice: Dice, plot: Plot) -> None:
        super().__init__(dice.choice(plot.variants))
        self._dice = dice
        self._plot = plot
        self._homes: Sequence[str]
        self._hobbies: Sequence[str]
        self.is_animal = self._draw_hero()
        # How each missing field is drawn.
        self._draw: dict[str, Callable[[], None]] = {
            **dict.fromkeys(("F", *_pronoun_keys("f")), self._draw_friend),
            **dict.fromkeys(("gp", "Gp", *_pronoun_keys("g")), self._draw_grownup),
            **dict.fromkeys(("o", "ao", "os", "broke"), self._name_thing),
            **dict.fromkeys(("o2", "ao2"), self._draw_other_thing),
            **dict.fromkeys(("co", "aco"), self._draw_adjective),
            **dict.fromkeys(("use", "used"), self._draw_use),
            **dict.fromkeys(("use2", "used2"), self._draw_second_use),
            **dict.fromkeys(("in_place", "to_place", "sight"), self._draw_place),
            **{key: partial(self._draw_seek, key) for key in _SEEK_KEYS},
            # A thing without colours has no sentence that names its colour.
            "color": lambda: self._draw_from("color", self.thing.colors),
            "fact": lambda: self._draw_from("fact", self.thing.facts),
            "fact2": lambda: self._draw_from("fact2", [f for f in self.thing.facts if f != self["fact"]]),
            "spot": lambda: self._draw_from("spot", self._spots()),
            "home": lambda: self._draw_from("home", self._homes),
            "hobby": lambda: self._draw_from("hobby", self._hobbies),
            "trait": lambda: self._draw_from("trait", words.TRAITS),
            "age": lambda: self._draw_from("age", AGES),
            "weather": lambda: self._draw_from("weather", WEATHERS),
        }

    def __missing__(self, key: str) -> str:
        self._draw[key]()
        return self[key]

    def fill(self, template: str, **overrides: str) -> str:
        """Fill all fields of a template, and the fields within those. An unknown field raises KeyError.

        Args:
            template: The template.
            **overrides: Values that replace the scene's.

        Returns:
            The text.
        """
        text = template
        for name, value in overrides.items():
            text = text.replace("{" + name + "}", value)
        while "{" in text:
            text = text.format_map(self)
        return text

    def _add_pronouns(self, prefix: str, pronouns: words.Pronouns) -> None:
        """The forms of one person under ``prefix`` + he, him, his, himself, and the same capitalised."""
        for key, form in zip(_pronoun_keys(prefix), 2 * _PRONOUN_FORMS, strict=True):
            value: str = getattr(pronouns, form)
            self[key] = value.capitalize() if key[0].isupper() else value

    def _draw_hero(self) -> bool:
        dice = self._dice
        animal_p = {"any": ANIMAL_SHARE, "child": 0.0, "animal": 1.0}[self._plot.cast]
        is_animal = dice.chance(animal_p)
        if is_animal:
            animal = dice.choice(words.ANIMALS)
            nameless = dice.chance(NAMELESS_SHARE)
            name = f"the little {animal.noun}" if nameless else dice.choice(animal.names)
            pronouns, kid = animal.pronouns, animal.noun
            self._homes, self._hobbies = (animal.home,), animal.hobbies
        else:
            is_girl = dice.chance(0.5)
            pronouns, kid = (words.SHE, "girl") if is_girl else (words.HE, "boy")
            nameless = dice.chance(NAMELESS_CHILD_SHARE)
            if nameless:
                name = dice.choice((f"the little {kid}", f"the {kid}"))
            else:
                name = dice.choice(words.GIRLS if is_girl else words.BOYS)
            self._homes, self._hobbies = HOMES, words.HOBBIES
        self._add_pronouns("", pronouns)
        self.update(n=name, N=name[0].upper() + name[1:], kid=kid, named="" if nameless else f" named {name}")
        return is_animal

    def _draw_from(self, key: str, options: Sequence[str]) -> None:
        self[key] = self._dice.choice(options)

    def _draw_friend(self) -> None:
        # Always a child, of another name than the hero's.
        is_girl = self._dice.chance(0.5)
        names = [name for name in (words.GIRLS if is_girl else words.BOYS) if name != self["n"]]
        self["F"] = self._dice.choice(names)
        self._add_pronouns("f", words.SHE if is_girl else words.HE)

    def _draw_grownup(self) -> None:
        self["gp"], pronouns = self._dice.choice(words.GROWNUPS)
        self["Gp"] = self["gp"].capitalize()
        self._add_pronouns("g", pronouns)

    @cached_property
    def thing(self) -> Thing:
        """The thing that the story is about."""
        return self._dice.choice(_things_of(self._plot))

    def _name_thing(self) -> None:
        thing = self.thing
        self.update(
            o=thing.noun, ao=f"{article(thing.noun)} {thing.noun}", os=plural(thing.noun), broke=thing.broke
        )

    def _draw_other_thing(self) -> None:
        other = self._dice.choice([thing for thing in _things_of(self._plot) if thing != self.thing])
        self.update(o2=other.noun, ao2=f"{article(other.noun)} {other.noun}")

    def _draw_adjective(self) -> None:
        noun = self.thing.noun
        by_color = bool(self.thing.colors) and self._dice.chance(0.5)
        adjective = self["color"] if by_color else self._dice.choice(self.thing.adjectives)
        self.update(co=f"{adjective} {noun}", aco=f"{article(adjective)} {adjective} {noun}")

    def _draw_use(self) -> None:
        self["use"], self["used"] = self._dice.choice(self.thing.uses)

    def _draw_second_use(self) -> None:
        first = self["use"]
        others = [use for use in self.thing.uses if use[0] != first]
        self["use2"], self["used2"] = self._dice.choice(others)

    def _spots(self) -> Sequence[str]:
        return words.TABLE_SPOTS if self.thing.kind == "food" else words.GROUND_SPOTS

    def _draw_place(self) -> None:
        place = self._dice.choice(words.PLACES)
        self.update(in_place=place.inside, to_place=place.toward, sight=place.sight)

    def _draw_seek(self, key: str) -> None:
        taken = [self[other] for other in _SEEK_KEYS if other in self]
        self[key] = self._dice.choice([spot for spot in words.SEARCH_SPOTS if spot not in taken])


def _opening(dice: Dice, scene: Scene, plot: Plot) -> tuple[list[str], str]:
    """The sentences before the hook, and the hook's lead-in; both may be empty."""
    leads = LEADS if plot.has_weather else SUNNY_LEADS
    if not dice.chance(INTRO_SHARE):
        return [], dice.choice(leads) if dice.chance(LEAD_SHARE) else ""
    if not plot.has_weather and dice.chance(WEATHER_INTRO_SHARE):
        return [scene.fill(WEATHER_INTRO)], ""
    if plot in THING_PLOTS and dice.chance(THING_INTRO_SHARE):
        return [scene.fill(dice.choice(THING_INTROS))], dice.choice(leads)
    habits = ANIMAL_HABITS if scene.is_animal else CHILD_HABITS
    return [scene.fill(dice.choice(INTROS)), scene.fill(dice.choice(habits))], dice.choice(leads)


def make_story(dice: Dice) -> Story:
    """Generate one story.

    Args:
        dice: Makes the choices.

    Returns:
        The story.
    """
    before = dice.nats
    plot = dice.weighted(PLOTS, [plot.weight for plot in PLOTS])
    scene = Scene(dice, plot)
    sentences, lead = _opening(dice, scene, plot)
    hook, *beats = plot.beats
    # After a lead-in the hero stands inside the sentence: "One day, the little dog", not "The little dog".
    hero = scene["n" if lead else "N"]
    sentences.append(lead + scene.fill(dice.choice(hook), N=hero))
    sentences.extend(scene.fill(dice.choice(beat)) for beat in beats)
    return Story(" ".join(sentence for sentence in sentences if sentence), plot.name, dice.nats - before)


def stories(seed: int) -> Iterator[Story]:
    """Generate an endless stream of stories.

    Args:
        seed: The same seed gives the same stories.

    Yields:
        The stories.
    """
    dice = Dice(seed)
    while True:
        yield make_story(dice)


def make_stories(count: int, seed: int) -> list[Story]:
    """Generate the first stories of :func:`stories`.

    Args:
        count: How many.
        seed: See :func:`stories`.

    Returns:
        The stories.
    """
    stream = stories(seed)
    return [next(stream) for _ in range(count)]
