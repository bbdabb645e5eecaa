"""Tables for the stories: heroes, names, things, places and traits."""

from __future__ import annotations

from typing import NamedTuple

ANIMALS = (
    "cat", "dog", "fox", "rabbit", "mouse", "owl", "bear", "duck", "frog", "horse", "sheep", "goat", "pig", "cow",
    "hen", "goose", "squirrel", "hedgehog", "turtle", "penguin", "elephant", "lion", "tiger", "monkey", "panda", "wolf",
    "deer", "bird", "kitten", "puppy", "donkey", "beaver", "snail",
)  # fmt: skip
# The animals which have names of girls only.
FEMALE = ("cow", "hen", "goose")
PEOPLE = {
    "girl": "she", "boy": "he", "king": "he", "queen": "she", "prince": "he", "princess": "she", "farmer": "",
    "baker": "", "teacher": "", "sailor": "", "robot": "", "dragon": "", "giant": "",
}  # fmt: skip
KINDS = ANIMALS + tuple(PEOPLE)

NAMES = {
    "she": ("Lily", "Mimi", "Anna", "Mia", "Rosa", "Ella", "Lucy", "Nora", "Daisy", "Emma", "Luna", "Molly"),
    "he": ("Tom", "Max", "Ben", "Leo", "Sam", "Oscar", "Tim", "Jack", "Hugo", "Felix", "Toby", "Charlie"),
}

# What a trait says of the hero at the beginning, and at the end.
TRAITS = {
    "brave": ("{He} was not afraid to try new things.", "Everyone said that {name} was a very brave {kind}."),
    "small": ("{He} was the smallest in the whole place, but {his} heart was big.",
              "{name} was small, but {he} had done something big."),
    "little": ("{He} was little, but {he} had a big heart.", "{name} was little, but {he} had done something big."),
    "sad": ("{He} was often sad, because {he} had no friends.",
            "From that day on, {name} had a friend and was not sad anymore."),
    "lazy": ("{He} liked to sleep all day.", "From that day on, {name} was not so lazy anymore."),
    "curious": ("{He} wanted to know everything about the world.", "{name} was still curious about everything."),
    "kind": ("{He} was friendly to everyone.", "Everyone was glad to know such a kind {kind}."),
    "shy": ("{He} did not like to talk to strangers.", "From that day on, {name} was not so shy anymore."),
    "clever": ("{He} always had good ideas.", "Everyone said that {name} was a very clever {kind}."),
    "lonely": ("{He} had no one to play with.", "From that day on, {name} was not lonely anymore."),
    "happy": ("{He} sang a song every morning.", "{name} was the happiest {kind} in the whole world."),
    "old": ("{He} had seen many things in {his} life.", "{name} was old, but {he} felt young again."),
}  # fmt: skip


class Thing(NamedTuple):
    """Something a story can be about: the roles it can play, and how it may look."""

    roles: str
    looks: tuple[str, ...]
    use: str = ""


COLORS = ("red", "blue", "yellow", "green", "white")
SIZES = ("small", "big", "old")
WIDE = ("big", "quiet", "beautiful")

THINGS = {
    "kite": Thing("carry fix make learn", COLORS, "fly the kite"),
    "bell": Thing("carry sound", ("little", "golden", "old"), "ring the bell"),
    "drum": Thing("carry fix make sound learn", COLORS, "play the drum"),
    "flute": Thing("carry sound learn", ("little", "old"), "play the flute"),
    "guitar": Thing("fix learn", ("old", "red", "brown"), "play the guitar"),
    "trumpet": Thing("carry sound learn", ("golden", "old"), "play the trumpet"),
    "whistle": Thing("carry sound", ("little", "red"), "blow the whistle"),
    "lamp": Thing("carry fix light", COLORS),
    "lantern": Thing("carry fix light", ("small", "old", "red")),
    "candle": Thing("light make", ("white", "big", "yellow")),
    "hat": Thing("carry make warm", COLORS),
    "scarf": Thing("carry make warm", COLORS),
    "blanket": Thing("carry make warm", COLORS),
    "map": Thing("carry", ("old", "big")),
    "key": Thing("carry", ("little", "golden", "old")),
    "coin": Thing("carry", ("golden", "old")),
    "ring": Thing("carry", ("golden", "little")),
    "ladder": Thing("fix", ("long", "old")),
    "book": Thing("carry warm", COLORS),
    "umbrella": Thing("carry fix", COLORS),
    "ball": Thing("carry", COLORS),
    "basket": Thing("carry fix make", ("little", "big", "brown")),
    "box": Thing("carry", COLORS),
    "cup": Thing("carry", COLORS),
    "clock": Thing("fix", SIZES),
    "doll": Thing("carry fix make", ("small", "pretty")),
    "chair": Thing("fix", SIZES),
    "mirror": Thing("carry", ("little", "old")),
    "feather": Thing("carry", ("white", "blue")),
    "shell": Thing("carry", ("white", "pink")),
    "flower": Thing("warm", COLORS),
    "boat": Thing("fix ride learn", COLORS, "sail the boat"),
    "bicycle": Thing("fix ride learn", COLORS, "ride the bicycle"),
    "wagon": Thing("fix ride", ("red", "blue", "old")),
    "sled": Thing("fix ride learn make", ("red", "blue", "old"), "steer the sled"),
    "apple": Thing("food warm", ("red", "green", "big")),
    "pear": Thing("food warm", ("yellow", "green", "big")),
    "cake": Thing("food make warm", ("big", "sweet")),
    "pie": Thing("food make warm", ("big", "sweet")),
    "sandwich": Thing("food", ("big", "small")),
    "cookie": Thing("food warm", ("big", "sweet", "round")),
    "star": Thing("sky", ("bright", "little")),
    "cloud": Thing("sky", ("white", "little", "big")),
    "rainbow": Thing("sky", ("beautiful", "big")),
    "moon": Thing("sky", ("bright", "round")),
    "mountain": Thing("wild", ("high", "big")),
    "forest": Thing("wild", ("dark", "big", "old")),
    "cave": Thing("wild", ("dark", "deep")),
    "bridge": Thing("wild", ("long", "old")),
    "castle": Thing("wild", ("old", "big", "dark")),
    "river": Thing("wild nature", ("wide", "long")),
    "lake": Thing("wild nature", WIDE),
    "garden": Thing("nature", WIDE),
    "tree": Thing("nature", ("old", "big", "tall")),
    "park": Thing("nature", WIDE),
    "field": Thing("nature", WIDE),
}

HOMES = (
    "in a small village",
    "in a little town",
    "at the edge of a forest",
    "near a green hill",
    "in a house by the sea",
    "on a small farm",
    "in a small house with a red door",
)
PLACES = (
    "in the meadow", "behind the old mill", "under a big oak tree", "near the well", "on the green hill", "by the pond",
)  # fmt: skip


def with_article(words: str) -> str:
    """The words with "a" or "an" before them; the moon has "the"."""
    if words.split()[-1] == "moon":
        return "the moon"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
