"""The plots of the stories: sentences with alternatives, and the facts which follow from them."""

from __future__ import annotations

from typing import NamedTuple

BREAK = "\n\n"


class Plot(NamedTuple):
    """A plot: which things it suits, its sentences (or choices of sentences), and answers about it."""

    role: str
    sentences: tuple[str | tuple[str, ...], ...]
    happened: str
    reason: str
    ending: str
    lesson: str
    summary: str
    title: str
    questions: tuple[tuple[str, str], ...] = ()
    not_traits: tuple[str, ...] = ()
    reason_question: str = "Why was {name} sad?"


LOST = Plot(
    "carry",
    (
        (
            "{name} had {an_object} and took it everywhere.",
            "The {kind} loved {his} {look} {object} more than anything.",
        ),
        ("One morning, the {object} was gone.", "But one day, {name} lost the {object}."),
        "{He} looked under the bed and behind the door, but {he} could not find it.",
        ("{name} was very sad.", "The {kind} sat down and began to cry."),
        BREAK,
        ("Then {a_friend} named {friend} came by.", "Just then, {a_friend} named {friend} walked past."),
        (
            '"Do not be sad," said {friend}. "I will help you look."',
            '"I will help you," said {friend}. "Two can see more than one."',
        ),
        ("They looked everywhere together.", "Together they walked along the path and looked at every stone."),
        ("At last, they found the {object} {place}.", "In the evening, {friend} saw the {object} {place}."),
        BREAK,
        ("{name} was so happy that {he} danced.", "The {kind} laughed and thanked {friend}.", ""),
        "From that day on, {name} and {friend} were best friends.",
    ),
    "They found the {object} {place}.",
    "{name} was sad because {he} had lost {his} {object}.",
    "In the end, {name} and {friend} find the {object} and become best friends.",
    "{name} learned that it is easier to find something with a friend.",
    "{name} the {kind} lost {his} {object} and was sad. {friend} helped {him} look, and they found it {place}.",
    "The Lost {Object}",
    (
        ("What did {name} lose?", "{name} lost {his} {object}."),
        ("Where was the {object}?", "The {object} was {place}."),
        ("Who found the {object}?", "{name} and {friend} found the {object} together."),
    ),
)

FOUND = Plot(
    "carry",
    (
        (
            "One day, {name} went for a walk and found {an_object} {place}.",
            "One morning, the {kind} saw something {place}. It was {an_object}.",
        ),
        (
            '"What a nice {object}!" said {name}. "But whose is it?"',
            '"Someone must miss this {object}," thought {name}.',
            "",
        ),
        ("{He} wanted to keep it, but {he} knew that it was not {his_own}.", "The {kind} decided to find the owner."),
        BREAK,
        ("{name} asked everyone in the village.", "{name} went from house to house and asked everyone."),
        "At the last house, {he} met {a_friend} named {friend}, who looked very sad.",
        '"I have lost my {object}," said {friend}.',
        ('"Here it is!" said {name}, and gave it back.', "{name} smiled and gave the {object} back."),
        BREAK,
        (
            "{friend} was so happy that {fhe} made tea for both of them.",
            "{friend} jumped for joy and asked {name} to stay for dinner.",
        ),
        (
            "The {kind} went home without the {object}, but with a new friend.",
            "{name} had lost nothing and won a friend.",
        ),
    ),
    "{name} found the {object} {place}.",
    "{friend} was sad because {fhe} had lost {fhis} {object}.",
    "In the end, {name} gives the {object} back to {friend}, and they become friends.",
    "{name} learned that it feels good to be honest.",
    "{name} the {kind} found {an_object} {place}. {He} gave it back to {friend}, and they became friends.",
    "The {Kind} and the {Object}",
    (
        ("What did {name} find?", "{name} found {an_object}."),
        ("Whose {object} was it?", "It was {friend}'s {object}."),
        ("Where did {name} find the {object}?", "{name} found the {object} {place}."),
    ),
    reason_question="Why was {friend} sad?",
)

