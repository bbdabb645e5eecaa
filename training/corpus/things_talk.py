"""Topics about common things: what they are, their colors, homes, food, and abilities."""

from __future__ import annotations

from random import Random

from training.corpus.conversation import Topic, Turn, capitalized, filled
from training.corpus.things import ANIMALS, JOBS, NATURE, SOUNDS, THINGS, Animal, Job, Thing
from training.corpus.wording import asked, joined, with_article

WHAT = (
    "What is {x}?", "What is {x}?", "What's {x}?", "Tell me about {x}.", "What does the word {word} mean?",
    "Explain what {x} is.", "Do you know what {x} is?", "Can you tell me what {x} is?", "What exactly is {x}?",
    "Could you explain what {x} is?",
)  # fmt: skip
COLOR = ("What color is {x}?", "Which color is {x}?", "What is the color of {x}?", "What color does {x} have?")
HOME = ("Where does {x} live?", "Where do you find {x}?", "Where can I see {x}?", "Where does {x} usually live?")
FOOD = ("What does {x} eat?", "What does {x} like to eat?", "What do I give {x} to eat?", "What is the food of {x}?")
LEGS = ("How many legs does {x} have?", "How many legs has {x}?", "What number of legs does {x} have?")
USE = ("What is {x} used for?", "What is {x} for?", "What do people use {x} for?", "What can I do with {x}?")
PLACE = ("Where do you find {x}?", "Where can I find {x}?", "Where is {x} usually?", "Where would I look for {x}?")
NO_CLIMBERS = ("horse", "cow", "sheep", "elephant", "giraffe", "zebra", "pig", "deer")
NUMBERS = {0: "no", 2: "two", 4: "four", 6: "six"}


def _subject(name: str, again: bool) -> tuple[str, str]:
    """The thing as the question names it and as the answer begins."""
    phrase = with_article(name)
    return ("it" if again else phrase), capitalized(phrase)


def _wording(random: Random, patterns: tuple[str, ...], named: str, again: bool) -> str:
    question = filled(random, patterns, x=named, word=f'"{named.split(" ", 1)[-1]}"')
    if again and random.random() < 0.5:
        return "And " + question[0].lower() + question[1:]
    return question if again else asked(random, question)


def _impossible(animal: Animal) -> list[str]:
    """What the animal surely cannot do."""
    abilities = ["fly"] if "fly" not in animal.abilities and animal.name != "chicken" else []
    if animal.legs == 0:
        abilities.append("run")
    if animal.name in NO_CLIMBERS or (animal.legs == 0 and animal.name != "snake"):
        abilities.append("climb")
    return abilities + (["jump"] if animal.name == "elephant" else [])


def _animal_turn(random: Random, animal: Animal, kind: str, again: bool) -> Turn:
    named, begins = _subject(animal.name, again)
    if kind == "what":
        return Turn(
            _wording(random, WHAT, named, again),
            f"{begins} is {animal.description}. It eats {animal.food}.",
        )
    if kind == "color":
        return Turn(_wording(random, COLOR, named, again), f"{begins} is {animal.color}.")
    if kind == "home":
        return Turn(_wording(random, HOME, named, again), f"{begins} lives {animal.home}.")
    if kind == "food":
        return Turn(_wording(random, FOOD, named, again), f"{begins} eats {animal.food}.")
    if kind == "legs":
        return Turn(_wording(random, LEGS, named, again), f"{begins} has {NUMBERS[animal.legs]} legs.")
    able = animal.abilities.split()
    ability = random.choice(able if random.random() < 0.5 else _impossible(animal) or able)
    question = _wording(random, (f"Can {{x}} {ability}?", f"Is {{x}} able to {ability}?"), named, again)
    if ability in able:
        return Turn(question, f"Yes, {begins[0].lower()}{begins[1:]} can {ability}.")
    return Turn(question, f"No, {begins[0].lower()}{begins[1:]} cannot {ability}.")


def animals(random: Random) -> list[Turn]:
    """An animal, with one to three questions about it."""
    animal = random.choice(ANIMALS)
    kinds = random.sample(("what", "color", "home", "food", "legs", "can"), random.choice((1, 1, 2, 3)))
    if "what" in kinds:
        kinds.sort(key=lambda kind: kind != "what")
    return [_animal_turn(random, animal, kind, again=index > 0) for index, kind in enumerate(kinds)]


def another_animal(random: Random) -> list[Turn]:
    """A question about one animal, and the same about another."""
    first, second = random.sample(ANIMALS, 2)
    kind = random.choice(("color", "home", "food", "legs"))
    follow = filled(
        random, ("And {x}?", "What about {x}?", "and {x}?", "And what about {x}?"), x=with_article(second.name)
    )
    return [
        _animal_turn(random, first, kind, again=False),
        Turn(follow, _animal_turn(random, second, kind, again=False).answer),
    ]


def sounds(random: Random) -> list[Turn]:
    """What an animal says."""
    name, sound = random.choice(SOUNDS)
    patterns = ("What does {x} say?", "What sound does {x} make?", "Which sound does {x} make?", "How does {x} sound?")
    return [
        Turn(
            asked(random, filled(random, patterns, x=with_article(name))),
            f'{capitalized(with_article(name))} says "{sound}".',
        )
    ]


def _thing_turn(random: Random, thing: Thing, kind: str, again: bool) -> Turn:
    named, begins = _subject(thing.name, again)
    if kind == "what":
        return Turn(
            _wording(random, WHAT, named, again), f"{begins} is {thing.description}. It is used for {thing.use}."
        )
    if kind == "color":
        color = f"{begins} is {thing.color}." if thing.color else f"{begins} can have many colors."
        return Turn(_wording(random, COLOR, named, again), color)
    if kind == "use":
        return Turn(_wording(random, USE, named, again), f"{begins} is used for {thing.use}.")
    return Turn(_wording(random, PLACE, named, again), f"You can find {with_article(thing.name)} {thing.place}.")


