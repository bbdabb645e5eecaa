"""Topics about numbers: sums, products, counting, and small word problems."""

from __future__ import annotations

from random import Random

from training.corpus.conversation import Topic, Turn, capitalized, filled
from training.corpus.wording import asked, requested

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

PLUS = (
    "What is {a} plus {b}?", "What is {a} plus {b}?", "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?",
    "{a}+{b}=?", "{a} plus {b}", "How much is {a} plus {b}?", "How much is {a} + {b}?", "Add {a} and {b}.",
    "What do you get when you add {a} and {b}?", "What is the sum of {a} and {b}?", "Calculate {a} + {b}.",
    "what's {a} + {b}", "What's {a} plus {b}?", "What does {a} plus {b} make?", "What is {a} and {b} together?",
)  # fmt: skip
MINUS = (
    "What is {a} minus {b}?", "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a}-{b}=?", "How much is {a} minus {b}?",
    "{a} minus {b}", "Take {b} away from {a}.", "Subtract {b} from {a}.", "Calculate {a} - {b}.", "what's {a} - {b}",
)  # fmt: skip
TIMES = (
    "What is {a} times {b}?", "What is {a} * {b}?", "{a} * {b}", "{a} x {b}", "{a}*{b}=?", "How much is {a} times {b}?",
    "{a} times {b}", "Multiply {a} by {b}.", "What is {a} x {b}?", "Calculate {a} * {b}.",
)  # fmt: skip
SURE = ("Are you sure?", "are you sure", "Is that right?", "Really?", "Is that correct?", "Are you sure about that?")
PLUS_MORE = ("And plus {b}?", "Plus {b}?", "Now add {b}.", "And {b} more?", "Add {b} to that.", "and plus {b}")
MINUS_MORE = ("And minus {b}?", "Minus {b}?", "Now take away {b}.", "Now subtract {b}.", "and minus {b}")

NAMES = (
    "Tom", "Anna", "Ben", "Lucy", "Sam", "Emma", "Max", "Mia", "Leo", "Lily", "Jack", "Nina", "Paul", "Sara", "David",
    "Ella", "Peter", "Julia", "Noah", "Rosa",
)  # fmt: skip
OBJECTS = (
    ("apple", "apples"), ("book", "books"), ("ball", "balls"), ("pencil", "pencils"), ("cookie", "cookies"),
    ("egg", "eggs"), ("flower", "flowers"), ("toy", "toys"), ("orange", "oranges"), ("stone", "stones"),
    ("coin", "coins"), ("shell", "shells"), ("car", "cars"), ("cake", "cakes"), ("banana", "bananas"),
)  # fmt: skip


def in_words(number: int) -> str:
    """The number from 0 to 99 in words."""
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")


def _question(random: Random, patterns: tuple[str, ...], a: int, b: int) -> str:
    pattern = random.choice(patterns)
    if random.random() < 0.2 and not any(sign in pattern for sign in "+-*=") and " x " not in pattern:
        question = pattern.format(a=in_words(a), b=in_words(b))
    else:
        question = pattern.format(a=a, b=b)
    return asked(random, capitalized(question)) if pattern[0].isupper() else question


def _sum(a: int, b: int) -> str:
    return f"{a} plus {b} is {a + b}."


def _difference(a: int, b: int) -> str:
    return f"{a} minus {b} is {a - b}."


def _small(random: Random) -> int:
    return random.randint(0, 10) if random.random() < 0.7 else random.randint(0, 20)


def addition(random: Random) -> list[Turn]:
    """One sum, or several."""
    turns = []
    for _ in range(random.choice((1, 1, 2, 3))):
        a, b = _small(random), _small(random)
        turns.append(Turn(_question(random, PLUS, a, b), _sum(a, b)))
    return turns


def addition_goes_on(random: Random) -> list[Turn]:
    """A sum and questions that go on with its result."""
    a, b = _small(random), random.randint(0, 10)
    turns = [Turn(_question(random, PLUS, a, b), _sum(a, b))]
    answer, result = _sum(a, b), a + b
    for _ in range(random.choice((1, 1, 2))):
        kind = random.random()
        b = random.randint(1, 9)
        if kind < 0.35:
            turns.append(Turn(random.choice(SURE), f"Yes, {answer.removeprefix('Yes, ')}"))
            continue
        if kind < 0.75 or result < b:
            question, answer, result = filled(random, PLUS_MORE, b=str(b)), _sum(result, b), result + b
        else:
            question, answer, result = filled(random, MINUS_MORE, b=str(b)), _difference(result, b), result - b
        turns.append(Turn(question, answer))
    return turns


def subtraction(random: Random) -> list[Turn]:
    """One difference, perhaps with a check."""
    b, a = sorted((_small(random), _small(random)))
    turns = [Turn(_question(random, MINUS, a, b), _difference(a, b))]
    if random.random() < 0.2:
        turns.append(Turn(random.choice(SURE), f"Yes, {_difference(a, b)}"))
    return turns


def multiplication(random: Random) -> list[Turn]:
    """One product out of the small table."""
    a, b = random.randint(0, 10), random.randint(0, 10)
    turns = [Turn(_question(random, TIMES, a, b), f"{a} times {b} is {a * b}.")]
    if random.random() < 0.2:
        turns.append(Turn(random.choice(SURE), f"Yes, {a} times {b} is {a * b}."))
    return turns