BROKEN = Plot(
    "fix",
    (
        ("{name} had {an_object}.", "The most beautiful thing that {name} had was {an_object}."),
        (
            "One day, there was a loud crack, and the {object} broke.",
            "One windy day, a branch fell on the {object}, and it broke.",
        ),
        ('"Oh no," said the {kind}. "My {object} is broken!"', "The {kind} looked at the broken {object} and was sad."),
        BREAK,
        "{name} tried to fix it alone, but it did not work.",
        (
            "Then {he} went to see {friend}, {a_friend} who could fix many things.",
            "Then {he} asked {friend}, {a_friend} who had a lot of tools.",
        ),
        ('"We can fix it together," said {friend}.', '"That is not so bad," said {friend}. "Hold this, please."', ""),
        ("They worked all afternoon {place}.", "They sat down {place} and worked until evening."),
        BREAK,
        ("When they were done, the {object} was as good as new.", "At last, the {object} was even better than before."),
        ('"Thank you, {friend}," said {name}.', "The {kind} thanked {friend} with a big hug.", ""),
        "Now {he} knew how to fix things, too.",
    ),
    "They fixed the {object} {place}.",
    "{name} was sad because {his} {object} was broken.",
    "In the end, {name} and {friend} fix the {object}, and it is as good as new.",
    "{name} learned that broken things can be fixed, and that it is good to ask for help.",
    "The {object} of {name} the {kind} broke. {friend} helped {him} fix it, and then it was as good as new.",
    "The Broken {Object}",
    (
        ("What broke?", "The {object} broke."),
        ("Who fixed the {object}?", "{name} and {friend} fixed the {object} together."),
    ),
)

FOG_SOUND = Plot(
    "sound",
    (
        (
            "{name} had {an_object} that made a lovely sound.",
            "The {kind} had {an_object} that everyone could hear from far away.",
        ),
        ("One evening, a thick fog came.", "One day, a thick fog covered the land."),
        "Then {name} heard that {friend}, {a_friend} from next door, had not come home.",
        ('"{friend} cannot see the way," said {name}.', "The {kind} was worried about {friend}."),
        BREAK,
        ("Then {he} had an idea.", "{name} thought for a while, and then {he} had an idea."),
        "{He} took the {object} and stood {place}.",
        (
            "Again and again, the sound of the {object} went out into the fog.",
            "The {kind} did not stop, and the {object} was heard everywhere.",
        ),
        "{friend} heard the {object} and walked toward the sound.",
        BREAK,
        (
            "At last, {friend} came out of the fog, tired but safe.",
            "Soon {friend} stood in front of {name} and smiled.",
        ),
        (
            '"Your {object} showed me the way," said {friend}.',
            '"Thank you," said {friend}. "I just followed your {object}."',
        ),
        "They went home together and drank hot tea.",
    ),
    "{name} stood {place} with the {object}.",
    "{name} was worried because {friend} was lost in the fog.",
    "In the end, {friend} hears the {object} and finds the way home.",
    "{name} learned that a good idea can help a friend.",
    "{friend} was lost in the fog. {name} the {kind} used {his} {object} to show the way home.",
    "The {Object} in the Fog",
    (("Who was lost?", "{friend} was lost in the fog."), ("What did {friend} hear?", "{friend} heard the {object}.")),
    ("sad", "lonely"),
    "Why was {name} worried?",
)

STORM_LIGHT = Plot(
    "light",
    (
        ("{name} had {an_object} in {his} window.", "Every night, the {kind} lit {an_object}."),
        (
            "One night, there was a big storm, and it was very dark.",
            "One night, the wind was loud and the rain was cold.",
        ),
        "{friend}, {a_friend} who lived far away, was still on {fhis} way home.",
        ("{name} was worried.", "The {kind} looked out into the dark and was worried."),
        BREAK,
        ('"{friend} needs a light," said {name}.', "Then {name} had an idea."),
        "{He} put the {object} in the highest window of the house.",
        ("The light of the {object} could be seen from far away.", "The {object} shone like a star in the night.", ""),
        "{friend} saw the light and followed it to the house.",
        BREAK,
        (
            "{name} opened the door and gave {friend} a warm blanket.",
            "The {kind} opened the door, and {friend} came in from the rain.",
        ),
        (
            "They sat by the {object} and told stories until the storm was over.",
            "They sat together by the light of the {object} until morning.",
        ),
    ),
    "It happened at {name}'s house, in a big storm.",
    "{name} was worried because {friend} was outside in the storm.",
    "In the end, {friend} sees the light and is safe at {name}'s house.",
    "{name} learned that even a small light can help a lot.",
    "{friend} was outside in a storm. {name} the {kind} put {his} {object} in the window, and {friend} found the way.",
    "The {Object} in the Storm",
    (
        ("What did {friend} see?", "{friend} saw the light of the {object}."),
        ("Who was outside in the storm?", "{friend} was outside in the storm."),
    ),
    ("sad", "lonely"),
    "Why was {name} worried?",
)

