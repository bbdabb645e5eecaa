"""Topics about lists and words: naming, sorting, spelling, translating, and small texts."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training.corpus.conversation import Topic, Turn, capitalized, filled
from training.corpus.things import ANIMALS
from training.corpus.word_tables import (
    CATEGORIES,
    CHINESE,
    NAMES,
    PROGRAMS,
    RHYMES,
    SENTENCES,
    SIMPLE_WORDS,
    STEPS,
)
from training.corpus.wording import asked, joined, requested, with_article

NUMBERS = ("zero", "one", "two", "three", "four", "five")
WITHOUT_ARTICLE = ("colors", "drinks", "sports", "countries", "cities")
COPY_COLORS = ("little", "old", "young", "happy", "tired", "clever", "kind", "brown", "white", "funny")
COPY_PLACES = ("house", "tree", "river", "door", "bridge", "lake", "garden", "school", "station", "window", "table")
GIFTS = ("the book", "the flowers", "the cake", "your help", "the nice dinner", "the gift", "the tea", "your letter")
EVENTS = ("a birthday party", "dinner", "a picnic", "lunch", "a walk in the park", "tea")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def numbered(items: Sequence[str]) -> str:
    """A numbered Markdown list."""
    return "\n".join(f"{index}. {item}" for index, item in enumerate(items, 1))


def _count(random: Random, number: int) -> str:
    return random.choice((NUMBERS[number], str(number)))


def _some(random: Random, words: list[str], number: int) -> list[str]:
    """That many of the words, in their order, so that what came before rules out to say one again."""
    return [words[index] for index in sorted(random.sample(range(len(words)), number))]


def naming(random: Random) -> list[Turn]:
    """Some members of a category in a sentence."""
    _, many, words = random.choice(CATEGORIES)
    number = random.choice((2, 3, 3, 3, 4, 5))
    items = _some(random, words.split(), number)
    if many not in WITHOUT_ARTICLE:
        items = [with_article(item) for item in items]
    patterns = ("Name {n} {x}.", "Name {n} {x}.", "Tell me {n} {x}.", "Give me {n} {x}.", "Say {n} {x}.")
    question = requested(random, filled(random, patterns, n=_count(random, number), x=many))
    return [Turn(question, f"{capitalized(NUMBERS[number])} {many} are {joined(items)}.")]


def listing(random: Random) -> list[Turn]:
    """Some members of a category as a numbered list, perhaps with one more."""
    one, many, words = random.choice(CATEGORIES)
    number = random.choice((3, 3, 4, 5))
    items = _some(random, words.split(), number + 1)
    patterns = ("List {n} {x}.", "Give me a list of {n} {x}.", "Make a list of {n} {x}.", "Write a list of {n} {x}.")
    question = requested(random, filled(random, patterns, n=_count(random, number), x=many))
    turns = [Turn(question, numbered(items[:-1]))]
    if random.random() < 0.25:
        turns.append(
            Turn(
                random.choice(("One more, please.", "And one more?", "Another one.")), f"Another {one} is {items[-1]}."
            )
        )
        if many not in WITHOUT_ARTICLE:
            turns[-1] = Turn(turns[-1].question, f"Another {one} is {with_article(items[-1])}.")
    return turns


def beginning_with(random: Random) -> list[Turn]:
    """Words with a first letter."""
    letters = [letter for letter in "bcsmtr" if sum(word[0] == letter for word in SIMPLE_WORDS) >= 4]
    letter = random.choice(letters)
    number = random.choice((2, 3, 3))
    words = random.sample([word for word in SIMPLE_WORDS if word[0] == letter], number)
    patterns = (
        "Give me {n} words that start with {x}.",
        "Name {n} words that begin with {x}.",
        "Tell me {n} words with {x}.",
    )
    question = requested(
        random, filled(random, patterns, n=_count(random, number), x=random.choice((letter, letter.upper())))
    )
    return [Turn(question, f"{capitalized(NUMBERS[number])} words that start with {letter} are {joined(words)}.")]


def sorting(random: Random) -> list[Turn]:
    """Three numbers by size, or three words by the alphabet."""
    if random.random() < 0.6:
        numbers = random.sample(range(1, 31), 3)
        patterns = ("Sort these numbers: {x}.", "Put these numbers in order: {x}.", "Sort {x}.")
        question = filled(random, patterns, x=", ".join(map(str, numbers)))
        return [Turn(requested(random, question), ", ".join(map(str, sorted(numbers))) + ".")]
    words = random.sample(SIMPLE_WORDS, 3)
    while len({word[0] for word in words}) < 3:
        words = random.sample(SIMPLE_WORDS, 3)
    patterns = (
        "Put these words in alphabetical order: {x}.",
        "Sort these words: {x}.",
        "Sort these words by the alphabet: {x}.",
    )
    return [Turn(requested(random, filled(random, patterns, x=", ".join(words))), ", ".join(sorted(words)) + ".")]


def spelling(random: Random) -> list[Turn]:
    """A word, letter by letter: its spelling, its first letter, its length, or its capitals."""
    word = random.choice(SIMPLE_WORDS)
    kind = random.randrange(5)
    patterns: tuple[str, ...]
    if kind == 0:
        patterns = ("How do you spell {w}?", 'How do you spell "{w}"?', "Spell the word {w}.", "Spell {w}.")
        answer = f'"{word}" is spelled {"-".join(word)}.'
    elif kind == 1:
        patterns = (
            "What is the first letter of {w}?",
            'What is the first letter of "{w}"?',
            "Which letter does {w} begin with?",
        )
        answer = f'The first letter of "{word}" is {word[0]}.'
    elif kind == 2:
        patterns = (
            "How many letters are in {w}?",
            "How many letters does {w} have?",
            'How many letters are in the word "{w}"?',
        )
        answer = f'"{word}" has {len(word)} letters: {"-".join(word)}.'
    elif kind == 3:
        patterns = ("Write {w} in capital letters.", "Write {w} in uppercase.", "Put {w} in capitals.")
        answer = f"{word.upper()}"
    else:
        patterns = (
            "What is the last letter of {w}?",
            'What is the last letter of "{w}"?',
            "Which letter does {w} end with?",
        )
        answer = f'The last letter of "{word}" is {word[-1]}.'
    return [Turn(filled(random, patterns, w=word), answer)]


def repeating(random: Random) -> list[Turn]:
    """The same words again."""
    if random.random() < 0.35:
        name = random.choice(NAMES)
        word, answer = random.choice(
            (("hello", "Hello"), ("good morning", "Good morning"), ("goodbye", "Goodbye"), ("thank you", "Thank you"))
        )
        return [Turn(requested(random, f"Say {word} to {name}."), f"{answer}, {name}.")]
    text, kind = random.choice(SENTENCES)[1], random.random()
    if kind < 0.5:
        text = " ".join(random.choices((*SIMPLE_WORDS, *NAMES), k=random.randint(2, 7)))
    elif kind < 0.8:
        animal, color, place = random.choice(ANIMALS).name, random.choice(COPY_COLORS), random.choice(COPY_PLACES)
        text = f"The {color} {animal} {random.choice(('is', 'sleeps', 'sits', 'waits'))} near the {place}."
    patterns = (
        "Repeat: {t}",
        "Repeat after me: {t}",
        "Say this: {t}",
        "Please repeat: {t}",
        "Please say: {t}",
        "Repeat this: {t}",
    )
    return [Turn(filled(random, patterns, t=text), text)]


def translating(random: Random) -> list[Turn]:
    """English words in Chinese, and the other way."""
    turns = []
    for index, (word, chinese) in enumerate(random.sample(CHINESE, random.choice((1, 1, 2, 3)))):
        patterns: tuple[str, ...] = (
            "What is {w} in Chinese?", 'What is the Chinese word for "{w}"?', "How do you say {w} in Chinese?",
            "Translate {w} into Chinese.", 'Translate "{w}" to Chinese.', "{w} in Chinese",
            "What is the Chinese word for {w}?",
        )  # fmt: skip
        if index:
            patterns = ("And {w}?", 'And "{w}"?', "What about {w}?")
        elif random.random() < 0.2:
            question = random.choice((f"What does {chinese} mean?", f"What is {chinese} in English?"))
            return [Turn(question, f'The English word for {chinese} is "{word}".')]
        turns.append(Turn(filled(random, patterns, w=word), f'The Chinese word for "{word}" is {chinese}.'))
    return turns


def sentences(random: Random) -> list[Turn]:
    """A sentence with a word."""
    word, sentence = random.choice(SENTENCES)
    patterns = (
        "Write a sentence with the word {w}.", 'Make a sentence with "{w}".', "Use the word {w} in a sentence.",
        "Write a short sentence with {w}.", "Give me a sentence with the word {w}.",
    )  # fmt: skip
    return [Turn(requested(random, filled(random, patterns, w=word)), sentence)]


def rhymes(random: Random) -> list[Turn]:
    """A word that rhymes."""
    word, other = random.choice(RHYMES)
    patterns = (
        "What rhymes with {w}?",
        "Which word rhymes with {w}?",
        "Tell me a word that rhymes with {w}.",
        "Find a rhyme for {w}.",
    )
    return [Turn(asked(random, filled(random, patterns, w=word)), f'"{capitalized(other)}" rhymes with "{word}".')]


def instructions(random: Random) -> list[Turn]:
    """How to do a simple thing, step by step."""
    action, steps = random.choice(STEPS)
    patterns = (
        "How do I {a}?", "How can I {a}?", "Tell me how to {a}.", "Explain how to {a}.", "What are the steps to {a}?",
        "Give me steps to {a}.", "How to {a}?", "Can you tell me how to {a}?",
    )  # fmt: skip
    return [Turn(asked(random, filled(random, patterns, a=action)), numbered(steps))]


def notes(random: Random) -> list[Turn]:
    """A short note of thanks, or an invitation."""
    name = random.choice(NAMES)
    if random.random() < 0.55:
        gift = random.choice(GIFTS)
        patterns = (
            "Write a thank-you note to {n} for {g}.",
            "Write a short thank-you e-mail to {n} for {g}.",
            "Thank {n} for {g} in a note.",
        )
        answer = f"Dear {name},\n\nThank you very much for {gift}. It made me very happy.\n\nBest wishes"
        if gift in ("the flowers",):
            answer = answer.replace("It made", "They made")
        return [Turn(requested(random, filled(random, patterns, n=name, g=gift)), answer)]
    event, day = random.choice(EVENTS), random.choice(DAYS)
    patterns = (
        "Write an invitation to {n} for {e} on {d}.",
        "Write a short e-mail to invite {n} to {e} on {d}.",
        "Invite {n} to {e} on {d} in a note.",
    )
    answer = f"Dear {name},\n\nI would like to invite you to {event} on {day}. I hope that you can come.\n\nBest wishes"
    return [Turn(requested(random, filled(random, patterns, n=name, e=event, d=day)), answer)]


def programs(random: Random) -> list[Turn]:
    """A small Python program."""
    purpose, code, explanation = random.choice(PROGRAMS)
    thing = "function" if code.startswith("def") else "program"
    patterns = (
        "Write a Python {t} that {p}.", "Show me a Python {t} that {p}.", "Give me a small Python {t} that {p}.",
        "I need a Python {t} that {p}.", "Write a {t} in Python that {p}.", "Write Python code that {p}.",
    )  # fmt: skip
    question = filled(random, patterns, t=thing, p=purpose)
    return [
        Turn(
            question if question.startswith("I ") else requested(random, question),
            f"```python\n{code}\n```\n{explanation}",
        )
    ]


def tables(random: Random) -> list[Turn]:
    """A Markdown table of animals."""
    column = random.choice(("food", "home"))
    chosen = random.sample(ANIMALS, random.choice((2, 3)))
    names = joined([animal.name for animal in chosen])
    patterns = (
        "Make a table of {n} and their {c}.",
        "Make a table with the {c} of {n}.",
        "Write a table with {n} and their {c}.",
    )
    rows = [f"| {animal.name} | {animal.food if column == 'food' else animal.home} |" for animal in chosen]
    answer = "\n".join((f"| Animal | {column.capitalize()} |", "| --- | --- |", *rows))
    return [Turn(requested(random, filled(random, patterns, n=names, c=column)), answer)]


TOPICS: dict[Topic, float] = {
    naming: 4,
    listing: 4,
    beginning_with: 1,
    sorting: 1.5,
    spelling: 5,
    repeating: 4,
    translating: 3,
    sentences: 1.5,
    rhymes: 0.8,
    instructions: 1.5,
    notes: 1.2,
    programs: 1.5,
    tables: 0.6,
}
