"""Word tables of the story grammar: who a story can be about, which thing, and where.

Every table row carries what the sentences around it need to agree with it (pronouns, article, colours, what
one does with the thing), so that a plot never has to know which row it was given. Phrases are
``str.format`` templates over the fields of :class:`tinyllama.demo.corpus.Scene`.
"""

from __future__ import annotations

from dataclasses import dataclass

COLORS = ("red", "blue", "green", "yellow", "pink", "white", "brown", "orange", "purple", "black")


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
class Thing:
    """An object that a story can turn on.

    ``kind`` decides which plots may use it. ``colors`` may be empty. ``facts`` are whole sentences that are
    true of the thing and start with "It". ``uses`` are verb phrases written ``infinitive/past rest``, as in
    ``throw/threw it high``. ``broke`` tells how a toy breaks (no other kind needs it).
    """

    noun: str
    kind: str
    colors: tuple[str, ...]
    adjectives: tuple[str, ...]
    facts: tuple[str, ...]
    uses: tuple[str, ...]
    broke: str = ""

    @property
    def article(self) -> str:
        """The indefinite article that the bare noun takes."""
        return article(self.noun)


@dataclass(frozen=True)
class Place:
    """A place out of doors, with the two prepositional phrases that it takes and one thing to see there."""

    inside: str
    toward: str
    sight: str


def article(phrase: str) -> str:
    """``"an"`` before a vowel letter, else ``"a"`` (the tables hold no word such as *hour* or *unicorn*)."""
    return "an" if phrase[0] in "aeiou" else "a"


def verb_forms(use: str) -> tuple[str, str]:
    """Splits ``"throw/threw it high"`` into ``("throw it high", "threw it high")``."""
    forms, _, rest = use.partition(" ")
    infinitive, past = forms.split("/")
    return f"{infinitive} {rest}", f"{past} {rest}"


GIRLS = (
    "Lily", "Mia", "Anna", "Sara", "Lucy", "Amy", "Sue", "Zoe", "Emma", "Kate", "Ella", "Nina", "Jane", "Mary",
    "Ruby", "Eva", "Molly", "Beth",
)  # fmt: skip
BOYS = (
    "Tom", "Ben", "Max", "Tim", "Sam", "Jack", "Leo", "Bob", "Dan", "Finn", "Joe", "Nick", "Luke", "Adam", "Fred",
    "Jim", "Peter", "Noah",
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
    "play in the park", "play with {his} friends", "sing", "draw", "dance", "run", "read books", "help {his} {gp}",
    "look for pretty things", "play outside", "climb trees", "ask questions",
)  # fmt: skip
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
    "under the bed", "in the big box", "behind the sofa", "in the garden", "on the chair", "behind the door",
    "in the kitchen", "under the table", "in the bath", "in {his} bag", "under the blanket", "in the car",
)  # fmt: skip

_BRIGHT = ("red", "blue", "green", "yellow", "pink", "orange", "purple")
_PETALS = ("red", "yellow", "pink", "white", "blue", "purple")

