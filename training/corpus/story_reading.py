"""Short stories given by the user, with a question whose answer is in the story."""

from __future__ import annotations

from random import Random

from training.corpus.conversation import Turn, filled
from training.corpus.story_parts import COLORS, NAMES

THINGS = (
    "ball",
    "book",
    "cup",
    "hat",
    "kite",
    "lamp",
    "scarf",
    "umbrella",
    "bag",
    "coat",
    "box",
    "blanket",
    "bicycle",
    "chair",
)
FOODS = (
    "apples",
    "pears",
    "eggs",
    "cookies",
    "carrots",
    "cherries",
    "oranges",
    "tomatoes",
    "bananas",
    "plums",
    "peaches",
)
PETS = ("cat", "dog", "rabbit", "horse", "bird", "mouse", "goat", "duck", "turtle", "hen")
PLACES = ("under the bed", "behind the door", "on the table", "in the garden", "in the kitchen", "next to the tree",
          "on the roof", "in the car", "under the bench", "on the sofa")  # fmt: skip
TOWNS = ("to the market", "to the park", "to the beach", "to the library", "to the zoo", "to the lake", "to the bakery",
         "to the museum")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
JOBS = ("teacher", "baker", "doctor", "farmer", "nurse", "driver", "singer", "cook", "painter", "gardener")
WEATHER = ("raining", "snowing", "very hot", "very cold", "windy", "foggy")

# A story, and questions about it (in one or more wordings, divided by "|") with their answers.
TALES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "{name} has a {color} {thing}. One day, {he} lost it. {friend} found it {place}.",
        (
            ("What did {name} lose?", "{name} lost {his} {color} {thing}."),
            ("Who found the {thing}?|Who found it?", "{friend} found the {thing}."),
            ("Where was the {thing}?|Where did {friend} find the {thing}?", "The {thing} was {place}."),
            ("What color is the {thing}?", "The {thing} is {color}."),
        ),
    ),
    (
        "On {day}, {name} went {town} with {friend}. {He} bought {number} {foods} there. Then they went home.",
        (
            ("Where did {name} go?|Where did they go?", "{name} went {town} with {friend}."),
            ("When did they go {town}?|On which day was it?", "It was on {day}."),
            ("What did {name} buy?", "{name} bought {number} {foods}."),
            ("How many {foods} did {name} buy?", "{name} bought {number} {foods}."),
            ("Who went with {name}?", "{friend} went with {name}."),
        ),
    ),
    (
        (
            "{name} has a {pet} named {friend}. {friend} likes to sleep {place}. Every "
            "morning, {name} gives {friend} something to eat."
        ),
        (
            ("What is the name of the {pet}?|What is the {pet} called?", "The {pet}'s name is {friend}."),
            ("What pet does {name} have?|What animal does {name} have?", "{name} has a {pet}."),
            ("Where does {friend} like to sleep?|Where does the {pet} sleep?", "{friend} likes to sleep {place}."),
            ("When does {name} feed {friend}?", "{name} feeds {friend} every morning."),
        ),
    ),
    (
        "{name} is a {job}. {friend} is a {job_two}. They live in the same house and eat dinner together on {day}.",
        (
            ("What is {name}'s job?|What does {name} do?", "{name} is a {job}."),
            ("What is {friend}'s job?|What does {friend} do?", "{friend} is a {job_two}."),
            ("Who is a {job}?|Who is the {job}?", "{name} is a {job}."),
            ("Who is the {job_two}?", "{friend} is the {job_two}."),
            ("When do they eat dinner together?", "They eat dinner together on {day}."),
        ),
    ),
    (
        "It was {weather} on {day}. {name} stayed at home and read a book. {friend} went {town}.",
        (
            ("How was the weather?|What was the weather like?", "It was {weather}."),
            ("What did {name} do?", "{name} stayed at home and read a book."),
            ("Where did {friend} go?", "{friend} went {town}."),
            ("Who stayed at home?", "{name} stayed at home."),
            ("Who went {town}?", "{friend} went {town}."),
        ),
    ),
    (
        (
            "{name} had {number} {foods}. {He} met {friend}, who was hungry. {name} gave "
            "{friend} one of them, and {friend} said thank you."
        ),
        (
            ("What did {name} have?", "{name} had {number} {foods}."),
            ("Who was hungry?", "{friend} was hungry."),
            ("What did {friend} say?", "{friend} said thank you."),
            ("Who did {name} meet?", "{name} met {friend}."),
        ),
    ),
    (
        "{name} was sad because {his} {thing} was broken. {friend} came and fixed it. Now {name} is happy again.",
        (
            ("Why was {name} sad?", "{name} was sad because {his} {thing} was broken."),
            ("Who fixed the {thing}?|Who fixed it?", "{friend} fixed the {thing}."),
            ("What was broken?", "The {thing} was broken."),
            ("How is {name} now?|How does {name} feel now?", "{name} is happy again."),
        ),
    ),
    (
        (
            "It is {name}'s birthday on {day}. {friend} wants to give {him} a {color} "
            "{thing}. It is already hidden {place}."
        ),
        (
            ("When is {name}'s birthday?", "{name}'s birthday is on {day}."),
            ("What is the present?|What will {name} get?", "The present is a {color} {thing}."),
            ("Where is the present?|Where is the {thing}?", "The {thing} is hidden {place}."),
            ("Who has a birthday?|Whose birthday is it?", "It is {name}'s birthday."),
        ),
    ),
    (
        (
            "A {pet} lived near a farm. One night, it was {weather}, and the {pet} was alone. "
            "{name} took it home and gave it some food."
        ),
        (
            ("Where did the {pet} live?", "The {pet} lived near a farm."),
            ("Who took the {pet} home?|Who helped the {pet}?", "{name} took the {pet} home."),
            ("What was the weather like?|How was the weather?", "It was {weather}."),
            ("What animal is in the story?", "There is a {pet} in the story."),
        ),
    ),
)
FORMS = (
    "{tale} {question}",
    "{tale} {question}",
    "{tale}\n{question}",
    "{tale}\n\n{question}",
    "Read this: {tale} {question}",
    "Here is a story: {tale} {question}",
    "Story: {tale}\nQuestion: {question}",
    "{question} {tale}",
    'Read the story and answer the question. "{tale}" {question}',
    "Text: {tale}\n{question}",
)


