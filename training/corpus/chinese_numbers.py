"""Numbers in Chinese: small sums, counting, comparing, and word problems."""

from __future__ import annotations

from random import Random

from training.corpus.chinese import asked, numeral, person
from training.corpus.conversation import Topic, Turn

RESULT_QUESTIONS = (
    "{sum} 等于多少？", "{sum} 等于几？", "{sum} 是多少？", "请问 {sum} 等于多少？", "{sum} 得多少？", "算一下 {sum}。",
)  # fmt: skip
SIGNS = {"加": "+", "减": "-", "乘": "×"}
COUNTED = {
    "苹果": "个",
    "球": "个",
    "花": "朵",
    "书": "本",
    "笔": "支",
    "蛋糕": "个",
    "鸟": "只",
    "鱼": "条",
    "杯子": "个",
}
ADDED_PROBLEMS = (
    "{name}有 {left} {measure}{thing}，妈妈又给了 {right} {measure}。{name}现在有几{measure}{thing}？",
    "{name}有 {left} {measure}{thing}，又买了 {right} {measure}，现在一共有几{measure}{thing}？",
    "{name}有 {left} {measure}{thing}，{other}有 {right} {measure}{thing}，一共有几{measure}？",
)
TAKEN_PROBLEMS = (
    "{name}有 {left} {measure}{thing}，给了{other} {right} {measure}，还有几{measure}{thing}？",
    "{name}有 {left} {measure}{thing}，送给{other} {right} {measure}。{name}还有几{measure}{thing}？",
)


def result_turn(random: Random, left: int, word: str, right: int, result: int) -> Turn:
    """A question for the result of a calculation, in digits, in signs or in Chinese numerals."""
    answer = f"{left} {word} {right} 等于 {result}。"
    chance = random.random()
    if chance < 0.25:
        sign = SIGNS[word]
        patterns: tuple[str, ...] = (
            "{left} {sign} {right} = ？",
            "{left}{sign}{right}=？",
            "{left} {sign} {right} 等于多少？",
            "{left}{sign}{right}",
        )
        return Turn(asked(random, patterns, left=str(left), sign=sign, right=str(right)), answer)
    if chance < 0.6:
        patterns = tuple(pattern.replace(" ", "") for pattern in RESULT_QUESTIONS)
        return Turn(asked(random, patterns, sum=f"{numeral(left)}{word}{numeral(right)}"), answer)
    return Turn(asked(random, RESULT_QUESTIONS, sum=f"{left} {word} {right}"), answer)


def addition(random: Random) -> list[Turn]:
    """A sum up to 20, or two."""
    turns = []
    for _ in range(random.choice((1, 1, 2))):
        total = random.randint(0, 20)
        left = random.randint(0, total)
        turns.append(result_turn(random, left, "加", total - left, total))
    return turns


def subtraction(random: Random) -> list[Turn]:
    """A difference from 20 or less, or two."""
    turns = []
    for _ in range(random.choice((1, 1, 2))):
        left = random.randint(0, 20)
        right = random.randint(0, left)
        turns.append(result_turn(random, left, "减", right, left - right))
    return turns


def multiplication(random: Random) -> list[Turn]:
    """A product from the multiplication table."""
    left, right = random.randint(1, 9), random.randint(1, 9)
    return [result_turn(random, left, "乘", right, left * right)]


def counting(random: Random) -> list[Turn]:
    """Counting from a number to another, up or down."""
    first = random.choice((1, 1, 1, random.randint(2, 10)))
    last = first + random.randint(2, 9)
    if random.random() < 0.25:
        first, last = last, first
    step = 1 if first < last else -1
    patterns = ("从 {first} 数到 {last}。", "请从 {first} 数到 {last}。", "你能从 {first} 数到 {last} 吗？")
    question = asked(random, patterns, first=str(first), last=str(last))
    return [Turn(question, "，".join(str(number) for number in range(first, last + step, step)) + "。")]


def neighbor(random: Random) -> list[Turn]:
    """The number after or before another."""
    number = random.randint(1, 30)
    after = random.random() < 0.6
    side = "后面" if after else "前面"
    patterns = (
        "{number} {side}是几？",
        "{number} {side}的数是几？",
        "{number} {side}是哪个数？",
        "哪个数在 {number} {side}？",
    )
    question = asked(random, patterns, number=str(number), side=side)
    return [Turn(question, f"{number} {side}是 {number + 1 if after else number - 1}。")]


def comparison(random: Random) -> list[Turn]:
    """Which of two numbers is larger or smaller."""
    left, right = random.sample(range(21), 2)
    word = random.choice("大小")
    patterns = (
        "{left} 和 {right} 哪个{word}？",
        "哪个{word}，{left} 还是 {right}？",
        "{left} 和 {right} 哪个更{word}？",
    )
    question = asked(random, patterns, left=str(left), right=str(right), word=word)
    first, second = (max, min) if word == "大" else (min, max)
    return [Turn(question, f"{first(left, right)} 比 {second(left, right)} {word}。")]


def parity(random: Random) -> list[Turn]:
    """Whether a number is even or odd."""
    number = random.randint(1, 20)
    patterns = ("{number} 是单数还是双数？", "{number} 是双数还是单数？", "请问 {number} 是单数还是双数？")
    return [Turn(asked(random, patterns, number=str(number)), f"{number} 是{'单' if number % 2 else '双'}数。")]


def word_problem(random: Random) -> list[Turn]:
    """A small problem in words, with the calculation in its answer."""
    name, other = person(random), person(random)
    while other == name:
        other = person(random)
    thing = random.choice(list(COUNTED))
    measure = COUNTED[thing]
    words = {"name": name, "other": other, "thing": thing, "measure": measure}
    if random.random() < 0.5:
        left, right = random.randint(1, 10), random.randint(1, 10)
        question = asked(random, ADDED_PROBLEMS, left=str(left), right=str(right), **words)
        sign, result, verb = "加", left + right, "一共有"
    else:
        left = random.randint(2, 12)
        right = random.randint(1, left - 1)
        question = asked(random, TAKEN_PROBLEMS, left=str(left), right=str(right), **words)
        sign, result, verb = "减", left - right, "还有"
    return [Turn(question, f"{left} {sign} {right} 等于 {result}，所以{verb} {result} {measure}{thing}。")]


TOPICS: dict[Topic, float] = {
    addition: 3,
    subtraction: 2.5,
    multiplication: 2,
    counting: 1,
    neighbor: 1,
    comparison: 1,
    parity: 0.5,
    word_problem: 1.5,
}
