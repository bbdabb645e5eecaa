"""Topics about simple facts: capitals, opposites, the calendar, science, and computers."""

from __future__ import annotations

from random import Random

from training.corpus.conversation import Topic, Turn, capitalized, filled
from training.corpus.fact_tables import COMPUTER_WORDS, COUNTRIES, OPPOSITES, SCIENCE
from training.corpus.wording import asked, joined

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS = ("spring", "summer", "autumn", "winter")
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth",
)  # fmt: skip
SEASON_FACTS = (
    ("spring", "In spring, the days get longer, and flowers begin to grow."),
    ("summer", "In summer, the days are long and warm."),
    ("autumn", "In autumn, the days get shorter, and the leaves fall from many trees."),
    ("winter", "In winter, the days are short and cold."),
)

CAPITAL = (
    "What is the capital of {x}?", "What is the capital of {x}?", "What's the capital of {x}?",
    "Which city is the capital of {x}?", "Name the capital of {x}.", "What is the capital city of {x}?",
    "capital of {x}", "Do you know the capital of {x}?", "Can you tell me the capital of {x}?",
)  # fmt: skip
CAPITAL_MORE = ("And of {x}?", "And the capital of {x}?", "What about {x}?", "And {x}?", "and of {x}?")
COUNTRY = ("Which country is {x} in?", "In which country is {x}?", "Where is {x}?", "What country is {x} in?")
LANGUAGE = (
    "What language do people speak in {x}?", "Which language is spoken in {x}?", "What do people speak in {x}?",
    "What language do they speak in {x}?",
)  # fmt: skip
LANGUAGE_THERE = (
    "What language do people speak there?", "Which language do they speak there?", "And what language is spoken there?",
    "What do people speak there?",
)  # fmt: skip
OPPOSITE = (
    "What is the opposite of {x}?", 'What is the opposite of "{x}"?', "What's the opposite of {x}?",
    "Tell me the opposite of {x}.", "opposite of {x}", "Which word is the opposite of {x}?",
)  # fmt: skip
MEANING = (
    "What is {x}?", "What is {x}?", "What's {x}?", "Explain {x}.", "What does {x} mean?", "Tell me about {x}.",
    "Can you explain what {x} is?", "Do you know what {x} is?", "Please explain {x}.",
)  # fmt: skip


def _capital(country: str, city: str) -> str:
    return f"The capital of {country} is {city.rstrip('.')}."


def _language(country: str, language: str) -> str:
    return f"In {country}, people speak {language}."


def capitals(random: Random) -> list[Turn]:
    """Capitals of one to three countries, perhaps with the language."""
    chosen = random.sample(COUNTRIES, random.choice((1, 1, 2, 3)))
    turns = []
    for index, (country, city, _) in enumerate(chosen):
        question = filled(random, CAPITAL if index == 0 else CAPITAL_MORE, x=country)
        turns.append(Turn(asked(random, question) if index == 0 else question, _capital(country, city)))
    if random.random() < 0.3:
        country, _, language = chosen[-1]
        turns.append(Turn(random.choice(LANGUAGE_THERE), _language(country, language)))
    return turns


def countries(random: Random) -> list[Turn]:
    """The country of a city, perhaps with the language."""
    country, city, language = random.choice(COUNTRIES)
    turns = [Turn(asked(random, filled(random, COUNTRY, x=city)), f"{city} is in {country}.")]
    if random.random() < 0.3:
        turns.append(Turn(random.choice(LANGUAGE_THERE), _language(country, language)))
    return turns


def is_capital(random: Random) -> list[Turn]:
    """Whether a city is the capital of a country."""
    (country, city, _), (_, other, _) = random.sample(COUNTRIES, 2)
    if random.random() < 0.5:
        return [
            Turn(asked(random, f"Is {city} the capital of {country}?"), f"Yes, {city} is the capital of {country}.")
        ]
    answer = f"No, the capital of {country} is {city.rstrip('.')}."
    return [Turn(asked(random, f"Is {other} the capital of {country}?"), answer)]


def languages(random: Random) -> list[Turn]:
    """The language of a country."""
    country, _, language = random.choice(COUNTRIES)
    return [Turn(asked(random, filled(random, LANGUAGE, x=country)), _language(country, language))]


