"""Topics beyond the model: it says that it does not know, instead of inventing an answer."""

from __future__ import annotations

from random import Random

from training.corpus.conversation import Topic, Turn, filled
from training.corpus.wording import asked

SUBJECTS = (
    "quantum physics", "politics", "the stock market", "modern art", "ancient Rome", "the history of China",
    "chemistry",
    "nuclear power", "economics", "philosophy", "black holes", "the French Revolution", "tax law", "machine learning",
    "genetics", "the Middle Ages", "opera", "chess openings", "Greek mythology", "algebra", "geometry", "calculus",
    "the Roman Empire", "climate change", "space travel", "electric cars", "banking", "bitcoin", "football results",
    "the Olympic Games", "Shakespeare", "Mozart", "Picasso", "Albert Einstein", "Napoleon", "the Second World War",
    "the theory of relativity", "evolution", "photography", "architecture", "astronomy", "psychology", "statistics",
    "computer viruses", "cryptography", "compilers", "databases", "Kubernetes", "Rust", "operating systems", "robotics",
    "vaccines", "heart disease", "headaches", "diabetes", "medicine", "insurance", "elections", "the government",
    "the United Nations", "international trade", "the Vikings", "the pyramids", "dinosaurs", "earthquakes",
    "satellites",
    "jazz music", "the film industry", "video games", "fashion", "wine", "French cooking", "the Bible", "Buddhism",
    "religion", "law", "marketing", "logistics", "steel", "biology", "cell biology", "linguistics", "Latin grammar",
    "the moon landing", "submarines", "airplane engines", "batteries", "solar panels", "oil prices", "real estate",
)  # fmt: skip
ABOUT = (
    "Explain {x}.", "Tell me about {x}.", "What do you know about {x}?", "Can you explain {x}?", "Teach me about {x}.",
    "Write an essay about {x}.", "I want to learn about {x}.", "Give me a summary of {x}.",
    "What do you think about {x}?",
    "Explain {x} to me in detail.", "I have a question about {x}.", "Write a long article about {x}.",
    "What is new in {x}?", "Help me with {x}.", "Can you tell me more about {x}?",
)  # fmt: skip

MADE_UP = (
    "Atlantis", "Narbonia", "Zemland", "Eldoria", "Marsovia", "Lumeria", "Oz", "Kaltonia", "Vandoria", "Tirania",
    "Wonderland", "Utopia", "Bergonia", "Solaria", "Quandia",
)  # fmt: skip
PLACE_QUESTIONS = (
    "What is the capital of {x}?", "Where is {x}?", "How many people live in {x}?", "Who is the king of {x}?",
    "What language do people speak in {x}?", "Tell me about {x}.",
)  # fmt: skip

EVENTS = (
    "the football match", "the election", "the tennis final", "the race", "the World Cup", "the Nobel Prize",
    "the chess game", "the hockey game", "the song contest", "the basketball game", "the cup final", "the marathon",
)  # fmt: skip
WHEN = (" yesterday", " last night", " last year", " in 2019", " this week", " today", " in 1998", " last Sunday", "")

PEOPLE = (
    "the president of the United States", "the mayor of London", "the richest person in the world",
    "the king of Sweden",
    "the best football player", "the author of this book", "the prime minister of Japan", "the queen of Denmark",
    "the head of the company", "the most famous singer", "the inventor of the telephone",
    "the first person on the moon",
)  # fmt: skip

NEWS = (
    ("What is the latest news?", "the news"), ("What happened in the world today?", "the news"),
    ("What is in the news?", "the news"), ("What is the price of gold?", "the price of gold"),
    ("How much does a house cost?", "the price of a house"), ("What is the price of bitcoin?", "the price of bitcoin"),
    ("How many people live in China?", "the number of people in China"),
    ("How many people live in the world?", "the number of people in the world"),
    ("How far is it to the moon?", "distances in space"), ("What is the square root of 17?", "square roots"),
    ("Solve x^2 + 3x = 10.", "equations"), ("What is the integral of x^2?", "integrals"),
    ("Prove that there are infinitely many primes.", "proofs"), ("What is 3487 times 9182?", "such big numbers"),
    ("What is 12345 plus 67890?", "such big numbers"), ("What is 4571 divided by 13?", "such big numbers"),
    ("Write a web server in C++.", "long programs"), ("Write a compiler in Rust.", "long programs"),
    ("Write a game in JavaScript.", "long programs"), ("Fix my SQL query.", "SQL"), ("Which stocks should I buy?",
    "stocks"),
    ("Which medicine should I take?", "medicine"), ("My chest hurts. What is it?", "medicine"),
    ("Who should I vote for?", "politics"), ("Which phone should I buy?", "phones"), ("Translate this into Russian.",
    "Russian"),
    ("How do I repair my car?", "the repair of cars"), ("When does my train leave?", "the times of trains"),
    ("What is the best restaurant in town?", "restaurants"), ("How do I get a visa?", "visas"),
    ("What will happen next year?", "the future"), ("Who will win tomorrow?", "the future"),
    ("What are the lottery numbers?", "the lottery"), ("Where are my keys?", "your keys"),
    ("What am I thinking?", "your thoughts"), ("What did I do yesterday?", "your day"),
)  # fmt: skip

OFFER = "You can ask me for a story, a sum, or a list."


def _unknown(topic: str) -> str:
    return f"I am a very small model and I do not know much about {topic}. {OFFER}"


def subjects(random: Random) -> list[Turn]:
    """A big subject."""
    subject = random.choice(SUBJECTS)
    question = filled(random, ABOUT, x=subject)
    return [Turn(question if random.random() < 0.8 else question.rstrip(".?"), _unknown(subject))]


def made_up_places(random: Random) -> list[Turn]:
    """A place that does not exist, or that the model does not know."""
    place = random.choice(MADE_UP)
    answer = f"I do not know a country called {place}."
    return [Turn(filled(random, PLACE_QUESTIONS, x=place), answer)]


def results(random: Random) -> list[Turn]:
    """Who won something."""
    event = random.choice(EVENTS)
    question = f"Who won {event}{random.choice(WHEN)}?"
    return [
        Turn(
            asked(random, question) if event.islower() else question,
            f"I do not know who won {event}. I cannot read the news.",
        )
    ]


def people(random: Random) -> list[Turn]:
    """A person whom the model does not know."""
    person = random.choice(PEOPLE)
    question = filled(
        random, ("Who is {x}?", "Do you know who {x} is?", "What is the name of {x}?", "Tell me who {x} is."), x=person
    )
    return [Turn(question, f"I am a very small model and I do not know who {person} is. {OFFER}")]


def various(random: Random) -> list[Turn]:
    """Other questions that the model cannot answer."""
    question, topic = random.choice(NEWS)
    return [Turn(asked(random, question), _unknown(topic))]


TOPICS: dict[Topic, float] = {
    subjects: 5,
    made_up_places: 1,
    results: 1.5,
    people: 1,
    various: 3,
}