def neighbors(random: Random) -> list[Turn]:
    """The number after or before another."""
    number = random.randint(1, 30)
    after = ("What number comes after {n}?", "Which number comes after {n}?", "What comes after {n}?")
    before = ("What number comes before {n}?", "Which number comes before {n}?", "What is the number before {n}?")
    if random.random() < 0.6:
        turns = [Turn(asked(random, filled(random, after, n=str(number))), f"{number + 1} comes after {number}.")]
        if random.random() < 0.3:
            turns.append(Turn("And after that?", f"{number + 2} comes after {number + 1}."))
        return turns
    return [Turn(asked(random, filled(random, before, n=str(number))), f"{number - 1} comes before {number}.")]


def even_or_odd(random: Random) -> list[Turn]:
    """Whether a number is even or odd."""
    number = random.randint(0, 30)
    patterns = ("Is {n} even or odd?", "Is {n} an even number or an odd number?", "Is {n} odd or even?")
    answer = f"{number} is an {'odd' if number % 2 else 'even'} number."
    return [Turn(asked(random, filled(random, patterns, n=str(number))), answer)]


def bigger(random: Random) -> list[Turn]:
    """Which of two numbers is bigger or smaller."""
    a, b = random.sample(range(31), 2)
    word = random.choice(("bigger", "bigger", "smaller"))
    patterns = ("Which is {word}, {a} or {b}?", "Which number is {word}, {a} or {b}?", "What is {word}: {a} or {b}?")
    first, second = (max(a, b), min(a, b)) if word == "bigger" else (min(a, b), max(a, b))
    question = filled(random, patterns, word=word, a=str(a), b=str(b))
    return [Turn(asked(random, question), f"{first} is {word} than {second}.")]


def counting(random: Random) -> list[Turn]:
    """Counting up or down."""
    patterns: tuple[str, ...]
    if random.random() < 0.35:
        low, high = 1, random.choice((3, 5, 10, 10, 10, 20))
        patterns = ("Count to {high}.", "Count up to {high}.", "Count from {low} to {high}.")
    else:
        low = random.randint(0, 15)
        high = low + random.randint(2, 10)
        patterns = ("Count from {low} to {high}.", "Count up from {low} to {high}.")
    numbers = list(range(low, high + 1))
    if random.random() < 0.25:
        numbers.reverse()
        patterns = ("Count backwards from {high} to {low}.", "Count down from {high} to {low}.")
    question = filled(random, patterns, low=str(low), high=str(high))
    return [Turn(requested(random, question), ", ".join(map(str, numbers)) + ".")]


def word_problem(random: Random) -> list[Turn]:
    """A tiny story with a sum or a difference in it."""
    name = random.choice(NAMES)
    one, many = random.choice(OBJECTS)

    def counted(number: int) -> str:
        return f"{number} {one if number == 1 else many}"

    if random.random() < 0.6:
        a, b = random.randint(1, 10), random.randint(1, 10)
        beginnings = (
            f"{name} has {counted(a)} and gets {b} more.",
            f"{name} has {counted(a)}. A friend gives {name} {b} more.",
            f"{name} has {counted(a)} and finds {b} more.",
        )
        result, reason = a + b, f"{a} plus {b} is {a + b}"
    else:
        a = random.randint(2, 12)
        b = random.randint(1, a)
        beginnings = (
            f"{name} has {counted(a)} and gives away {b}.",
            f"{name} has {counted(a)} and loses {b}.",
            f"{name} has {counted(a)}. {name} gives {b} to a friend.",
        )
        result, reason = a - b, f"{a} minus {b} is {a - b}"
    ending = random.choice((f"How many {many} does {name} have now?", f"How many {many} does {name} have?"))
    return [Turn(f"{random.choice(beginnings)} {ending}", f"{name} has {counted(result)} now, because {reason}.")]


def number_words(random: Random) -> list[Turn]:
    """A number in words, or in digits."""
    number = random.randint(0, 99)
    if random.random() < 0.5:
        return [
            Turn(asked(random, f"How do you write {number} in words?"), f'{number} in words is "{in_words(number)}".')
        ]
    return [Turn(asked(random, f"Write {in_words(number)} in digits."), f'"{in_words(number)}" in digits is {number}.')]


def doubles(random: Random) -> list[Turn]:
    """Twice a number, or half of it."""
    number = random.randint(1, 15)
    if random.random() < 0.6:
        patterns = ("What is double {n}?", "What is twice {n}?", "Double {n}.")
        answer = f"2 times {number} is {2 * number}."
        return [Turn(asked(random, filled(random, patterns, n=str(number))), answer)]
    patterns = ("What is half of {n}?", "How much is half of {n}?", "Half of {n}?")
    answer = f"Half of {2 * number} is {number}."
    return [Turn(asked(random, filled(random, patterns, n=str(2 * number))), answer)]


TOPICS: dict[Topic, float] = {
    addition: 10,
    addition_goes_on: 4,
    subtraction: 3,
    multiplication: 2,
    neighbors: 1,
    even_or_odd: 0.7,
    bigger: 0.8,
    counting: 1.5,
    word_problem: 2,
    number_words: 0.5,
    doubles: 0.5,
}
