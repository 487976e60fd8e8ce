"""Plots that turn on one thing: it is found, kept, given, shared, lost, broken, eaten, wished for.

The notation and the fields are those of :mod:`tinyllama.demo.plot`.
"""

from __future__ import annotations

from tinyllama.demo.plot import Plot

THING_PLOTS: tuple[Plot, ...] = (
    Plot(
        "keep",
        """
- @pick_up | {N} was happy because {he} had {aco}.
- @look
- "Look at this {o}!" {he} said. | {He} liked the {o} very much. | "I like this {o}," {he} said. | ~
- @enjoy
- {He} showed the {o} to {his} friend {F}. | Then {his} friend {F} came to see the {o}.
  | {His} friend {F} saw the {o} too.
- "I like your {o}," said {F}. | "Wow!" said {F}. "It is so nice!" | {F} liked it too.
- {N} let {F} hold the {o}. | {N} and {F} looked at it together. | ~
- {N} kept the {o} for a long time. | {N} put the {o} next to {his} bed. | {N} took the {o} with {him}.
- @home_end
        """,
        kinds=("nature", "toy", "wear", "thing"),
        weight=6,
    ),
    Plot(
        "owner",
        """
- @pick_up
- @look
- {He} did not know whose {o} it was. | "Whose {o} is this?" {he} asked. | But it was not {his} {o}.
- Then {he} saw {F}. {F} was sad. | Then {he} heard a cry. It was {F}.
  | Then {F} came by. {Fhe} was looking for something.
- "I lost my {o}," said {F}. | "Have you seen my {o}?" asked {F}. | "Where is my {o}?" said {F}.
- {N} gave the {o} back to {F}. | "Here it is!" said {n}. {He} gave the {o} to {F}.
  | "Is this your {o}?" asked {n}. "Yes!" said {F}.
- {F} was so happy. | "Thank you so much!" said {F}. | {F} hugged the {o} and smiled.
- @friends_end
- {N} was glad that {he} had helped. | It feels good to be kind. | ~
        """,
        kinds=("toy", "wear", "thing"),
        weight=4,
    ),
    Plot(
        "gift",
        """
- @pick_up
- @look
- {He} wanted to give it to {his} {gp}. | "I will give this {o} to {Gp}," {he} said.
  | {He} thought that {his} {gp} would like the {o}.
- {He} ran home with the {o}. | {He} took the {o} home. | {N} walked home with the {o}.
- {His} {gp} was tired. | {His} {gp} was in the kitchen. | {His} {gp} was sad that day. | ~
- "This {o} is for you," {he} said. | {He} gave the {o} to {his} {gp}.
  | "Look, {Gp}! I have {ao} for you," {he} said.
- "Thank you! It is so nice," said {his} {gp}. | {His} {gp} loved the {o}.
  | {His} {gp} looked at the {o} and smiled.
- @hug_end
- @happy_end
        """,
        weight=5,
    ),
    Plot(
        "friend gift",
        """
- @pick_up
- @look
- {He} saw {his} friend {F}. {F} was sad. | {His} friend {F} was sad that day.
  | {N} saw that {his} friend {F} was crying.
- "Why are you sad?" asked {n}. | "What is wrong?" asked {n}. | ~
- "I have no one to play with," said {F}. | "I fell and hurt my leg," said {F}. | "I feel sick," said {F}.
- {N} gave the {o} to {F}. | "You can have my {o}," said {n}.
  | "This {o} is for you," said {n}. "It will make you happy."
- {F} looked at the {o} and smiled. | {F} was not sad anymore. | "Thank you! You are so kind," said {F}.
- @friends_end
        """,
        weight=3,
    ),
    Plot(
        "share toy",
        """
- {N} picked up {ao}. | {N} had {aco}. | {N} got {aco} from {his} {gp}.
  | {N} was happy because {his} {gp} gave {him} {aco}. | {N} was playing with {ao} {in_place}.
- @look
- @enjoy
- {His} friend {F} wanted to play too. | "Can I play with your {o}?" asked {F}.
  | {F} wanted to have the {o} too.
- "No, it is mine!" said {n}. | {N} did not want to share. | "No!" said {n}. "It is my {o}!"
- {F} was sad. | {F} started to cry. | {F} went away and sat alone.
- {N} felt bad. {He} did not want {F} to be sad. | {His} {gp} said, "It is nice to share."
  | {N} saw that it was not fun to play alone.
- So {he} shared the {o} with {F}. | "I am sorry," said {n}. "You can play with my {o}."
  | So {n} gave the {o} to {F} and said sorry.
- @friends_end
- {N} learned that it is good to share. | Sharing is fun! | ~
        """,
        kinds=("toy",),
        weight=4,
    ),
    Plot(
        "share food",
        """
- @pick_up | {N} was hungry. {He} picked up {ao}. | {N} got {aco} from {his} {gp}.
- @look
- {He} wanted to eat it. | {He} was very hungry. | "Yum!" {he} said.
- Then {he} saw {his} friend {F}. {F} was hungry too. | But {his} friend {F} had no food.
  | {His} friend {F} looked at the {o}.
- "Do you want some?" asked {n}. | "We can share," said {n}. | {N} wanted to share with {F}.
- {He} gave half of the {o} to {F}. | {He} broke the {o} in two and gave half to {F}.
- "Thank you! It is so good," said {F}. | They ate the {o} together. | They sat down and ate the {o}.
- @friends_end
- Food is better when you share it. | {N} was glad that {he} had shared. | ~
        """,
        kinds=("food",),
        weight=3,
    ),
    Plot(
        "treat",
        """
- @pick_up
- @look
- @enjoy
- It was so good! | "Yum!" {he} said. | {He} liked it very much. | "This is the best {o} ever!" {he} said.
- {His} {gp} came in and saw {him}. | "Do you like the {o}?" asked {his} {gp}. | {He} wanted one more.
- {His} {gp} gave {him} one more {o}. | "Thank you for the {o}," {he} said to {his} {gp}.
  | {He} saved some of it for {his} {gp}.
- @hug_end
- @happy_end
        """,
        kinds=("food",),
        weight=3,
    ),
    Plot(
        "lose",
        """
- {N} was sad because {he} lost {his} {o}. | {N} was sad because {he} could not find {his} {o}.
  | {N} lost {his} {co}. | {N} could not find {his} {o}.
  | {N} wanted to play with {his} {o}, but it was gone.
- {fact}
- "Where is my {o}?" {he} said. | {He} loved that {o} very much. | ~
- {He} looked {seek1}. | First, {he} looked {seek1}.
- It was not there. | But the {o} was not there. | There was no {o}.
- Then {he} looked {seek2}. It was not there. | {His} {gp} helped {him} look {seek2}. | ~
- Then {he} looked {seek3}. There was the {o}! | At last, {he} found the {o} {seek3}.
  | "Look {seek3}," said {his} {gp}. The {o} was there!
- {He} picked up the {o} and hugged it. | {He} was so glad. | "I found it!" {he} said.
- {N} was not sad anymore. | {N} put the {o} in a safe place. | {N} played with the {o} all day.
        """,
        kinds=("toy",),
        weight=4,
    ),
    Plot(
        "broken toy",
        """
- {N} picked up {ao}. | {N} had {aco}.
  | {N} played with {his} {co}.
- {fact}
- {He} played with it every day. | It was {his} best toy. | {He} loved the {o} very much.
- But the {o} fell down. {broke} | One day, {he} dropped the {o}. {broke} | Then the {o} hit a wall. {broke}
- {N} cried. | {N} was very sad. | "Oh no! My {o}!" {he} said.
- {He} took the {o} to {his} {gp}. | "Can you fix it?" {he} asked {his} {gp}.
  | {He} showed the {o} to {his} {gp}.
- "Do not cry. I can fix it," said {his} {gp}. | {His} {gp} got some glue.
  | {His} {gp} said that {ghe} could help.
- {His} {gp} fixed the {o}. | They fixed the {o} together. | Soon the {o} was as good as new.
- "Thank you, {Gp}!" {he} said. | {N} was so happy that {he} jumped. | {N} smiled again.
- After that, {he} was very careful with the {o}. | {N} played with the {o} all day. | ~
        """,
        kinds=("toy",),
        weight=4,
    ),
    Plot(
        "stuck in a tree",
        """
- {N} was playing with {aco} {in_place}. | {N} picked up {ao}.
  | {N} ran with {his} {o}.
- {fact} | ~
- The wind blew the {o} up into a tree. | Then the wind took the {o}. It got stuck in a tree.
  | But the {o} flew into a tall tree.
- {N} jumped and jumped, but {he} could not get it. | The tree was too tall. | {N} could not get the {o}.
- {F} saw {him}. "I can help," said {F}. | {He} asked {his} friend {F} to help.
  | {His} friend {F} came to help.
- {F} got a long stick. | {F} climbed up the tree. | They got a ladder.
- The {o} fell down. | {F} got the {o} down. | Soon the {o} was down on the ground.
- "Thank you, {F}!" said {n}. | {N} thanked {F}. | {N} picked up the {o} and smiled.
- @friends_end
        """,
        nouns=("kite", "ball", "balloon", "hat", "scarf", "ribbon"),
        weight=3,
    ),
    Plot(
        "magic",
        """
- @pick_up
- @look
- Then the {o} started to talk! | But it was not just any {o}. It was magic!
  | Then the {o} started to shine.
- "Hello," said the {o}. "You can make a wish." | "Make a wish," said the {o}.
  | "I can give you one wish," said the {o}.
- {N} was very surprised. | {N} could not believe it. | "Wow!" {he} said.
- "I wish for {wish}," {he} said. | {N} wished for {wish}.
- {granted}
- "Thank you, magic {o}!" {he} said. | {N} thanked the {o}.
- {He} told {his} {gp} about the magic {o}. | {He} shared it with {his} friend {F}. | ~
- @happy_end
* wish = a new friend | granted = Just then, {F} came by and wanted to play.
* wish = a rainbow | granted = A big rainbow came into the sky.
* wish = a puppy | granted = A little puppy ran to {him} and licked {his} nose.
* wish = snow | granted = Soft white snow fell from the sky.
* wish = a big cake | granted = A big pink cake was there on the grass.
        """,
        kinds=("nature", "thing"),
    ),
    Plot(
        "boat on the water",
        """
- {N} picked up {ao}. | {N} had {aco}. | {N} took {his} boat to the lake.
- {fact} | ~
- {He} put the boat on the water. | The boat was on the water.
- The wind blew, and the boat went far away. | It went fast. Soon it was too far away.
- "Come back, little boat!" {he} said. | {N} could not get it. | {N} was very sad.
- A {helper} saw the boat. | Then a {helper} came by.
- The {helper} pushed the boat back. | The {helper} brought the boat back to {him}.
- "Thank you, {helper}!" said {n}. | {N} was so happy. {He} picked up the boat.
- After that, {he} put a long string on the boat. | Then {he} took the boat home.
- @happy_end
* helper = duck
* helper = frog
* helper = fish
* helper = swan
        """,
        nouns=("boat",),
        weight=1,
    ),
    Plot(
        "in the box",
        """
- {N} picked up a box. | {N} saw a big box by the door. | {N} found a box {in_place}.
- It was big and brown. | It was closed. | It was very light. | ~
- "What is in the box?" {he} asked. | {He} wanted to know what was in it. | {He} shook the box.
- {He} opened the box. | {He} opened it very slowly. | {His} friend {F} helped {him} open it.
- There was {ao} in it! | In the box, there was {aco}.
- {fact} | {fact} {fact2}
- "Wow, {ao}!" {he} said. | {N} was very surprised. | {N} picked up the {o}.
- @enjoy
- {His} {gp} came in. "It is for you," said {his} {gp}. | {He} showed the {o} to {his} friend {F}.
- @happy_end
        """,
        kinds=("toy", "wear"),
    ),
    Plot(
        "too much",
        """
- {N} was hungry. {He} picked up {ao}. | {N} picked up {ao}. | {N} wanted to eat {ao}.
  | {N} saw a plate of sweets.
- {He} ate one {o}. Then {he} ate one more. | {He} ate and ate and ate.
- "Do not eat too much," said {his} {gp}. | {His} {gp} told {him} to stop.
- But {n} did not stop. | But {he} did not listen.
- Soon {his} tummy hurt. | Then {he} felt sick.
- "Ow! My tummy hurts," {he} said. | {He} had to lie down. | {N} started to cry.
- {His} {gp} gave {him} some warm tea. | {His} {gp} sat next to {him}.
- Soon {he} felt better. | The next day, {he} was well again.
- "I will not eat so much again," {he} said. | {N} learned not to eat too much.
        """,
        kinds=("food",),
        nouns=("cake", "cookie"),
    ),
    Plot(
        "trade",
        """
- {N} had {aco}. | {N} picked up {ao}. | {N} played with {ao} {in_place}.
- @look
- {His} friend {F} had {ao2}. | Then {F} came by. {Fhe} had {ao2}.
- {N} liked the {o2}. | {N} wanted to play with the {o2}.
- "Can we trade?" asked {n}. | "I like your {o2}," said {n}.
- "Yes, I like your {o}," said {F}. | {F} liked the {o} very much.
- So {n} gave the {o} to {F}. | They traded.
- {F} gave the {o2} to {n}. | Now {n} had the {o2}, and {F} had the {o}.
- Then they played together. | "This is so much fun!" said {F}.
- @friends_end
        """,
        kinds=("toy",),
    ),
    Plot(
        "animal friend",
        """
- {N} was happy. | {N} was very hungry. | {N} was looking for food. | {N} ran {to_place}.
  | {N} was sad because {he} was alone.
- {He} saw {sight}. | {He} looked around. | The sun was warm.
- Then {he} picked up {ao}. | Then {he} found {ao} {spot}. | There was {ao} {spot}.
- @look
- {He} wanted to have it. | "I like this {o}," {he} said.
- A {other} saw the {o} too. | Then a little {other} came by.
- "Can I have some?" asked the {other}. | "I am so hungry," said the {other}.
- {N} shared the {o} with the {other}. | "Yes, we can share," said {n}.
- "Thank you," said the {other}. | The {other} was very happy.
- {N} and the {other} became best friends. | They ate it together and played all day.
* other = goat
* other = squirrel
* other = hen
* other = cow
* other = sheep
        """,
        kinds=("food",),
        cast="animal",
        weight=4,
    ),
    Plot(
        "visitor in the flower",
        """
- {N} picked up {ao}. | {N} picked up {aco}. | {N} saw {aco} {in_place}. {He} picked it up.
- {fact} | {N} wanted to smell it.
- Then {he} saw {a_bug} on the {o}. | There was {a_bug} on it! | Then {a_bug} came out of the {o}.
- "Hello, little {bug}," {he} said. | {N} was surprised. | {N} was not afraid.
- The {bug} was looking for food. | The {bug} wanted to sit in the sun. | The {bug} liked the {o} too.
- {He} put the {o} down on the grass. | {He} did not move. {He} just looked.
  | "You can have my {o}," {he} said.
- The {bug} was happy. | The {bug} sat on {his} nose! | The {bug} danced around {him}.
- Then the {bug} flew away. | At last, the {bug} flew up into the sky.
- "Bye bye, little {bug}!" said {n}. | {N} waved and smiled.
- @home_end
* bug = bee | a_bug = a bee
* bug = butterfly | a_bug = a butterfly
* bug = ladybug | a_bug = a ladybug
        """,
        nouns=("flower",),
        weight=1,
    ),
    Plot(
        "thirsty flower",
        """
- {N} picked up {ao}. | {N} had {aco}. | {N} was sad because {his} {o} was not well.
- {fact} | It was {his} best {o}.
- But the {o} looked sad. | The next day, the {o} was dry. | Then its head went down.
- "What is wrong with my {o}?" {he} asked. | {N} did not know why. | {N} took the {o} to {his} {gp}.
- "It needs water," said {his} {gp}. | {His} {gp} said that it was thirsty.
- So {he} gave the {o} some water. | {He} put the {o} in a cup of water.
- {He} put it in the sun. | {He} waited for a long time.
- Soon the {o} looked happy again. | Then the {o} stood up again.
- "You did it!" said {his} {gp}. | {N} jumped up and down.
- After that, {he} gave it water every day. | {N} took good care of the {o}.
        """,
        nouns=("flower",),
        weight=1,
    ),
    Plot(
        "cold friend",
        """
- @pick_up | {N} had {aco}.
- {fact}
- {He} put it on. | {He} liked the {o} very much.
- Then {he} saw {F}. {F} was cold. | {His} friend {F} was cold.
- "Are you cold?" asked {n}. | {N} wanted to help {F}.
- "Yes, I am so cold," said {F}. | {F} said yes.
- {N} gave the {o} to {F}. | "You can have my {o}," said {n}.
- {F} put it on. | {F} took the {o} and put it on.
- Now {F} was warm. | "Now I am warm. Thank you!" said {F}.
- @friends_end
        """,
        kinds=("wear",),
        nouns=("hat", "scarf"),
    ),
    Plot(
        "shop",
        """
- {N} went to the shop with {his} {gp}. | {N} wanted to buy {ao} in the shop.
  | {N} was in the shop with {his} {gp}.
- There were so many nice things. | {He} looked at all the things.
- Then {he} picked up {ao}. | Then {he} saw {aco}.
- @look
- "Can I have this {o}?" {he} asked. | "Please, {Gp}, can I have it?" {he} asked.
- {His} {gp} looked at the {o}. | "You must be good," said {his} {gp}. | ~
- {His} {gp} said yes. | "Yes, you can have it," said {his} {gp}.
- {N} was so happy that {he} jumped. | "Thank you, {Gp}!" {he} said.
- At home, {he} {used}. | {He} took the {o} home.
- @happy_end
        """,
        kinds=("toy", "wear", "food"),
    ),
    Plot(
        "star",
        """
- {N} looked up at the sky. | {N} saw a star in the sky. | {N} could see the stars.
- It was night. | The sky was dark. | The moon was big and round.
- There was one very big star. | One star was very bright.
- "Make a wish," said {his} {gp}. | {His} {gp} told {him} to make a wish.
- {N} closed {his} eyes. | {N} thought about it.
- "I wish for {ao}," {he} said. | {He} wished for {aco}.
- Then {he} went to sleep. | Then it was time for bed.
- In the morning, there was {ao} next to {his} bed! | The next day, {he} picked up {ao} by the door!
- {fact}
- "My wish came true!" {he} said. | {N} could not believe it.
- @enjoy
- @happy_end
        """,
        kinds=("toy", "wear"),
        has_weather=True,
    ),
)
