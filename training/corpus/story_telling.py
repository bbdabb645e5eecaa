"""Tells a story: chooses the plot and its parts, and fills the sentences."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from training.corpus.conversation import capitalized
from training.corpus.story_parts import FEMALE, HOMES, KINDS, NAMES, PEOPLE, PLACES, THINGS, TRAITS, with_article
from training.corpus.story_plots import BREAK, Plot
from training.corpus.story_plots_more import PLOTS

YOUNG = ("girl", "boy", "prince", "princess", "kitten", "puppy")
OPENINGS = (
    "Once upon a time, there was {a_hero} named {name}.|{He} lived {home}.",
    "Once upon a time, there was {a_hero} named {name}.|{He} lived {home}.",
    "Once upon a time, {a_hero} named {name} lived {home}.",
    "Long ago, {a_hero} named {name} lived {home}.",
    "There once was {a_hero} named {name} who lived {home}.",
)
CLOSINGS = (
    "The end.",
    "And they lived happily ever after.",
    "Everyone was happy.",
)
# A story has at most this many words, if so many tries are enough to shorten it.
LONGEST = 130
TRIES = 12
PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "his_own": "his", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "his_own": "hers", "himself": "herself"},
}


class Story(NamedTuple):
    """A story: its sentences (with paragraph breaks between), its plot and the words that fill it."""

    sentences: tuple[str, ...]
    plot: Plot
    words: dict[str, str]

    @property
    def text(self) -> str:
        """The whole story."""
        return joined(self.sentences)

    def says(self, pattern: str) -> str:
        """The pattern with the words of this story."""
        return capitalized(pattern.format(**self.words))


def joined(sentences: tuple[str, ...]) -> str:
    """The sentences as a text, with spaces or paragraph breaks between them."""
    return " ".join(sentences).replace(f" {BREAK} ", BREAK).strip()


def person(random: Random, kind: str, other_names: tuple[str, ...] = ()) -> tuple[str, str]:
    """A pronoun and a name for someone of this kind."""
    pronoun = PEOPLE.get(kind) or ("she" if kind in FEMALE else "") or random.choice(("he", "she"))
    return pronoun, random.choice([name for name in NAMES[pronoun] if name not in other_names])


def titled(words: str) -> str:
    """The words with capitals, as in a title."""
    return " ".join(word if word == "the" else capitalized(word) for word in words.split())


def chosen_words(random: Random, plot: Plot, kind: str) -> dict[str, str]:
    """Hero, friend, thing and places for the plot."""
    kind = kind or random.choice(KINDS)
    friend_kind = random.choice([other for other in KINDS if other != kind])
    pronoun, name = person(random, kind)
    friend_pronoun, friend = person(random, friend_kind, (name,))
    object_name = random.choice([name for name, thing in THINGS.items() if plot.role in thing.roles.split()])
    thing = THINGS[object_name]
    look = random.choice(thing.looks)
    traits = [t for t in TRAITS if t not in plot.not_traits and t != kind and not (t == "old" and kind in YOUNG)]
    trait = random.choice(traits) if random.random() < 0.4 else ""
    plain_object = random.random() < 0.4
    shown = object_name if plain_object or object_name == "moon" else f"{look} {object_name}"
    words = {
        "kind": kind,
        "name": name,
        "friend": friend,
        "friend_kind": friend_kind,
        "object": object_name,
        "look": "" if plain_object else look,
        "trait": trait,
        "use": thing.use,
        "use_title": titled(thing.use),
        "a_hero": with_article(f"{trait} {kind}".strip()),
        "a_kind": with_article(kind),
        "a_friend": with_article(friend_kind),
        "an_object": with_article(shown),
        "an_object_alone": with_article(object_name),
        "A_friend": capitalized(with_article(friend_kind)),
        "Object": titled(object_name),
        "Kind": titled(kind),
        "a_Object": with_article(object_name).replace(object_name, titled(object_name)),
        "home": random.choice(HOMES),
        "place": random.choice(PLACES),
        "on": "on" if object_name in ("bicycle", "sled") else "in",
    }
    for key, word in PRONOUNS[pronoun].items():
        words[key] = word
        words[capitalized(key)] = capitalized(word)
    for key, word in PRONOUNS[friend_pronoun].items():
        words[f"f{key}"] = word
    return words


def told(random: Random, kind: str = "") -> Story:
    """A new story, about a hero of the given kind if there is one."""
    plot = random.choice(PLOTS)
    words = chosen_words(random, plot, kind)
    for _ in range(TRIES):
        story = Story(sentences(random, plot, words), plot, words)
        if len(story.text.split()) <= LONGEST:
            break
    return story


def sentences(random: Random, plot: Plot, words: dict[str, str]) -> tuple[str, ...]:
    """The sentences of a story with this plot and these words."""
    patterns = random.choice(OPENINGS).split("|")
    trait = words["trait"]
    if trait:
        patterns.append(TRAITS[trait][0])
    if random.random() < 0.3:
        patterns.append(BREAK)
    for choices in plot.sentences:
        patterns.append(choices if isinstance(choices, str) else random.choice(choices))
    patterns.append(TRAITS[trait][1] if trait else random.choice(CLOSINGS))
    return tuple(pattern.format(**words).replace("  ", " ") for pattern in patterns if pattern)