def tale_words(random: Random) -> dict[str, str]:
    """Words for the places in a tale."""
    pronoun = random.choice(("he", "she"))
    is_he = pronoun == "he"
    name = random.choice(NAMES[pronoun])
    job, job_two = random.sample(JOBS, 2)
    return {
        "he": pronoun, "He": pronoun.capitalize(), "him": "him" if is_he else "her", "his": "his" if is_he else "her",
        "name": name, "friend": random.choice([n for n in NAMES["he"] + NAMES["she"] if n != name]),
        "color": random.choice(COLORS), "thing": random.choice(THINGS), "place": random.choice(PLACES),
        "day": random.choice(DAYS), "town": random.choice(TOWNS), "number": random.choice(NUMBERS),
        "foods": random.choice(FOODS), "pet": random.choice(PETS), "job": job, "job_two": job_two,
        "weather": random.choice(WEATHER),
    }  # fmt: skip


def questions_about_given_story(random: Random) -> list[Turn]:
    """The user tells a short story and asks about it, sometimes twice."""
    tale, questions = random.choice(TALES)
    words = tale_words(random)
    text = tale.format(**words)
    turns: list[Turn] = []
    for questions_of_one, answer in random.sample(questions, random.choice((1, 1, 1, 2, 3))):
        question = random.choice(questions_of_one.split("|")).format(**words)
        if not turns:
            question = filled(random, FORMS, tale=text, question=question)
        reply = answer.format(**words)
        if all(reply != turn.answer for turn in turns):
            turns.append(Turn(question, reply))
    return turns
