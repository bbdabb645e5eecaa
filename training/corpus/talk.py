"""Topics of small talk: greetings, questions about the model, the user's own things, jokes, and advice."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training.corpus.conversation import Topic, Turn, filled
from training.corpus.talk_tables import ABILITIES, ADVICE, FEELINGS, INTERESTING, JOKES, REPLIES, WHO
from training.corpus.word_tables import NAMES
from training.corpus.wording import asked, requested, with_article

GOOD_THINGS = (
    "apples", "dogs", "cats", "music", "books", "tea", "flowers", "trains", "the sea", "the rain", "chocolate",
    "horses",
    "football", "the color blue", "snow", "bread", "coffee", "birds", "stories", "long walks", "cake", "numbers",
    "mountains", "the moon", "pizza", "the summer", "bananas", "drawing", "swimming", "old houses",
)  # fmt: skip
PETS = ("cat", "dog", "rabbit", "bird", "horse", "mouse", "fish", "parrot")
PET_NAMES = (
    "Luna",
    "Max",
    "Bella",
    "Rex",
    "Coco",
    "Milo",
    "Nala",
    "Oscar",
    "Daisy",
    "Simba",
    "Lucky",
    "Fluffy",
    "Snow",
    "Toby",
)
CITIES = (
    "Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Lisbon", "Tokyo", "Beijing", "Shanghai", "Cairo",
    "Boston", "Chicago", "Dublin", "Prague", "Zurich", "Sydney", "Toronto", "Lima",
)  # fmt: skip
JOBS = (
    "teacher", "doctor", "nurse", "baker", "farmer", "cook", "pilot", "painter", "programmer", "student", "driver",
    "gardener", "writer", "engineer", "musician", "librarian",
)  # fmt: skip
BETWEEN = (
    ("Thank you.", "You are welcome."),
    ("What is 2 plus 2?", "2 plus 2 is 4."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("What color is a banana?", "A banana is yellow."),
    ("Who are you?", f"{WHO} {ABILITIES}"),
)


def replies(random: Random) -> list[Turn]:
    """A greeting, a question about the model, thanks, or goodbye."""
    questions, answer = random.choice(REPLIES)
    return [Turn(random.choice(questions), answer)]


def greeting(random: Random) -> list[Turn]:
    """A greeting, alone or with how the model is."""
    word = random.choice(("Hello", "Hi", "Good morning", "Hello there", "Hey", "Good evening", "hi", "hello", "hey"))
    answer = {"good morning": "Good morning!", "good evening": "Good evening!"}.get(word.lower(), "Hello!")
    if random.random() < 0.3:
        name = random.choice(NAMES)
        question = f"{word}, {random.choice((f'I am {name}.', f'my name is {name}.'))}"
        return [Turn(question, f"{answer[:-1]}, {name}. It is nice to meet you.")]
    question = word + random.choice(("", "!", ".", ""))
    turns = [Turn(question, f"{answer} How can I help you?")]
    if random.random() < 0.25:
        turns.append(
            Turn(
                random.choice(("How are you?", "how are you", "How are you today?")),
                "I am fine, thank you. And how are you?",
            )
        )
        turns.append(
            Turn(
                random.choice(("I am fine.", "Fine, thanks.", "Good, thank you.", "I am well.")),
                "I am glad to hear that.",
            )
        )
    return turns


def _with_something_between(random: Random, first: Turn, last: Turn) -> list[Turn]:
    if random.random() < 0.4:
        return [first, Turn(*random.choice(BETWEEN)), last]
    return [first, last]


def name(random: Random) -> list[Turn]:
    """The user's name, and the question about it."""
    user = random.choice(NAMES)
    told = (
        "My name is {n}.",
        "I am {n}.",
        "my name is {n}",
        "I'm {n}.",
        "Hi, my name is {n}.",
        "People call me {n}.",
        "You can call me {n}.",
    )
    questions = (
        "What is my name?",
        "Do you know my name?",
        "what is my name",
        "What's my name?",
        "Do you remember my name?",
        "Who am I?",
    )
    first = Turn(filled(random, told, n=user), f"Nice to meet you, {user}.")
    return _with_something_between(random, first, Turn(random.choice(questions), f"Your name is {user}."))


def favorite(random: Random) -> list[Turn]:
    """What the user likes, and the question about it."""
    thing = random.choice(GOOD_THINGS)
    told = ("I like {t}.", "I like {t} very much.", "I love {t}.", "I really like {t}.", "i like {t}")
    questions = (
        "What do I like?",
        "Do you remember what I like?",
        "what do I like",
        "Do you know what I like?",
        "Tell me what I like.",
    )
    first = Turn(filled(random, told, t=thing), f"That is nice. Many people like {thing}.")
    return _with_something_between(random, first, Turn(random.choice(questions), f"You like {thing}."))