def things(random: Random) -> list[Turn]:
    """A thing, with one to three questions about it."""
    thing = random.choice(THINGS)
    with_color = thing.color or thing.kind not in ("place", "tool", "object")
    possible = ("what", "color", "use", "place") if with_color else ("what", "use", "place")
    kinds = random.sample(possible, random.choice((1, 1, 2, 3)))
    if "what" in kinds:
        kinds.sort(key=lambda kind: kind != "what")
    return [_thing_turn(random, thing, kind, again=index > 0) for index, kind in enumerate(kinds)]


def colors(random: Random) -> list[Turn]:
    """The color of a thing or an animal that has one."""
    with_color = [(thing.name, thing.color) for thing in THINGS if thing.color]
    with_color += [(animal.name, animal.color) for animal in ANIMALS]
    turns = []
    for index, (name, color) in enumerate(random.sample(with_color, random.choice((1, 2)))):
        patterns = COLOR if index == 0 else ("And {x}?", "What about {x}?", "And what color is {x}?")
        question = filled(random, patterns, x=with_article(name))
        turns.append(
            Turn(asked(random, question) if index == 0 else question, f"{capitalized(with_article(name))} is {color}.")
        )
    return turns


def kinds(random: Random) -> list[Turn]:
    """Whether one thing is of a kind."""
    if random.random() < 0.4:
        animal = random.choice(ANIMALS)
        name, kind = animal.name, animal.kind
    else:
        thing = random.choice(THINGS)
        name, kind = thing.name, thing.kind
    phrase, right = with_article(name), with_article(kind)
    if random.random() < 0.55:
        question = filled(random, ("Is {x} {kind}?", "Is {x} really {kind}?"), x=phrase, kind=right)
        return [Turn(asked(random, question), f"Yes, {phrase} is {right}.")]
    others = [other for other in ("animal", "fruit", "vegetable", "vehicle", "tool", "place", "toy") if other != kind]
    if kind in ("bird", "insect", "fish"):
        others.remove("animal")
    if kind == "vegetable":
        others.remove("fruit")
    if kind in ("object", "toy", "piece of furniture", "vehicle"):
        others = ["animal", "fruit", "vegetable", "place"]
    wrong = with_article(random.choice(others))
    return [Turn(asked(random, f"Is {phrase} {wrong}?"), f"No, {phrase} is not {wrong}. It is {right}.")]


def nature(random: Random) -> list[Turn]:
    """Something in nature."""
    phrase, definition, color = random.choice(NATURE)
    turns = [Turn(_wording(random, WHAT, phrase, again=False), definition)]
    if color and random.random() < 0.4:
        question = random.choice(("What color is it?", "And what color is it?", "Which color does it have?"))
        turns.append(Turn(question, f"{capitalized(phrase)} is {color}."))
    return turns


def jobs(random: Random) -> list[Turn]:
    """What people do in a job."""
    job: Job = random.choice(JOBS)
    phrase = with_article(job.name)
    does = ("What does {x} do?", "What is {x}?", "What is the job of {x}?", "What is the work of {x}?", "Who is {x}?")
    works = ("Where does {x} work?", "What is the place where {x} works?", "Where do you find {x} at work?")
    first = Turn(asked(random, filled(random, does, x=phrase)), f"{capitalized(phrase)} is a person who {job.does}.")
    second = f"{capitalized(phrase)} works {job.place}."
    kind = random.random()
    if kind < 0.4:
        return [first]
    if kind < 0.7:
        return [Turn(asked(random, filled(random, works, x=phrase)), second)]
    return [first, Turn(random.choice(("Where is that?", "And where?", "Where does this person work?")), second)]


def who_does(random: Random) -> list[Turn]:
    """The job that does some work."""
    job = random.choice(JOBS)
    return [Turn(asked(random, f"Who {job.does}?"), f"{capitalized(with_article(job.name))} {job.does}.")]


def sizes(random: Random) -> list[Turn]:
    """Which of two animals is bigger or smaller."""
    while True:
        first, second = random.sample(ANIMALS, 2)
        if abs(first.size - second.size) >= 2:
            break
    word = random.choice(("bigger", "bigger", "smaller"))
    big, small = (first, second) if first.size > second.size else (second, first)
    left, right = (big, small) if word == "bigger" else (small, big)
    patterns = ("Which is {w}, {a} or {b}?", "What is {w}: {a} or {b}?", "Which animal is {w}, {a} or {b}?")
    question = filled(random, patterns, w=word, a=with_article(first.name), b=with_article(second.name))
    answer = f"{capitalized(with_article(left.name))} is {word} than {with_article(right.name)}."
    return [Turn(asked(random, question), answer)]


def which_can(random: Random) -> list[Turn]:
    """Animals with an ability."""
    ability = random.choice(("fly", "swim", "climb", "jump"))
    able = [animal.name for animal in ANIMALS if ability in animal.abilities.split()]
    names = random.sample(able, 3)
    question = filled(
        random, ("Which animals can {a}?", "Name some animals that can {a}.", "What animals can {a}?"), a=ability
    )
    return [
        Turn(asked(random, question), capitalized(joined([with_article(name) for name in names])) + f" can {ability}.")
    ]


TOPICS: dict[Topic, float] = {
    animals: 6,
    another_animal: 2,
    sounds: 1,
    things: 6,
    colors: 1.5,
    kinds: 1.5,
    nature: 1.5,
    jobs: 1.5,
    who_does: 0.6,
    sizes: 1.5,
    which_can: 0.5,
}
