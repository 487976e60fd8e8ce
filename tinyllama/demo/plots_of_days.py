"""Plots of a day: learning, helping, weather, fear, friends, animals, games; a thing only plays a part.

The notation and the fields are those of :mod:`tinyllama.demo.plot`.
"""

from __future__ import annotations

from tinyllama.demo.plot import Plot

DAY_PLOTS: tuple[Plot, ...] = (
    Plot(
        "fear",
        """
- {N} was afraid of {fear}. | {N} was scared because of {fear}. | {N} did not like {fear}.
- {why}
- {He} hid under the bed. | {He} wanted to cry. | {He} called {his} {gp}. | {He} held {his} {o} very tight.
- {His} {gp} came to {him}. | {His} {gp} heard {him} and came. | {His} {gp} sat down next to {him}.
- "Do not be afraid," said {his} {gp}. | "I am here," said {his} {gp}. | "You are safe," said {his} {gp}.
- {cure}
- {N} took a deep breath. | {N} held {his} {gp}'s hand. | {N} tried to be brave.
- Soon {he} was not afraid anymore. | {He} did not feel scared anymore. | {N} felt brave.
- {His} {gp} was proud of {him}. | {N} smiled. | "I am brave now!" {he} said.
* fear = the dark | why = {He} could not see in {his} room. | cure = {His} {gp} turned on a little lamp.
* fear = the storm | why = There was a loud boom outside. | cure = {His} {gp} sang a soft song.
* fear = the big dog | why = It was big and it barked at {him}. | cure = The dog wagged its tail.
* fear = the water | why = It was deep and cold. | cure = {His} {gp} went into the water with {him}.
* fear = the slide | why = It was very high. | cure = {His} {gp} went down the slide with {him}.
* fear = the doctor | why = {He} did not want to get hurt. | cure = The doctor gave {him} a sticker.
        """,
        nouns=("teddy bear", "doll", "blanket"),
        cast="child",
        weight=3,
        has_weather=True,
    ),
    Plot(
        "learn",
        """
- {N} could not {skill}. | {N} wanted to {skill}. | {N} wanted to learn to {skill}.
  | {N} was sad because {he} could not {skill}.
- But it was very hard. | {He} did not know how. | All {his} friends could do it.
- "Can you help me?" {he} asked {his} {gp}. | {His} {gp} said that {ghe} would help.
  | {He} asked {his} {gp} to help.
- {first}
- "I can not do it," {he} said. | {N} wanted to stop. | {N} was sad.
- "Try again," said {his} {gp}. | "Do not give up," said {his} {gp}. | {His} {gp} told {him} to try again.
- {N} tried again and again. | So {n} tried every day. | {N} did not give up.
- {last} | At last, {he} could {skill}!
- "I did it!" {he} said. | {N} was so proud. | {N} jumped up and down.
- @hug_end
* skill = ride a bike | first = {He} got on the bike and fell.
  | last = One day, {he} rode all the way down the street!
* skill = swim | first = {He} got water in {his} nose. | last = One day, {he} swam like a fish!
* skill = read | first = {He} could not read the long words. | last = One day, {he} read a whole book!
* skill = tie {his} shoes | first = The bow came out all wrong. | last = One day, {he} made a nice bow!
* skill = jump rope | first = {His} feet got stuck in the rope. | last = One day, {he} jumped ten times!
* skill = draw a horse | first = The horse looked like a dog. | last = One day, {he} drew a nice horse!
* skill = play a song | first = It did not sound good. | last = One day, {he} played the whole song!
        """,
        cast="child",
        weight=3,
    ),
    Plot(
        "help at home",
        """
- {N} saw that {his} {gp} was tired. | {N} wanted to help {his} {gp}. | {N} was at home with {his} {gp}.
- {His} {gp} had a lot of work. | There was so much to do. | ~
- "Can I help you?" {he} asked. | "I want to help," {he} said. | "Let me help you, {Gp}," {he} said.
- "Yes, please," said {his} {gp}. "You can {job}." | {His} {gp} said, "You can {job}."
- So {n} {jobbed}. | {N} {jobbed} very well. | {N} worked hard and {jobbed}.
- It was hard, but {he} did not stop. | It was fun. | {He} sang a song all the time. | ~
- {After}
- "Thank you. You are a big help," said {his} {gp}. | {His} {gp} was very glad.
- Then they ate {ao} together. | Then they played together. | {His} {gp} gave {him} {ao}.
- @happy_end
* job = wash the cups | jobbed = washed the cups | After = Soon all the cups were clean.
* job = sweep the floor | jobbed = swept the floor | After = Soon the floor was clean.
* job = water the plants | jobbed = watered the plants | After = The plants looked fresh and green.
* job = set the table | jobbed = set the table | After = The table looked very nice.
* job = feed the hens | jobbed = fed the hens | After = The hens were full and happy.
* job = carry the bag | jobbed = carried the bag | After = The bag was heavy, but {n} was strong.
        """,
        kinds=("food",),
        cast="child",
    ),
    Plot(
        "bake",
        """
- {N} wanted to bake {bake}. | {N} and {his} {gp} wanted to bake {bake}.
  | {N} was in the kitchen with {his} {gp}.
- They got eggs, milk, and flour. | {He} put on a big hat. | {His} {gp} got a big bowl.
- {N} mixed it all with a big spoon. | {He} put sugar in the bowl and mixed it.
  | They mixed it all together.
- There was flour on {his} nose! | Some milk fell on the floor. | {His} {gp} laughed. | ~
- Then they put it in the oven. | {His} {gp} put it in the hot oven.
- It smelled so good. | {N} waited and waited. | Soon the kitchen smelled sweet.
- At last, the {baked} was ready. | "The {baked} is ready!" said {his} {gp}.
- {N} took a big bite. | They ate some of it. | {N} gave some to {his} friend {F}.
- "Yum! This is the best {baked} ever," {he} said. | It was sweet and warm. | It was very good.
- @happy_end
* bake = a cake | baked = cake
* bake = a pie | baked = pie
* bake = some bread | baked = bread
* bake = an apple pie | baked = pie
        """,
        cast="child",
    ),
    Plot(
        "plant",
        """
- {N} picked up a seed. | {N} had a tiny seed. | {N} found a seed {in_place}. | {N} wanted to plant a seed.
- It was very small. | It was small and brown. | "What is in it?" {he} asked. | ~
- {He} put the seed in the ground. | {He} dug a hole and put the seed in it.
  | {His} {gp} helped {him} plant the seed.
- {He} gave it water every day. | Every day, {he} gave it some water. | The sun was warm and the rain came.
- {N} waited and waited. | For a long time, there was nothing to see. | "When will it grow?" {he} asked. | ~
- Then a little green leaf came up. | One morning, {he} saw a little green leaf.
  | One day, there was a little plant.
- It grew and grew. | The plant grew bigger every day.
- Soon it was a {grown}. | At last, it was a {grown}.
- {N} was so proud of it. | "I made it grow!" {he} said. | {N} showed it to {his} friend {F}.
- @happy_end
* grown = big red flower
* grown = tall yellow flower
* grown = little apple tree
* grown = big orange pumpkin
* grown = sweet red berry bush
        """,
    ),
    Plot(
        "rain",
        """
- {N} was sad because it was raining. | {N} wanted to play outside, but it was raining.
  | {N} looked out and saw the rain. | {N} was {in_place} when it started to rain.
- "I want to play outside," {he} said. | The rain was cold and wet. | There were big gray clouds.
- {His} {gp} said, "We can play inside." | {His} friend {F} was there too. | {He} went inside and sat down.
  | ~
- {He} picked up {ao}. {fact} | Then {he} saw {his} {o}. {fact} | {His} {gp} gave {him} {ao}. {fact}
- {He} {used}. | {He} played with the {o}. | First, {he} {used}. Then {he} {used2}.
- It was a lot of fun. | {N} forgot about the rain. | {N} was not sad anymore.
- Then the rain stopped. | At last, the sun came out. | Soon the rain was gone.
- There was a big rainbow in the sky. | {N} ran outside and jumped in the mud.
  | {N} saw a rainbow and smiled.
- @happy_end
        """,
        kinds=("toy",),
        weight=3,
        has_weather=True,
    ),
    Plot(
        "hurt animal",
        """
- {N} saw a little {pet} {in_place}. | {N} picked up a little {pet}. | {N} found a {pet} under a tree.
- {hurt} | It looked sad. {hurt} | It was small and scared. {hurt}
- "Poor little {pet}," {he} said. | {N} wanted to help it. | "Do not be afraid. I will help you," {he} said.
- {He} took the {pet} home. | {He} took the {pet} to {his} {gp}. | {He} put the {pet} in a warm box.
- {He} gave it water and food. | {His} {gp} helped {him} take care of it. | They gave the {pet} some milk.
- {He} took care of it every day. | Every day, the {pet} felt better. | The {pet} slept all night.
- Soon the {pet} was well again. | After a week, the {pet} was strong.
- {leave}
- "Bye bye, little {pet}!" said {n}. | {N} was happy for the {pet}. | {N} waved and smiled.
- The {pet} came back to see {him} every day. | {N} never forgot the little {pet}. | ~
* pet = bird | hurt = It could not fly. | leave = It opened its wings and flew up into the sky.
* pet = bunny | hurt = It had a hurt leg. | leave = It hopped back to the green grass.
* pet = kitten | hurt = It was wet and cold. | leave = Its mom came to take it home.
* pet = duck | hurt = It had a hurt wing. | leave = It swam away on the water.
* pet = puppy | hurt = It had a hurt paw. | leave = It ran and jumped in the grass.
        """,
        cast="child",
        weight=3,
    ),
    Plot(
        "surprise",
        """
- {N} was sad because no one was at home. | {N} woke up and it was {his} birthday.
  | {N} had a birthday.
- But no one said a word about it. | {He} thought that all {his} friends forgot. | The house was very quiet.
- {He} looked for {his} {gp}. | "Where is my {gp}?" {he} said. | {He} looked {seek1}. No one was there. | ~
- Then {he} opened the door. | Then {he} went into the garden. | Then {he} heard a sound.
- "Surprise!" said {his} {gp} and {F}. | "Surprise!" all {his} friends said.
- There was a big cake. | There were balloons and a cake. | They sang a song for {him}.
- {F} gave {him} {aco}. | {His} {gp} gave {him} {aco}. | {N} opened a box. There was {ao} in it!
- {fact}
- "Thank you! I love this {o}," {he} said. | {N} loved the {o}. | {N} {used}.
- @happy_end
        """,
        kinds=("toy", "wear", "thing"),
    ),
    Plot(
        "race",
        """
- {N} wanted to race with {F}. | {N} and {F} were {in_place}. | {N} and {F} wanted to run.
- "Let us race to the big tree," {he} said. | "Let us see who is faster," {he} said.
  | "I can run faster than you," {he} said to {F}.
- "One, two, three, go!" said {F}. | They ran as fast as they could. | They started to run.
- {N} was in front. | {F} was in front. | They ran side by side.
- Then {F} fell down and hurt {fhis} leg. | But {F} fell over a rock. | Then {F} fell and started to cry.
- {N} stopped and ran back. | {N} did not run on. {He} went back to {F}.
  | {N} wanted to win, but {he} stopped.
- "Are you okay?" asked {n}. | {N} helped {F} get up. | {He} took {fhis} hand.
- They walked to the big tree together. | "You are a good friend," said {F}.
  | "Thank you for your help," said {F}.
- They both won. | It did not matter who won. | {N} was glad that {he} had helped.
- @friends_end
        """,
    ),
    Plot(
        "new friend",
        """
- {N} was sad because {he} had no friends. | {N} went {to_place}. | {N} was alone {in_place}.
  | {N} wanted to find a friend.
- {He} saw {sight}. | {He} sat down under a tree. | {He} had no one to play with.
- Then {he} saw {F}. | Then {F} came by. | {F} was there too. {Fhe} was all alone.
- "Hi, I am {F}," said {F}. | "Do you want to play with me?" asked {F}. | {N} was shy, but {he} said hi.
- {F} had {aco}. | {F} had {ao}. {fact}
- "Can I see your {o}?" asked {n}. | "I like your {o}," said {n}. | {N} looked at the {o}.
- "Yes, we can play with it," said {F}. | {F} let {n} hold the {o}.
- They played with the {o} all day. | They {used}. | {N} {used}. Then {F} {used} too.
- @friends_end
- "Can we play again?" asked {n}. | {N} was not alone anymore. | ~
        """,
        kinds=("toy",),
        weight=3,
    ),
    Plot(
        "get lost",
        """
- {N} went {to_place} with {his} {gp}. | {N} was walking with {his} {gp}.
- {He} saw {sight}. | {He} saw a pretty butterfly and ran after it. | {He} stopped to look at {ao}.
- Then {he} could not see {his} {gp}. | When {he} looked up, {his} {gp} was gone.
- "{Gp}! Where are you?" {he} called. | {N} started to cry. | {N} was scared and alone.
- A kind {helper} saw {him}. | Then a {helper} came by.
- "Are you lost?" asked the {helper}. | "Do not cry. I will help you," said the {helper}.
- The {helper} took {him} back to {his} {gp}. | They looked for {his} {gp} together.
- "There you are!" said {his} {gp}. | {N} saw {his} {gp} and ran to {ghim}.
- @hug_end
- After that, {n} always stayed close. | "I will stay close to you," {he} said.
* helper = bird
* helper = woman
* helper = man
* helper = girl
* helper = dog
        """,
    ),
    Plot(
        "tell the truth",
        """
- {N} was playing in the house. | {N} was running in the house.
- {He} hit {thing} and it fell down. | {He} did not look, and {thing} fell on the floor.
- It broke with a loud sound. | Oh no! It was broken.
- {N} was scared. | {He} did not know what to do. | {He} wanted to hide.
- "Who broke {thing}?" asked {his} {gp}. | Then {his} {gp} came in. | {His} {gp} heard the sound and came.
- {N} told the truth. | {N} wanted to tell a lie, but {he} did not.
- "It was me. I am sorry," {he} said. | "I broke it. I am very sorry," {he} said.
- "Thank you for the truth," said {his} {gp}. | {His} {gp} was not angry.
- They cleaned the floor together. | {N} helped to clean up.
- @hug_end
- {N} felt much better. | {N} learned that it is good to tell the truth. | ~
* thing = the white vase
* thing = the big lamp
* thing = the blue cup
* thing = the old clock
* thing = the flower pot
        """,
    ),
    Plot(
        "bedtime",
        """
- {N} could not sleep. | {N} was in bed, but {he} could not sleep.
  | {N} was sad because {he} could not sleep.
- It was dark and quiet. | {He} turned from side to side. | The moon was in the sky.
- {He} called {his} {gp}. | "{Gp}, I can not sleep," {he} said.
- {His} {gp} came and sat on the bed. | {His} {gp} came with a glass of milk.
- {His} {gp} read {him} a story about {ao}. | {His} {gp} told {him} a story about {aco}.
- {fact} | ~
- {N} liked the story very much. | It was a very good story. | "I like the {o} in the story," {he} said.
- {He} closed {his} eyes. | {N} felt warm and sleepy.
- Soon {he} was asleep. | Then {he} fell asleep and had a nice dream.
- "Good night," said {his} {gp}. | {He} dreamed about the {o}. | ~
        """,
        nouns=("boat", "teddy bear", "robot", "train", "kite", "shell", "balloon"),
        cast="child",
        has_weather=True,
    ),
    Plot(
        "snow",
        """
- {N} woke up and saw snow. | {N} ran out into the snow. | {N} wanted to make a snowman.
- The snow was white and cold. | The snow was soft. | All the trees were white.
- {His} friend {F} came out too. | {He} called {his} friend {F}.
- "Let us make a snowman!" said {F}. | They made a big snowman. | They rolled a big ball of snow.
- It had a carrot for a nose. | They gave it two black eyes. | {N} put stones for the eyes.
- But the snowman looked cold. | But it needed one more thing.
- {N} picked up {aco} and gave it to the snowman. | {N} gave the snowman {his} {co}.
  | {F} had an idea. {Fhe} got {ao}.
- Now it looked very nice. | "Now it is not cold," said {n}. | The snowman looked happy.
- Then they went inside and had hot milk. | {N} and {F} danced around it.
- @happy_end
        """,
        nouns=("hat", "scarf"),
        has_weather=True,
    ),
    Plot(
        "picnic",
        """
- {N} went {to_place} with {his} {gp}. | {N} and {his} {gp} had a picnic {in_place}.
  | {N} wanted to have a picnic with {F}.
- They had a big basket. | The sun was warm. | They sat down on the grass.
- There was {ao} in the basket. | {N} picked up {ao}. | They had {ao} and some milk.
- {fact}
- Then {thief} came and took the {o}! | But {thief} wanted the {o} too.
- "Hey! That is my {o}!" said {n}. | {N} was surprised. | "Oh no!" {he} said.
- {His} {gp} laughed. | {N} started to laugh. | ~
- "It must be hungry," {he} said. | "It wants to have lunch too," said {his} {gp}.
- They had one more {o}, so it was okay. | So they shared the food with it.
- @happy_end
* thief = a squirrel
* thief = a bird
* thief = a little dog
* thief = a duck
        """,
        kinds=("food",),
        cast="child",
    ),
    Plot(
        "clean the room",
        """
- {N} had a messy room. | {N} did not want to clean {his} room. | {N} was sad because {his} room was a mess.
- There were toys all over the floor. | There was a sock on the lamp. | It was hard to walk in it.
- "Please clean your room," said {his} {gp}. | {His} {gp} told {him} to clean up.
- So {he} started to clean. | {N} put the books in the box. | {He} put one toy after the other in the box.
- Then {he} picked up {ao} {seek1}. | Then {he} found {ao} {seek1}.
- {fact}
- "I was looking for this {o}!" {he} said. | It was the {o} that {he} had lost.
- Soon the room was clean. | {He} cleaned and cleaned until {he} was done.
- {His} {gp} was very glad. | "Good job!" said {his} {gp}.
- Then {n} played with the {o}. | Then {n} {used}.
- @happy_end
        """,
        kinds=("toy",),
        cast="child",
    ),
    Plot(
        "hide and seek",
        """
- {N} wanted to play hide and seek. | {N} and {F} played hide and seek.
  | {N} was playing with {his} friend {F}.
- {F} closed {fhis} eyes. | "One, two, three," said {F}.
- {N} hid {seek1}. | {N} ran fast and hid {seek1}.
- {F} looked {seek2}. {N} was not there. | {F} looked {seek2} and {seek3}.
- "Where are you?" called {F}. | {F} could not find {n}.
- {N} was very quiet. | {N} tried not to laugh.
- But then {he} picked up {ao}. It fell with a loud sound.
  | But there was {ao} next to {him}, and it fell down.
- {F} heard the {o}. "I found you!" {fhe} said. | "There you are!" said {F}.
- They laughed and laughed. | Now it was time for {F} to hide.
- @friends_end
        """,
        kinds=("thing",),
        nouns=("cup", "bell", "spoon"),
        cast="child",
    ),
    Plot(
        "stray animal",
        """
- {N} saw a little {pet} {in_place}. | {N} met a little {pet}. | {N} heard a sound. It was a little {pet}.
- The {pet} was all alone. | It had no home. | It looked hungry.
- {N} picked up {ao} and gave it to the {pet}. | {He} gave the {pet} some food.
- The {pet} ate it all. | The {pet} wanted to play with {him}.
- It followed {him} home. | {He} took the {pet} home.
- "Can I keep it?" {he} asked {his} {gp}. | "Please, {Gp}, can it stay?" {he} asked.
- {His} {gp} thought about it. | "You must take good care of it," said {his} {gp}.
- "Yes, you can keep it," said {his} {gp}. | {His} {gp} said yes.
- {N} named the {pet} {petname}. | They called the {pet} {petname}.
- {N} and {petname} played every day. | {petname} was a very happy {pet}.
* pet = dog | petname = Lucky
* pet = cat | petname = Snowy
* pet = puppy | petname = Brownie
* pet = kitten | petname = Button
        """,
        kinds=("food",),
        nouns=("carrot", "apple", "cookie", "sandwich"),
        cast="child",
    ),
    Plot(
        "build",
        """
- {N} wanted to build {a_build}. | {N} and {F} made {a_build}.
  | {N} was building {a_build} with {F}.
- {He} worked very hard. | It was very big. | It was hard work.
- {N} put {ao} on top of it. | {He} picked up {ao} and put it on top.
- {ruin}
- "Oh no! My {build}!" {he} said. | {N} was very sad. | {N} wanted to cry.
- "We can make it again," said {F}. | "I will help you," said {F}.
- They worked together. | {F} helped {n}.
- The new {build} was even better. | Soon there was a new {build}. It was very big.
- They put the {o} on top again. | "Thank you, {F}!" said {n}.
- @friends_end
* build = sand castle | a_build = a sand castle | ruin = Then a big wave came, and it was gone.
* build = tower | a_build = a tall tower | ruin = Then the cat jumped, and it fell down.
* build = house | a_build = a little house | ruin = Then the wind blew, and it fell down.
        """,
        nouns=("shell", "feather", "rock", "stick", "leaf", "flower"),
    ),
    Plot(
        "drawing",
        """
- {N} picked up a crayon. | {N} wanted to draw {ao}. | {N} sat down and picked up a crayon.
- {He} wanted to draw {aco} for {his} {gp}. | {He} had a big white paper. | It was {color2}.
- {He} drew {aco}. | {He} drew {ao}. {fact}
- Then {he} drew the sun. | {He} also drew {his} friend {F}. | {He} made the sky {color2}.
- {His} {gp} came in. | {He} showed it to {his} {gp}.
- "What a nice {o}!" said {his} {gp}. | "I love your {o}," said {his} {gp}.
- "It is for you," {he} said. | "I made it for you," said {n}.
- {His} {gp} put the picture on the wall. | {His} {gp} kept the picture by the bed.
- @hug_end
- @happy_end
* color2 = blue
* color2 = yellow
* color2 = orange
        """,
        nouns=("flower", "kite", "boat", "car", "train", "balloon", "truck"),
        cast="child",
    ),
    Plot(
        "sick friend",
        """
- {N} was sad because {F} was sick. | {N} wanted to see {his} friend {F}. | {N} heard that {F} was sick.
- {F} was in bed. | {F} could not come out to play.
- {N} wanted to make {F} happy. | "What can I do?" {he} said.
- {He} picked up {ao}. | {He} took {ao} from the table. | {He} got {aco}.
- {fact}
- {N} went to {F} with the {o}. | {He} took the {o} to {F}.
- "I have {ao} for you," said {n}. | {N} gave the {o} to {F}.
- {F} smiled. | "You are so kind," said {F}. | "Thank you for the {o}," said {F}.
- The next day, {F} felt better. | Soon {F} was well again.
- @friends_end
        """,
        kinds=("nature", "food", "toy", "thing"),
    ),
    Plot(
        "day out",
        """
- {N} went {to_place}. | {N} was {in_place}. | {N} wanted to go {to_place}.
- {He} saw {sight}. | The sun was warm. | It was a nice day.
- Then {he} picked up {ao} {spot}. | {He} saw {ao} {spot}. | There was {aco} {spot}.
- @look
- {His} friend {F} was there too. | "What do you have?" asked {F}. | Then {F} came to {him}.
- "It is {aco}," said {n}. | {N} showed the {o} to {F}.
- @enjoy
- {F} wanted to do it too. | {F} laughed and clapped. | "This is fun!" said {F}.
- @friends_end
- Then it was time to go home. | ~
        """,
        kinds=("nature", "toy"),
        weight=4,
    ),
    Plot(
        "mud",
        """
- {N} fell in the mud. | {N} was playing in the mud. | {N} jumped in the mud.
- {He} was brown from head to toe. | There was mud on {his} nose.
- {He} also had mud on {his} {o}. | {He} dropped {his} {o} in the mud.
- "Look at you!" said {his} {gp}. | {His} {gp} laughed.
- "You need a bath," said {his} {gp}. | "It is time for a bath," said {his} {gp}.
- {N} did not want to have a bath. | "I do not like baths," {he} said.
- But the water was nice and warm. | But there were so many bubbles.
- {He} washed the {o} too. | {His} {gp} washed the {o}.
- Soon {n} was clean, and the {o} was clean too. | {N} splashed and laughed.
- "Baths are fun!" {he} said. | @hug_end
        """,
        nouns=("ball", "truck", "car", "doll", "robot", "boat"),
        cast="child",
    ),
)
