"""The things that a story can be about, and the facts about each.

The table: ``# kind`` begins a kind, which decides what plots may use its things. A thing is a line ``noun:
colours: adjectives`` (``-`` for none) followed by entries of :mod:`tinyllama.demo.notation`: ``-`` whole
sentences about it, starting with "It"; ``*`` what one does with it, written ``infinitive/past rest``;
``!`` how it breaks (toys only). The sentences are templates over the fields of a story's scene; ``{color}``
appears only where there are colours.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyllama.demo.notation import MARKS, entries

_TABLE = """
# nature
flower: red yellow pink white blue purple: pretty small
- It was {color} and smelled sweet. | It had soft {color} petals.
  | It smelled very nice. | It was the prettiest flower {in_place}.
* smell/smelled it | put/put it in a cup of water | put/put it behind {his} ear | show/showed it to {his} {gp}
  | count/counted the petals
leaf: green yellow brown red: big dry
- It was {color} and very light. | It looked like a little hand. | It had fallen from a tall tree.
* put/put it in {his} book | throw/threw it up in the air | make/made a hat with it
rock: white black brown: round shiny
- It was {color} and smooth. | It was cold and heavy. | It was shiny in the sun.
* throw/threw it in the water | paint/painted a face on it | put/put it in {his} pocket
shell: white pink brown: pretty tiny
- It was {color} and smooth. | It sounded like the sea. | It was shaped like a fan.
* hold/held it to {his} ear | wash/washed it in the water | put/put it in {his} pocket
stick: -: long thin
- It was long and thin. | It looked like a magic wand. | It was very strong.
* draw/drew a house in the sand with it | wave/waved it in the air | dig/dug a hole with it
feather: white blue black brown: soft long
- It was {color} and very soft. | It was as light as air. | It came from a big bird.
* put/put it in {his} hat | blow/blew it into the air | tickle/tickled {his} nose with it
seed: brown black white: tiny round
- It was small and {color}. | It was as small as an ant. | It was hard and round.
* put/put it in the ground | give/gave it some water | keep/kept it in a little pot
nut: brown: round big
- It was hard and brown. | It was round and shiny. | It had fallen from a tall tree.
* roll/rolled it down the hill | show/showed it to a squirrel | put/put it in {his} pocket
# toy
ball: red blue green yellow pink orange purple: big round
- It was {color} and round. | It was big and bouncy. | It could bounce very high.
* kick/kicked it | throw/threw it up high | bounce/bounced it on the ground | roll/rolled it down the hill
! All the air came out.
kite: red blue green yellow pink orange purple: big long
- It was {color} with a long tail. | It had a long tail. | It looked like a big bird.
* fly/flew it in the wind | run/ran with it | make/made it go up high
! The string broke.
doll: pink red blue white: pretty little
- It had a {color} dress. | It had long hair. | It had a sweet smile.
* brush/brushed its hair | give/gave it a name | hug/hugged it
! One arm came off.
car: red blue green yellow pink orange purple: fast little
- It was {color} and fast. | It had four black wheels. | It could go very fast.
* push/pushed it on the floor | race/raced it down the hill | make/made a road for it
! One wheel came off.
truck: red blue green yellow pink orange purple: big strong
- It was {color} and strong. | It had big wheels. | It could carry a lot of sand.
* fill/filled it with sand | push/pushed it up the hill | put/put rocks in it
! One wheel came off.
boat: red blue green yellow pink orange purple: little fast
- It was {color} with a white sail. | It had a little flag. | It could float on the water.
* put/put it on the water | blow/blew on the sail | sail/sailed it in the bath
! The sail fell off.
train: red blue green yellow pink orange purple: long fast
- It was {color} and long. | It had many small wheels. | It could go choo choo.
* push/pushed it around the room | make/made a bridge for it | put/put little blocks in it
! The front wheel came off.
robot: red blue green white black: big shiny
- It was {color} and shiny. | It had two big eyes. | It could walk and beep.
* make/made it walk | dance/danced with it | talk/talked to it
! One leg came off.
drum: red blue green yellow pink orange purple: loud round
- It was {color} and round. | It was very loud. | It went boom boom boom.
* hit/hit it with a stick | play/played a song on it | march/marched with it
! There was a big hole in it.
balloon: red blue green yellow pink orange purple: big round
- It was big and {color}. | It was as round as the moon. | It went up and down in the wind.
* hold/held it by the string | run/ran with it | let/let it dance in the wind
! It went pop.
teddy bear: brown white black: soft big
- It was {color} and soft. | It had a round tummy. | It had two button eyes.
* hug/hugged it | give/gave it a name | take/took it to bed
! One ear came off.
puzzle: -: big new
- It had a picture of a farm. | It had many small parts. | It was very hard.
* put/put all the parts on the floor | start/started with the corners | look/looked at the picture
! One part was gone.
# food
apple: red green yellow: big sweet
- It was {color} and round. | It was sweet and full of juice. | It came from a big tree.
* eat/ate it | take/took a big bite | wash/washed it | cut/cut it in two
cake: white pink brown yellow: big sweet
- It was soft and sweet. | It was {color} with a berry on top. | It smelled very good.
* eat/ate it | take/took a big bite | cut/cut it in two | put/put it on a plate
cookie: -: big sweet
- It was warm and sweet. | It was round like the moon. | It smelled very good.
* eat/ate it | take/took a small bite | break/broke it in two | dip/dipped it in milk
banana: yellow: long sweet
- It was long and yellow. | It was soft and sweet. | It looked like a smile.
* eat/ate it | take/took a big bite | cut/cut it in two
orange: -: big sweet
- It was round and full of juice. | It smelled fresh. | It was as round as a ball.
* eat/ate it | make/made juice with it | cut/cut it in two
pear: green yellow: soft sweet
- It was {color} and sweet. | It was soft and full of juice. | It came from the old tree.
* eat/ate it | take/took a big bite | wash/washed it
carrot: orange: long fresh
- It was long and orange. | It was fresh from the garden. | It was hard and sweet.
* eat/ate it | wash/washed it | cut/cut it in two
sandwich: -: big yummy
- It had cheese in it. | It smelled very good. | It was big and yummy.
* eat/ate it | take/took a big bite | cut/cut it in two
# wear
hat: red blue green yellow pink orange purple white black: big funny
- It was {color} and soft. | It had a feather on top. | It was a little too big.
* put/put it on | wear/wore it all day | look/looked at it in the mirror
scarf: red blue green yellow pink orange purple white: long warm
- It was long and {color}. | It was soft and warm. | It had white stars on it.
* put/put it on | wear/wore it all day | dance/danced with it
ribbon: red yellow pink white blue purple: long pretty
- It was long and {color}. | It was soft and shiny. | It moved in the wind.
* tie/tied it in a bow | dance/danced with it | wave/waved it in the air
sock: red blue green yellow pink orange purple white: warm funny
- It was {color} and warm. | It had a hole in it. | It was very long.
* put/put it on | wash/washed it | make/made a puppet with it
ring: -: shiny pretty
- It was shiny like the sun. | It was very small. | It had a red stone.
* put/put it on | clean/cleaned it | hold/held it up to the light
# thing
book: red blue green yellow pink orange purple: big old
- It was {color} and old. | It had many pictures. | It was about a brave king.
* read/read it | look/looked at the pictures | open/opened it
cup: red blue green yellow pink orange purple white: little pretty
- It was {color} and shiny. | It had a star on it. | It was small and pretty.
* fill/filled it with water | drink/drank from it | wash/washed it
key: -: old shiny
- It was old and heavy. | It was small and shiny. | It looked like a key to a secret door.
* try/tried it in every door | open/opened a little box with it | put/put it in {his} pocket
coin: -: shiny round
- It was round and shiny. | It had a king on it. | It was very old.
* clean/cleaned it | put/put it in {his} pocket | spin/spun it on the table
box: red blue green yellow pink orange purple brown: little big
- It was {color} and light. | It was full of buttons. | It had a little lock.
* open/opened it | look/looked inside | shake/shook it
bell: -: little shiny
- It was small and shiny. | It made a sweet sound. | It went ding dong.
* ring/rang it | shake/shook it | sing/sang with it
spoon: -: big shiny
- It was big and shiny. | It was cold and smooth. | It was made of wood.
* eat/ate soup with it | dig/dug a hole with it | hit/hit a pot with it
crayon: red blue green yellow pink white brown orange purple black: long new
- It was {color} and new. | It was {color} like a little rainbow. | It smelled like wax.
* draw/drew a sun with it | draw/drew a house with it | write/wrote {his} name with it
basket: brown white: big little
- It was {color} and light. | It was made of straw. | It smelled like bread.
* fill/filled it with berries | put/put it on {his} head | carry/carried eggs in it
umbrella: red blue green yellow pink orange purple black: big old
- It was {color} and big. | It had white dots on it. | It was as big as a tent.
* open/opened it | walk/walked in the rain with it | hide/hid under it
lamp: white yellow red blue: little old
- It was {color} and small. | It made a warm light. | It was shaped like a star.
* turn/turned it on | put/put it by the bed | read/read a book next to it
blanket: red blue green yellow pink orange purple white: soft warm
- It was {color} and soft. | It was warm and big. | It had little stars on it.
* make/made a tent with it | sleep/slept under it | sit/sat on it
brush: red blue green yellow pink orange purple: little new
- It was {color} and small. | It was soft at the end. | It was wet with paint.
* paint/painted a tree with it | paint/painted a rainbow with it | wash/washed it
map: -: old big
- It was old and yellow. | It showed a small house. | It had a red cross on it.
* open/opened it | look/looked at it | follow/followed it
"""


@dataclass(frozen=True)
class Thing:
    """One row of the table; ``uses`` are pairs of infinitive and past, as ("throw it", "threw it")."""

    noun: str
    kind: str
    colors: tuple[str, ...]
    adjectives: tuple[str, ...]
    facts: tuple[str, ...]
    uses: tuple[tuple[str, str], ...]
    broke: str = ""


def article(phrase: str) -> str:
    """Return the indefinite article; the tables hold no word such as *hour* or *unicorn*.

    Args:
        phrase: What follows the article.

    Returns:
        ``"an"`` before a vowel letter, else ``"a"``.
    """
    return "an" if phrase[0] in "aeiou" else "a"


def plural(noun: str) -> str:
    """Return the plural of a noun of the table.

    Args:
        noun: The singular.

    Returns:
        The plural.
    """
    if noun.endswith(("x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("f"):  # leaf, scarf
        return noun[:-1] + "ves"
    return noun + "s"


def _verb_forms(use: str) -> tuple[str, str]:
    """Splits ``"throw/threw it high"`` into ``("throw it high", "threw it high")``."""
    forms, _, rest = use.partition(" ")
    infinitive, past = forms.split("/")
    return f"{infinitive} {rest}", f"{past} {rest}"


def _parse_thing(kind: str, head: str, body: str) -> Thing:
    """The thing of a head line and the entries under it."""
    noun, colors, adjectives = head.split(": ")
    (facts,) = entries(body, "-")
    (uses,) = entries(body, "*")
    broke = entries(body, "!")
    return Thing(
        noun=noun,
        kind=kind,
        colors=() if colors == "-" else tuple(colors.split()),
        adjectives=tuple(adjectives.split()),
        facts=tuple(facts),
        uses=tuple(map(_verb_forms, uses)),
        broke=broke[0][0] if broke else "",
    )


def _parse(table: str) -> tuple[Thing, ...]:
    """All things of a table in this module's notation."""
    heads: list[tuple[str, str]] = []
    bodies: list[list[str]] = []
    kind = ""
    for line in table.strip().splitlines():
        if line.startswith("# "):
            kind = line[2:]
        elif line[0] in MARKS or line[0] == " ":
            bodies[-1].append(line)
        else:
            heads.append((kind, line))
            bodies.append([])
    return tuple(_parse_thing(*head, "\n".join(body)) for head, body in zip(heads, bodies, strict=True))


THINGS = _parse(_TABLE)
