"""Word tables of the story grammar: heroes and places.

Every row holds what the sentences around it need: pronouns, article, colours, uses. So a plot need not know
which row it was given. Phrases are ``str.format`` templates over the fields of
:class:`tinyllama.demo.corpus.Scene`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pronouns:
    """The third-person forms of one gender: *she* saw *her*, it was *her* hat, by *herself*."""

    he: str
    him: str
    his: str
    himself: str


HE = Pronouns("he", "him", "his", "himself")
SHE = Pronouns("she", "her", "her", "herself")


@dataclass(frozen=True)
class Animal:
    """An animal that can be the hero of a story; ``names`` are used by no child and no other animal."""

    noun: str
    pronouns: Pronouns
    names: tuple[str, ...]
    home: str
    hobbies: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A place out of doors, with the two prepositional phrases that it takes and one thing to see there."""

    inside: str
    toward: str
    sight: str


GIRLS = (
    "Lily", "Mia", "Anna", "Sara", "Lucy", "Amy", "Sue", "Zoe", "Emma",
    "Kate", "Ella", "Nina", "Jane", "Mary", "Ruby", "Eva", "Molly", "Beth",
)  # fmt: skip
BOYS = (
    "Tom", "Ben", "Max", "Tim", "Sam", "Jack", "Leo", "Bob", "Dan",
    "Finn", "Joe", "Nick", "Luke", "Adam", "Fred", "Jim", "Peter", "Noah",
)  # fmt: skip

ANIMALS = (
    Animal("dog", HE, ("Spot", "Rex"), "a small house", ("run", "dig holes", "chase sticks")),
    Animal(
        "cat", SHE, ("Kitty", "Luna"), "a warm house", ("sleep in the sun", "climb trees", "chase leaves")
    ),
    Animal("bunny", SHE, ("Fluffy", "Bella"), "a green field", ("hop", "eat carrots", "jump over rocks")),
    Animal(
        "bear", HE, ("Bruno", "Teddy"), "a big forest", ("eat honey", "climb trees", "roll down the hill")
    ),
    Animal("bird", SHE, ("Tweety", "Sunny"), "a tall tree", ("sing", "fly high", "look at the clouds")),
    Animal("duck", SHE, ("Daisy", "Dolly"), "a blue pond", ("swim", "splash in the water", "look for fish")),
    Animal("frog", HE, ("Hoppy", "Freddy"), "a green pond", ("jump", "swim", "sit in the rain")),
    Animal("fox", HE, ("Rusty", "Felix"), "a quiet forest", ("run", "hide in the grass", "play tricks")),
    Animal(
        "mouse", SHE, ("Minnie", "Pip"), "a tiny hole", ("run", "look for cheese", "hide in small places")
    ),
    Animal(
        "turtle", HE, ("Timmy", "Sheldon"), "a quiet pond", ("walk in the sun", "swim", "look at the sky")
    ),
    Animal("pig", HE, ("Piggy", "Oscar"), "a big farm", ("roll in the mud", "eat apples", "run")),
)

HOBBIES = (
    "play in the park",
    "play with {his} friends",
    "sing",
    "draw",
    "dance",
    "run",
    "read books",
    "help {his} {gp}",
    "look for pretty things",
    "play outside",
    "climb trees",
    "ask questions",
)
TRAITS = ("kind", "happy", "brave", "smart", "quiet", "curious", "friendly", "good")

GROWNUPS = (("mom", SHE), ("dad", HE), ("grandma", SHE), ("grandpa", HE))

PLACES = (
    Place("in the park", "to the park", "many kids on the swings"),
    Place("in the garden", "to the garden", "bees on the roses"),
    Place("in the yard", "to the yard", "a bird on the fence"),
    Place("at the beach", "to the beach", "big waves"),
    Place("on the farm", "to the farm", "cows and hens"),
    Place("in the forest", "to the forest", "tall trees"),
    Place("in the field", "to the field", "long green grass"),
    Place("by the lake", "to the lake", "ducks on the water"),
    Place("by the river", "to the river", "fish in the water"),
    Place("on the hill", "to the hill", "the whole town"),
    Place("near the school", "to the school", "kids with big bags"),
    Place("in front of the house", "out of the house", "a cat on the wall"),
)

# Where a thing lies before somebody picks it up; food is not picked up from the ground.
GROUND_SPOTS = (
    "on the ground",
    "on the grass",
    "under a tree",
    "on a bench",
    "by the gate",
    "near a big rock",
)
TABLE_SPOTS = ("on the table", "on a plate", "in a basket", "in the kitchen")
SEARCH_SPOTS = (
    "under the bed",
    "in the big box",
    "behind the sofa",
    "in the garden",
    "on the chair",
    "behind the door",
    "in the kitchen",
    "under the table",
    "in the bath",
    "in {his} bag",
    "under the blanket",
    "in the car",
)