def pet(random: Random) -> list[Turn]:
    """The user's pet, and the question about it."""
    animal, called = random.choice(PETS), random.choice(PET_NAMES)
    told = (
        "I have a {a}. The name is {n}.",
        "My {a} is called {n}.",
        "I have a {a} called {n}.",
        "I have a {a} named {n}.",
    )
    questions = (
        "What is my {a} called?",
        "What is the name of my {a}?",
        "Do you know the name of my {a}?",
        "What is my {a}'s name?",
    )
    first = Turn(filled(random, told, a=animal, n=called), f"{called} is a nice name for a {animal}.")
    last = Turn(filled(random, questions, a=animal), f"Your {animal} is called {called}.")
    if random.random() < 0.2:
        last = Turn(
            random.choice(("What pet do I have?", "Which animal do I have?")), f"You have a {animal} called {called}."
        )
    return _with_something_between(random, first, last)


def city(random: Random) -> list[Turn]:
    """Where the user lives, and the question about it."""
    place = random.choice(CITIES)
    told = ("I live in {c}.", "I live in {c} now.", "My home is in {c}.", "My home is {c}.")
    questions = (
        "Where do I live?",
        "Do you know where I live?",
        "Which city do I live in?",
        "In which city do I live?",
        "where do I live",
    )
    first = Turn(filled(random, told, c=place), f"I hope you like it in {place}.")
    return _with_something_between(random, first, Turn(random.choice(questions), f"You live in {place}."))


def job(random: Random) -> list[Turn]:
    """The user's job, and the question about it."""
    work = with_article(random.choice(JOBS))
    told = ("I am {j}.", "I work as {j}.", "I'm {j}.", "My job: I am {j}.", "I am {j} by profession.")
    questions = ("What is my job?", "What do I do?", "Do you know my job?", "What is my work?", "what is my job")
    first = Turn(filled(random, told, j=work), f"It must be interesting to be {work}.")
    return _with_something_between(random, first, Turn(random.choice(questions), f"You are {work}."))


def not_told(random: Random) -> list[Turn]:
    """A question about the user that nobody answered before."""
    questions = (
        "What is my name?",
        "Do you know my name?",
        "What do I like?",
        "Where do I live?",
        "What is my job?",
        "How old am I?",
    )
    return [Turn(random.choice(questions), "You have not told me that yet.")]


def joke(random: Random) -> list[Turn]:
    """A joke, or two."""
    questions = (
        "Tell me a joke.",
        "Tell a joke.",
        "Make me laugh.",
        "Give me a joke.",
        "Say something funny.",
        "Tell me a short joke.",
    )
    return _perhaps_two(
        random, questions, JOKES, ("Another one, please.", "One more.", "Tell me another joke.", "Another joke?")
    )


def interesting(random: Random) -> list[Turn]:
    """Something interesting, perhaps two times."""
    questions = (
        "Tell me something interesting.",
        "Tell me a fact.",
        "Tell me a fun fact.",
        "Give me an interesting fact.",
        "Tell me something new.",
    )
    return _perhaps_two(
        random, questions, INTERESTING, ("Another one, please.", "One more.", "Tell me another fact.", "And another?")
    )


def _perhaps_two(
    random: Random, questions: Sequence[str], entries: Sequence[str], further: Sequence[str]
) -> list[Turn]:
    """One of the entries, and sometimes, asked for further ones, another."""
    first, second = random.sample(entries, 2)
    turns = [Turn(requested(random, random.choice(questions)), first)]
    if random.random() < 0.3:
        turns.append(Turn(random.choice(further), second))
    return turns


def feelings(random: Random) -> list[Turn]:
    """How the user feels."""
    words, answer = random.choice(FEELINGS)
    patterns = (
        "I am {w}.",
        "I'm {w}.",
        "I feel {w}.",
        "i am {w}",
        "I am {w} today.",
        "Today I feel {w}.",
        "I feel so {w}.",
        "I am very {w}.",
    )
    return [Turn(filled(random, patterns, w=random.choice(words)), answer)]


def advice(random: Random) -> list[Turn]:
    """A little advice."""
    questions, answer = random.choice(ADVICE)
    return [Turn(asked(random, random.choice(questions)), answer)]


TOPICS: dict[Topic, float] = {
    replies: 8,
    greeting: 4,
    name: 3,
    favorite: 1.5,
    pet: 1.2,
    city: 1,
    job: 1,
    not_told: 0.5,
    joke: 1.2,
    interesting: 1.2,
    feelings: 1.5,
    advice: 1.5,
}