def opposites(random: Random) -> list[Turn]:
    """The opposites of one to three words."""
    turns = []
    for index, pair in enumerate(random.sample(OPPOSITES, random.choice((1, 1, 2, 3)))):
        word, other = pair if random.random() < 0.5 else pair[::-1]
        question = filled(random, OPPOSITE if index == 0 else ("And of {x}?", "And {x}?", "What about {x}?"), x=word)
        turns.append(Turn(question, f'The opposite of "{word}" is "{other}".'))
    return turns


def _in_order(random: Random, names: tuple[str, ...], kind: str) -> list[Turn]:
    place = random.randrange(len(names))
    after = random.random() < 0.6
    step = 1 if after else -1
    word = "after" if after else "before"
    found = names[(place + step) % len(names)]
    patterns = ("What {kind} comes {word} {x}?", "Which {kind} comes {word} {x}?", "What comes {word} {x}?")
    question = filled(random, (*patterns, "Which {kind} is {word} {x}?"), kind=kind, word=word, x=names[place])
    turns = [Turn(asked(random, question), f"{capitalized(found)} comes {word} {names[place]}.")]
    if random.random() < 0.3:
        further = names[(place + 2 * step) % len(names)]
        turns.append(Turn(f"And {word} that?", f"{capitalized(further)} comes {word} {found}."))
    return turns


def days(random: Random) -> list[Turn]:
    """The day before or after another."""
    return _in_order(random, DAYS, "day")


def months(random: Random) -> list[Turn]:
    """The month before or after another."""
    return _in_order(random, MONTHS, "month")


def seasons(random: Random) -> list[Turn]:
    """The season before or after another, or how it is."""
    if random.random() < 0.5:
        return _in_order(random, SEASONS, "season")
    season, answer = random.choice(SEASON_FACTS)
    patterns = ("What happens in {x}?", "How is the weather in {x}?", "What is {x} like?", "Tell me about {x}.")
    return [Turn(asked(random, filled(random, patterns, x=season)), answer)]


def calendar(random: Random) -> list[Turn]:
    """Fixed questions about days, months, and seasons."""
    place = random.randrange(12)
    days_of = f"{MONTHS[place]} has {MONTH_DAYS[place]} days."
    if place == 1:
        days_of = "February has 28 days, and 29 days in a leap year."
    day = random.randrange(7)
    choices = (
        (f"How many days does {MONTHS[place]} have?", days_of),
        (f"How many days are in {MONTHS[place]}?", days_of),
        (
            f"What is the {ORDINALS[place]} month of the year?",
            f"The {ORDINALS[place]} month of the year is {MONTHS[place]}.",
        ),
        (f"Which month is the {ORDINALS[place]}?", f"The {ORDINALS[place]} month of the year is {MONTHS[place]}."),
        (
            f"What is the {ORDINALS[day]} day of the week?",
            f"Counting from Monday, the {ORDINALS[day]} day of the week is {DAYS[day]}.",
        ),
        ("What is the last month of the year?", "The last month of the year is December."),
        ("How many days are in a week?", "There are seven days in a week."),
        ("How many days does a week have?", "There are seven days in a week."),
        ("What are the days of the week?", f"The days of the week are {joined(DAYS)}."),
        ("Name the days of the week.", f"The days of the week are {joined(DAYS)}."),
        ("How many months are in a year?", "There are 12 months in a year."),
        ("How many months does a year have?", "There are 12 months in a year."),
        ("What are the months of the year?", f"The months of the year are {joined(MONTHS)}."),
        ("Name the months of the year.", f"The months of the year are {joined(MONTHS)}."),
        ("How many seasons are there?", "There are four seasons: spring, summer, autumn, and winter."),
        ("What are the seasons?", "There are four seasons: spring, summer, autumn, and winter."),
        ("Which days are the weekend?", "Saturday and Sunday are the weekend."),
        ("What is the weekend?", "Saturday and Sunday are the weekend."),
    )
    question, answer = random.choice(choices)
    return [Turn(asked(random, question), answer)]


def science(random: Random) -> list[Turn]:
    """A fixed fact."""
    questions, answer = random.choice(SCIENCE)
    return [Turn(asked(random, random.choice(questions)), answer)]


def computers(random: Random) -> list[Turn]:
    """A word about computers."""
    phrase, answer = random.choice(COMPUTER_WORDS)
    return [Turn(asked(random, filled(random, MEANING, x=phrase)), answer)]


TOPICS: dict[Topic, float] = {
    capitals: 5,
    countries: 2,
    is_capital: 0.7,
    languages: 1,
    opposites: 4,
    days: 1.2,
    months: 1.2,
    seasons: 0.6,
    calendar: 1.5,
    science: 6,
    computers: 2.5,
}