THINGS = (
    # Things that lie about outside.
    Thing("flower", "nature", _PETALS, ("pretty", "small"),
          ("It was {color} and smelled sweet.", "It had soft {color} petals.", "It smelled very nice.",
           "It was the prettiest flower {in_place}."),
          ("smell/smelled it", "put/put it in a cup of water", "put/put it in {his} hair",
           "show/showed it to {his} {gp}")),
    Thing("leaf", "nature", ("green", "yellow", "brown", "red"), ("big", "dry"),
          ("It was {color} and very light.", "It looked like a little hand.", "It had fallen from a tall tree."),
          ("put/put it in {his} book", "throw/threw it up in the air", "make/made a hat with it")),
    Thing("rock", "nature", ("white", "black", "brown"), ("round", "shiny"),
          ("It was {color} and smooth.", "It was cold and heavy.", "It was shiny in the sun."),
          ("throw/threw it in the water", "paint/painted a face on it", "put/put it in {his} pocket")),
    Thing("shell", "nature", ("white", "pink", "brown"), ("pretty", "tiny"),
          ("It was {color} and smooth.", "It sounded like the sea.", "It was shaped like a fan."),
          ("hold/held it to {his} ear", "wash/washed it in the water", "put/put it in {his} pocket")),
    Thing("stick", "nature", (), ("long", "thin"),
          ("It was long and thin.", "It looked like a magic wand.", "It was very strong."),
          ("draw/drew a house in the sand with it", "wave/waved it in the air", "dig/dug a hole with it")),
    Thing("feather", "nature", ("white", "blue", "black", "brown"), ("soft", "long"),
          ("It was {color} and very soft.", "It was as light as air.", "It came from a big bird."),
          ("put/put it in {his} hat", "blow/blew it into the air", "tickle/tickled {his} nose with it")),
    Thing("seed", "nature", ("brown", "black", "white"), ("tiny", "round"),
          ("It was small and {color}.", "It was as small as an ant.", "It was hard and round."),
          ("put/put it in the ground", "give/gave it some water", "keep/kept it in a little pot")),
    Thing("nut", "nature", ("brown",), ("round", "big"),
          ("It was hard and brown.", "It was round and shiny.", "It had fallen from a tall tree."),
          ("roll/rolled it down the hill", "show/showed it to a squirrel", "put/put it in {his} pocket")),
    # Toys.
    Thing("ball", "toy", _BRIGHT, ("big", "round"),
          ("It was {color} and round.", "It was big and bouncy.", "It could bounce very high."),
          ("kick/kicked it", "throw/threw it up high", "bounce/bounced it on the ground", "roll/rolled it down the hill"),
          "All the air came out."),
    Thing("kite", "toy", _BRIGHT, ("big", "long"),
          ("It was {color} with a long tail.", "It had a long tail.", "It looked like a big bird."),
          ("fly/flew it in the wind", "run/ran with it", "make/made it go up high"), "The string broke."),
    Thing("doll", "toy", ("pink", "red", "blue", "white"), ("pretty", "little"),
          ("It had a {color} dress.", "It had long hair.", "It had a sweet smile."),
          ("brush/brushed its hair", "give/gave it a name", "hug/hugged it"), "One arm came off."),
    Thing("car", "toy", _BRIGHT, ("fast", "little"),
          ("It was {color} and fast.", "It had four black wheels.", "It could go very fast."),
          ("push/pushed it on the floor", "race/raced it down the hill", "make/made a road for it"),
          "One wheel came off."),
    Thing("truck", "toy", _BRIGHT, ("big", "strong"),
          ("It was {color} and strong.", "It had big wheels.", "It could carry a lot of sand."),
          ("fill/filled it with sand", "push/pushed it up the hill", "put/put rocks in it"), "One wheel came off."),
    Thing("boat", "toy", _BRIGHT, ("little", "fast"),
          ("It was {color} with a white sail.", "It had a little flag.", "It could float on the water."),
          ("put/put it on the water", "blow/blew on the sail", "sail/sailed it in the bath"), "The sail fell off."),
    Thing("train", "toy", _BRIGHT, ("long", "fast"),
          ("It was {color} and long.", "It had many small wheels.", "It could go choo choo."),
          ("push/pushed it around the room", "make/made a bridge for it", "put/put little blocks in it"),
          "The front wheel came off."),
    Thing("robot", "toy", ("red", "blue", "green", "white", "black"), ("big", "shiny"),
          ("It was {color} and shiny.", "It had two big eyes.", "It could walk and beep."),
          ("make/made it walk", "dance/danced with it", "talk/talked to it"), "One leg came off."),
    Thing("drum", "toy", _BRIGHT, ("loud", "round"),
          ("It was {color} and round.", "It was very loud.", "It went boom boom boom."),
          ("hit/hit it with a stick", "play/played a song on it", "march/marched with it"), "There was a big hole in it."),
    Thing("balloon", "toy", _BRIGHT, ("big", "round"),
          ("It was big and {color}.", "It was as round as the moon.", "It went up and down in the wind."),
          ("hold/held it by the string", "run/ran with it", "let/let it dance in the wind"), "It went pop."),
    Thing("teddy bear", "toy", ("brown", "white", "black"), ("soft", "big"),
          ("It was {color} and soft.", "It had a round tummy.", "It had two button eyes."),
          ("hug/hugged it", "give/gave it a name", "take/took it to bed"), "One ear came off."),
    Thing("puzzle", "toy", (), ("big", "new"),
          ("It had a picture of a farm.", "It had many small parts.", "It was very hard."),
          ("put/put all the parts on the floor", "start/started with the corners", "look/looked at the picture"),
          "One part was gone."),
    # Food.
    Thing("apple", "food", ("red", "green", "yellow"), ("big", "sweet"),
          ("It was {color} and round.", "It was sweet and full of juice.", "It came from a big tree."),
          ("eat/ate it", "take/took a big bite", "wash/washed it", "cut/cut it in two")),
    Thing("cake", "food", ("white", "pink", "brown", "yellow"), ("big", "sweet"),
          ("It was soft and sweet.", "It was {color} with a berry on top.", "It smelled very good."),
          ("eat/ate it", "take/took a big bite", "cut/cut it in two", "put/put it on a plate")),
    Thing("cookie", "food", (), ("big", "sweet"),
          ("It was warm and sweet.", "It was round like the moon.", "It smelled very good."),
          ("eat/ate it", "take/took a small bite", "break/broke it in two", "dip/dipped it in milk")),
    Thing("banana", "food", ("yellow",), ("long", "sweet"),
          ("It was long and yellow.", "It was soft and sweet.", "It looked like a smile."),
          ("eat/ate it", "take/took a big bite", "cut/cut it in two")),
    Thing("orange", "food", (), ("big", "sweet"),
          ("It was round and full of juice.", "It smelled fresh.", "It was as round as a ball."),
          ("eat/ate it", "make/made juice with it", "cut/cut it in two")),
    Thing("pear", "food", ("green", "yellow"), ("soft", "sweet"),
          ("It was {color} and sweet.", "It was soft and full of juice.", "It came from the old tree."),
          ("eat/ate it", "take/took a big bite", "wash/washed it")),
    Thing("carrot", "food", ("orange",), ("long", "fresh"),
          ("It was long and orange.", "It was fresh from the garden.", "It was hard and sweet."),
          ("eat/ate it", "wash/washed it", "cut/cut it in two")),
    Thing("sandwich", "food", (), ("big", "yummy"),
          ("It had cheese in it.", "It smelled very good.", "It was big and yummy."),
          ("eat/ate it", "take/took a big bite", "cut/cut it in two")),
    # Things to wear.
    Thing("hat", "wear", (*_BRIGHT, "white", "black"), ("big", "funny"),
          ("It was {color} and soft.", "It had a feather on top.", "It was a little too big."),
          ("put/put it on", "wear/wore it all day", "look/looked at it in the mirror")),
    Thing("scarf", "wear", (*_BRIGHT, "white"), ("long", "warm"),
          ("It was long and {color}.", "It was soft and warm.", "It had white stars on it."),
          ("put/put it on", "wear/wore it all day", "dance/danced with it")),
    Thing("ribbon", "wear", _PETALS, ("long", "pretty"),
          ("It was long and {color}.", "It was soft and shiny.", "It moved in the wind."),
          ("tie/tied it in a bow", "dance/danced with it", "wave/waved it in the air")),
    Thing("sock", "wear", (*_BRIGHT, "white"), ("warm", "funny"),
          ("It was {color} and warm.", "It had a hole in it.", "It was very long."),
          ("put/put it on", "wash/washed it", "make/made a puppet with it")),
    Thing("ring", "wear", (), ("shiny", "pretty"),
          ("It was shiny like the sun.", "It was very small.", "It had a red stone."),
          ("put/put it on", "clean/cleaned it", "hold/held it up to the light")),
    # Other things.
    Thing("book", "thing", _BRIGHT, ("big", "old"),
          ("It was {color} and old.", "It had many pictures.", "It was about a brave king."),
          ("read/read it", "look/looked at the pictures", "open/opened it")),
    Thing("cup", "thing", (*_BRIGHT, "white"), ("little", "pretty"),
          ("It was {color} and shiny.", "It had a star on it.", "It was small and pretty."),
          ("fill/filled it with water", "drink/drank from it", "wash/washed it")),
    Thing("key", "thing", (), ("old", "shiny"),
          ("It was old and heavy.", "It was small and shiny.", "It looked like a key to a secret door."),
          ("try/tried it in every door", "open/opened a little box with it", "put/put it in {his} pocket")),
    Thing("coin", "thing", (), ("shiny", "round"),
          ("It was round and shiny.", "It had a king on it.", "It was very old."),
          ("clean/cleaned it", "put/put it in {his} pocket", "spin/spun it on the table")),
    Thing("box", "thing", (*_BRIGHT, "brown"), ("little", "big"),
          ("It was {color} and light.", "It was full of buttons.", "It had a little lock."),
          ("open/opened it", "look/looked inside", "shake/shook it")),
    Thing("bell", "thing", (), ("little", "shiny"),
          ("It was small and shiny.", "It made a sweet sound.", "It went ding dong."),
          ("ring/rang it", "shake/shook it", "sing/sang with it")),
    Thing("spoon", "thing", (), ("big", "shiny"),
          ("It was big and shiny.", "It was cold and smooth.", "It was made of wood."),
          ("eat/ate soup with it", "dig/dug a hole with it", "hit/hit a pot with it")),
    Thing("crayon", "thing", COLORS, ("long", "new"),
          ("It was {color} and new.", "It was {color} like a little rainbow.", "It smelled like wax."),
          ("draw/drew a sun with it", "draw/drew a house with it", "write/wrote {his} name with it")),
    Thing("basket", "thing", ("brown", "white"), ("big", "little"),
          ("It was {color} and light.", "It was made of straw.", "It smelled like bread."),
          ("fill/filled it with berries", "put/put it on {his} head", "carry/carried eggs in it")),
    Thing("umbrella", "thing", (*_BRIGHT, "black"), ("big", "old"),
          ("It was {color} and big.", "It had white dots on it.", "It was as big as a tent."),
          ("open/opened it", "walk/walked in the rain with it", "hide/hid under it")),
    Thing("lamp", "thing", ("white", "yellow", "red", "blue"), ("little", "old"),
          ("It was {color} and small.", "It made a warm light.", "It was shaped like a star."),
          ("turn/turned it on", "put/put it by the bed", "read/read a book next to it")),
    Thing("blanket", "thing", (*_BRIGHT, "white"), ("soft", "warm"),
          ("It was {color} and soft.", "It was warm and big.", "It had little stars on it."),
          ("make/made a tent with it", "sleep/slept under it", "sit/sat on it")),
    Thing("brush", "thing", _BRIGHT, ("little", "new"),
          ("It was {color} and small.", "It was soft at the end.", "It was wet with paint."),
          ("paint/painted a tree with it", "paint/painted a rainbow with it", "wash/washed it")),
    Thing("map", "thing", (), ("old", "big"),
          ("It was old and yellow.", "It showed a small house.", "It had a red cross on it."),
          ("open/opened it", "look/looked at it", "follow/followed it")),
)  # fmt: skip