SHARING = Plot(
    "food",
    (
        ("One day, {name} had {an_object}.", "One day, the {kind} got {an_object}."),
        ('"This {object} is all for me," {he} thought.', '"I will eat this {object} alone," said {name}.'),
        "{He} sat down {place}.",
        BREAK,
        ("Then {a_friend} named {friend} came along the road.", "Just then, {a_friend} named {friend} walked by."),
        "{friend} had not eaten anything all day and was very hungry.",
        ("{name} looked at the {object}, and then {he} looked at {friend}.", "The {kind} thought for a moment.", ""),
        (
            '"Would you like half of my {object}?" {he} asked.',
            '"Come and sit with me," {he} said. "We can share the {object}."',
        ),
        "{friend} smiled and sat down, and they ate together.",
        BREAK,
        ("The {object} tasted better than any other before.", "{name} had never eaten such a good {object}."),
        (
            "The next day, {friend} came back with a basket full of berries for {name}.",
            "The next day, {friend} brought {name} a bowl of warm soup.",
        ),
        "They shared everything from then on.",
    ),
    "{name} and {friend} shared the {object} {place}.",
    "{friend} was hungry because {fhe} had not eaten anything all day.",
    "In the end, {name} and {friend} share the {object} and become friends.",
    "{name} learned that food tastes better when you share it.",
    "{name} the {kind} wanted to eat {an_object} alone. Then {he} shared it with {friend}, and they became friends.",
    "The Shared {Object}",
    (("What did they share?", "They shared the {object}."), ("Who was hungry?", "{friend} was hungry.")),
    reason_question="Why was {friend} hungry?",
)

FEAR = Plot(
    "wild",
    (
        ("Near the house, there was {an_object}.", "Not far away, there was {an_object}."),
        (
            "{name} was afraid of the {object} and never went there.",
            "Everyone liked the {object}, but the {kind} was afraid of it.",
        ),
        "{He} thought that it was a dangerous place.",
        BREAK,
        (
            'One day, {a_friend} named {friend} asked, "Will you come to the {object} with me?"',
            "One morning, {name} met {a_friend} named {friend}, who was on the way to the {object}.",
        ),
        ('"I am afraid," said {name}.', 'The {kind} shook {his} head. "I am too afraid," {he} said.'),
        (
            '"That is all right," said {friend}. "We will go slowly, one step at a time."',
            '"I was afraid, too," said {friend}. "I will stay with you all the time."',
        ),
        "So they went together, step by step.",
        BREAK,
        (
            "When they came to the {object}, {name} looked around.",
            "At last, they were there, and nothing bad happened.",
        ),
        ("It was quiet and beautiful there.", "There was nothing to be afraid of at all."),
        ('"I did it!" said the {kind}.', "{name} was very proud.", ""),
        "After that, {he} was not afraid of the {object} anymore.",
    ),
    "It happened at the {object}.",
    "{name} was afraid because {he} thought that the {object} was dangerous.",
    "In the end, {name} goes to the {object} with {friend} and is not afraid anymore.",
    "{name} learned that new things are less scary with a friend.",
    (
        "{name} the {kind} was afraid of the {object}. {friend} went there with "
        "{him}, and then {he} was not afraid anymore."
    ),
    "The {Kind} and the {Object}",
    (
        ("What was {name} afraid of?", "{name} was afraid of the {object}."),
        ("Who went with {name}?", "{friend} went with {name}."),
    ),
    ("brave", "lazy"),
    "Why was {name} afraid?",
)
