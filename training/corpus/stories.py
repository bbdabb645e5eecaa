"""Stories on request, questions about them, and their continuation."""

from __future__ import annotations

from random import Random

from training.corpus.conversation import Topic, Turn
from training.corpus.story_parts import ANIMALS, COLORS, KINDS, with_article
from training.corpus.story_plots import BREAK, BROKEN, FEAR, FOG_SOUND, FOUND, LOST, STORM_LIGHT
from training.corpus.story_plots_more import LEARNING, NATURE, RACE, STRANGER
from training.corpus.story_poems import poem
from training.corpus.story_reading import questions_about_given_story
from training.corpus.story_telling import Story, joined, told

REQUESTS = (
    "Tell me a story about {about}.",
    "Tell me a story about {about}",
    "tell me a story about {about}",
    "Please tell me a story about {about}.",
    "Can you tell me a story about {about}?",
    "Could you tell me a story about {about}?",
    "Write a short story about {about}.",
    "Write a story about {about}.",
    "write a story about {about}",
    "Tell me a bedtime story about {about}.",
    "story about {about}",
    "A story about {about}, please.",
    "I would like a story about {about}.",
    "Can you write a story about {about}?",
    "Please write a short story about {about}.",
    "Tell us a little story about {about}.",
    "Make up a story about {about}.",
    "I want to hear a story about {about}.",
    "Tell my daughter a story about {about}.",
    "Do you know a story about {about}?",
    "Tell me a short story about {about}.",
)
OPEN_REQUESTS = (
    "Tell me a story.",
    "tell me a story",
    "please tell me a story",
    "Please tell me a story.",
    "Can you tell me a story?",
    "Write a short story.",
    "Tell me a bedtime story.",
    "Do you know a story?",
    "I want to hear a story.",
    "Could you tell me a nice story?",
    "a story please",
    "Make up a story for me.",
    "can you write a story",
    "Tell me a short story for children.",
    "I can't sleep. Tell me a story.",
    "I am bored. Can you tell me a story?",
)
ANOTHER = (
    "Tell me another one.",
    "Tell me another story.",
    "Another one, please.",
    "another one",
    "Can you tell me another one?",
    "One more story, please.",
    "Please tell me one more.",
    "tell me another story",
)
ANOTHER_ABOUT = (
    "Now tell me a story about {about}.", "And now one about {about}.", "Can you tell me one about {about}?",
    "Tell me another story, but about {about}.", "now a story about {about}",
)  # fmt: skip
SHORTER = (
    "Make it shorter.",
    "Can you make it shorter?",
    "Tell it in two sentences.",
    "Please make the story shorter.",
    "Can you sum it up?",
    "Give me a short summary.",
    "make it short",
    "Summarize the story.",
    "What happened, in short?",
)
TITLE = (
    "Give the story a title.", "What is a good title for the story?", "Can you give it a title?", "give it a title",
    "What would you call this story?", "Please find a title for the story.",
)  # fmt: skip
ENDING = (
    "How does the story end?",
    "How did it end?",
    "What happens at the end?",
    "How does it end?",
    "what happens in the end?",
)
LESSON = (
    "What did {name} learn?",
    "What did the {kind} learn?",
    "What can we learn from the story?",
    "What is the lesson of the story?",
    "what does the story teach us?",
)
HAPPY = (
    "Is the {kind} happy at the end?",
    "Is {name} happy at the end?",
    "Was {name} happy in the end?",
    "Does it have a happy end?",
)
NAME = (
    "What was the {kind}'s name?",
    "What is the name of the {kind}?",
    "What is the {kind} called?",
    "what was the {kind}'s name",
    "What is the {kind}'s name?",
)
HOME = ("Where did {name} live?", "Where did the {kind} live?", "where does {name} live?", "Where is {name}'s home?")
PLACE = ("Where did it happen?", "Where does the story take place?", "where did this happen?")
FRIEND = ("Who is {friend}?", "Who was {friend}?", "And who is {friend}?", "Tell me who {friend} is.")
ABOUT = ("What is the story about?", "What was the story about?", "Who is the story about?")
LIKED = ("Did you like the story?", "Do you like this story?", "Did you like it?")
# In the first, the friend helps the hero; in the second, the hero helps the friend.
HELPED = (LOST, BROKEN, FEAR, LEARNING, NATURE)
HELPING = (FOUND, FOG_SOUND, STORM_LIGHT, RACE, STRANGER)


def request(random: Random, story: Story, patterns: tuple[str, ...] = REQUESTS) -> str:
    """A wish for this very story, which tells more or less of it."""
    words = story.words
    hero = words["a_hero"] if random.random() < 0.75 else words["a_kind"]
    if random.random() < 0.25:
        hero += f" named {words['name']}"
    second = words["an_object"] if random.random() < 0.5 else words["an_object_alone"]
    form = random.random()
    if form < 0.42:
        about = f"{hero} and {second}"
    elif form < 0.72:
        about = hero
    elif form < 0.86:
        about = f"{hero} and {words['a_friend']}"
    else:
        about = second
    return random.choice(patterns).format(about=about)


def facts(story: Story) -> list[tuple[tuple[str, ...], str]]:
    """Questions about the story, in several wordings each, and the answers."""
    plot = story.plot
    known: list[tuple[tuple[str, ...], str]] = [
        (NAME, "The {kind}'s name was {name}."),
        (HOME, "{name} lived {home}."),
        (PLACE, plot.happened),
        ((plot.reason_question, plot.reason_question.replace("Why", "And why")), plot.reason),
        (ENDING, plot.ending),
        (LESSON, plot.lesson),
        (HAPPY, "Yes, {name} is happy at the end."),
        (FRIEND, "{friend} is the {friend_kind} in the story."),
        (ABOUT, "The story is about {a_kind} named {name} and {an_object_alone}."),
        (TITLE, f'A good title would be "{plot.title}".'),
        (SHORTER, plot.summary),
        (LIKED, "Yes, I like the story of {name} and {friend} because it has a happy end."),
    ]
    known += [((question,), answer) for question, answer in plot.questions for _ in range(2)]
    if story.words["kind"] in ANIMALS:
        known.append((("What kind of animal is {name}?", "What animal is {name}?"), "{name} is {a_kind}."))
    if story.words["look"] in COLORS:
        known.append(
            (("What color was the {object}?", "Which color did the {object} have?"), "The {object} was {look}.")
        )
    if plot in HELPED:
        known += [(("Who helped {name}?", "Who helped the {kind}?"), "{friend} the {friend_kind} helped {name}.")] * 2
    if plot in HELPING:
        known += [
            (("Who did {name} help?", "Who did the {kind} help?"), "{name} helped {friend} the {friend_kind}.")
        ] * 2
    return known


def asked(random: Random, story: Story, count: int) -> list[Turn]:
    """Some different questions about the story, with answers."""
    turns: list[Turn] = []
    for questions, answer in random.sample(facts(story), count):
        reply = story.says(answer)
        if all(reply != turn.answer for turn in turns):
            turns.append(Turn(random.choice(questions).format(**story.words), reply))
    return turns


def story(random: Random) -> list[Turn]:
    """A story on request, and mostly some questions about it."""
    first = told(random)
    wish = random.choice(OPEN_REQUESTS) if random.random() < 0.15 else request(random, first)
    turns = [Turn(wish, first.text)]
    if random.random() < 0.75:
        turns += asked(random, first, random.randint(1, 3))
    if random.random() < 0.15:
        if random.random() < 0.5:
            second = told(random, first.words["kind"])
            turns.append(Turn(random.choice(ANOTHER), second.text))
        else:
            second = told(random)
            turns.append(Turn(request(random, second, ANOTHER_ABOUT), second.text))
        turns += asked(random, second, random.randint(0, 2))
    return turns


def continue_story(random: Random) -> list[Turn]:
    """The user begins a story, and the answer goes on with it."""
    whole = told(random)
    sentences = [sentence for sentence in whole.sentences if sentence != BREAK]
    count = random.randint(1, 4)
    beginning = " ".join(sentences[:count])
    pattern = random.choice(
        (
            "Continue: {}",
            "Continue the story: {}",
            "Go on with this story: {}",
            "Finish this story: {}",
            "continue: {}",
            "Please continue this story: {}",
            "{} What happens next?",
            "How does this story go on? {}",
            "{} Tell me how it goes on.",
        )
    )
    rest, seen = list(whole.sentences), 0
    while seen < count:
        seen += rest.pop(0) != BREAK
    turns = [Turn(pattern.format(beginning), joined(tuple(rest)))]
    if random.random() < 0.3:
        turns += asked(random, whole, 1)
    return turns


def plain_stories(random: Random) -> str:
    """The bare text of a story."""
    return told(random).text


def story_hero(random: Random) -> list[Turn]:
    """A wish for a story without a hero, a question back, and then the story."""
    kind = random.choice(KINDS)
    wish = with_article(kind)
    question = random.choice(
        (
            "Can we make a story together?",
            "I want a story, and I want to choose the hero.",
            "Let me choose the hero of a story.",
        )
    )
    answer = random.choice(
        (f"{wish}", f"About {wish}.", f"{wish}, please.", f"The hero is {wish}.", f"a story about {wish}")
    )
    tale = told(random, kind)
    return [Turn(question, "Yes, with pleasure. Who is the hero of the story?"), Turn(answer, tale.text)]


TOPICS: dict[Topic, float] = {
    story: 10,
    continue_story: 2,
    story_hero: 0.3,
    questions_about_given_story: 4,
    poem: 2,
}
