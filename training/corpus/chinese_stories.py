"""Short stories in Chinese, with questions about them."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from training.corpus.chinese import asked
from training.corpus.conversation import Topic, Turn, filled


class Hero(NamedTuple):
    """Who a story is about: the word in a question, the word in the story, its measure word and its pronoun."""

    word: str
    noun: str
    measure: str
    pronoun: str


class Story(NamedTuple):
    """A story and what can be asked about it."""

    text: str
    hero: Hero
    name: str
    thing: str
    helper: str
    place: str
    problem: str
    ending: str


HEROES = (
    Hero("猫", "小猫", "只", "它"),
    Hero("狗", "小狗", "只", "它"),
    Hero("兔子", "小兔子", "只", "它"),
    Hero("熊", "小熊", "只", "它"),
    Hero("鸟", "小鸟", "只", "它"),
    Hero("马", "小马", "匹", "它"),
    Hero("羊", "小羊", "只", "它"),
    Hero("猪", "小猪", "只", "它"),
    Hero("牛", "小牛", "头", "它"),
    Hero("鸭子", "小鸭子", "只", "它"),
    Hero("猴子", "小猴子", "只", "它"),
    Hero("大象", "小象", "头", "它"),
    Hero("老鼠", "小老鼠", "只", "它"),
    Hero("老虎", "小老虎", "只", "它"),
    Hero("狐狸", "小狐狸", "只", "它"),
    Hero("青蛙", "小青蛙", "只", "它"),
    Hero("龙", "小龙", "条", "它"),
    Hero("机器人", "小机器人", "个", "它"),
    Hero("女孩", "小女孩", "个", "她"),
    Hero("男孩", "小男孩", "个", "他"),
)
NAMES = (
    "米米", "豆豆", "乐乐", "花花", "点点", "多多", "安安", "毛毛", "小白", "球球",
    "天天", "果果", "可可", "东东", "圆圆", "月月", "明明", "红红", "路路", "开开",
)  # fmt: skip
PLACES = ("河边", "海边", "湖边", "山上", "山下", "森林里", "村子里", "花园里", "小镇上", "农场里")
# Each thing with its measure word.
THINGS = {
    "小船": "条", "红球": "个", "帽子": "顶", "书": "本", "花": "朵", "风筝": "个", "灯": "盏", "钥匙": "把",
    "雨伞": "把", "苹果": "个", "蛋糕": "个", "画": "张", "鼓": "面", "杯子": "个", "盒子": "个", "气球": "个",
    "石头": "块", "小车": "辆", "纸飞机": "架", "信": "封", "地图": "张", "椅子": "把", "毛衣": "件", "手表": "块",
    "笔": "支",
}  # fmt: skip
# What people call a thing in a question where that is another word.
ASKED_THINGS = {"小船": "船", "红球": "球", "小车": "车", "雨伞": "伞"}
REPAIRABLE = ("小船", "风筝", "灯", "雨伞", "鼓", "盒子", "小车", "椅子", "手表")
HANDMADE = ("小船", "帽子", "风筝", "灯", "蛋糕", "画", "盒子", "小车", "纸飞机", "椅子", "毛衣")
NOT_CARRIED = ("蛋糕", "苹果", "椅子", "花")
NOT_FOUND = ("蛋糕",)
# Those who would fetch a thing out of a tree without help.
CLIMBERS = ("小猫", "小鸟", "小猴子", "小龙", "小老虎", "小熊")
LIGHT = ("帽子", "风筝", "雨伞", "画", "气球", "纸飞机", "信", "地图")

# A plot is a beginning, a problem, some help and an end, each of one or two wordings.
Plot = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]
OPENING = "从前，有一{measure}{noun}，名字叫{name}，住在{place}。"
LOST: Plot = (
    ("{name}有一{count}{thing}，每天都带着它。", "{name}最喜欢的东西是一{count}{thing}。"),
    ("有一天，{thing}不见了，{name}找了很久也没找到，心里很难过。",),
    ("{helper}看见了，说：“别担心，我来帮你找。”它们一起找，走过小路，也走过草地。",),
    ("最后，它们在大树下面找到了{thing}，{name}高兴地笑了。", "最后，{thing}在床下面找到了，{name}高兴极了。"),
)
FOUND: Plot = (
    ("一天早上，{name}在路上看到一{count}{thing}。", "一天，{name}在大树下面看到一{count}{thing}。"),
    ("{name}想把{thing}还给它的主人，可是不知道主人是谁。",),
    ("{helper}走过来说：“我知道，这是老山羊的，我带你去。”它们一起走了很远的路。",),
    ("最后，老山羊拿到了{thing}，请它们吃了好吃的蛋糕。", "最后，老山羊拿到了{thing}，它们三个成了好朋友。"),
)
BROKEN: Plot = (
    ("{name}有一{count}{thing}，每天都用它。", "生日那天，妈妈送给{name}一{count}{thing}。"),
    ("有一天，{thing}坏了，{name}不会修，难过得哭了。",),
    ("{helper}听到了，说：“别哭，我会修。”{helper}拿来工具，{name}在旁边帮忙。",),
    ("最后，{thing}修好了，和新的一样，{name}高兴地说：“谢谢你！”",),
)
WISHED: Plot = (
    ("{name}很想要一{count}{thing}，可是店里没有。", "{name}每天都想有一{count}{thing}，可是没有钱买。"),
    ("{name}想自己做，试了一次又一次，都没有成功。",),
    ("{helper}说：“我们一起做吧。”它们一个准备东西，一个动手做，忙了一整天。",),
    ("最后，{thing}做好了，又新又好看，大家都很喜欢。", "最后，{thing}做好了，{name}和{helper}都开心地笑了。"),
)
BLOWN: Plot = (
    ("一天，{name}带着一{count}{thing}出去玩。", "一个晴天，{name}带着一{count}{thing}去看朋友。"),
    ("忽然来了一阵大风，把{thing}吹到了高高的树上，{name}拿不到。",),
    ("{helper}跑过来说：“别急，我有办法。”{helper}找来一根长长的木棍，轻轻一推。",),
    ("最后，{thing}掉了下来，一点儿也没坏，{name}开心地跳了起来。",),
)
ASTRAY: Plot = (
    ("一天，{name}带着一{count}{thing}去看奶奶。", "一天，{name}想把一{count}{thing}送给奶奶。"),
    ("路很远，天又黑了，{name}找不到路，心里很害怕。",),
    ("{helper}正好走过，说：“别怕，跟我来，我认识路。”它们一边走，一边唱歌。",),
    ("最后，它们到了奶奶家，奶奶看到{thing}，高兴地笑了。", "最后，它们到了奶奶家，一起吃了热热的饭。"),
)
PROBLEMS = {
    LOST: "{name}的{thing}不见了。",
    FOUND: "{name}不知道{thing}的主人是谁。",
    BROKEN: "{name}的{thing}坏了。",
    WISHED: "{name}自己做不好{thing}。",
    BLOWN: "大风把{thing}吹到了树上。",
    ASTRAY: "{name}找不到路。",
}
HELPERS = ("小猫", "小狗", "小兔子", "小熊", "小马", "小羊", "小牛", "小猴子", "小象", "小狐狸", "小青蛙", "小松鼠")

HERO_REQUESTS = (
    "讲一个关于{hero}的故事。", "给我讲个{noun}的故事。", "讲个{noun}的故事。", "请讲一个{noun}的故事。",
    "你能讲一个关于{hero}的故事吗？", "我想听{noun}的故事。", "写一个关于{hero}的小故事。", "来一个{hero}的故事吧。",
)  # fmt: skip
THING_REQUESTS = (
    "讲一个关于{thing}的故事。", "给我讲个关于{thing}的故事。", "你能讲一个关于{thing}的故事吗？",
    "写一个关于{thing}的小故事。", "我想听一个关于{thing}的故事。",
)  # fmt: skip
BOTH_REQUESTS = (
    "讲一个关于{hero}和{thing}的故事。", "给我讲个{noun}和{thing}的故事。", "请讲一个{noun}和{thing}的故事。",
    "你能讲一个关于{hero}和{thing}的故事吗？", "写一个关于{hero}和{thing}的小故事。", "我想听{noun}和{thing}的故事。",
)  # fmt: skip
NAME_REQUESTS = (
    "讲一个关于{noun}{name}的故事。", "给我讲个{noun}{name}的故事。", "写一个{noun}的故事，它的名字叫{name}。",
)  # fmt: skip
OPEN_REQUESTS = ("讲个故事。", "给我讲个故事。", "请讲一个故事。", "你能讲个故事吗？", "我想听故事。", "写一个小故事。")
AGAIN_REQUESTS = ("再讲一个。", "再讲一个故事。", "再来一个。", "还有别的故事吗？", "请再讲一个。")
AGAIN_HERO_REQUESTS = ("再讲一个{noun}的故事。", "再来一个关于{hero}的。", "请再讲一个关于{hero}的故事。")


def told(random: Random, hero: Hero | None = None, thing: str | None = None) -> Story:
    """A story about the hero and the thing, or about others chosen here."""
    hero = hero or random.choice(HEROES)
    thing = thing or random.choice(list(THINGS))
    plots = [ASTRAY]
    plots += [plot for plot, misfits in ((LOST, NOT_CARRIED), (FOUND, NOT_FOUND)) if thing not in misfits]
    plots += [plot for plot, fits in ((BROKEN, REPAIRABLE), (WISHED, HANDMADE)) if thing in fits]
    if thing in LIGHT and hero.noun not in CLIMBERS:
        plots.append(BLOWN)
    plot = random.choice(plots)
    helper = random.choice([helper for helper in HELPERS if helper != hero.noun])
    values = {
        "name": random.choice(NAMES), "noun": hero.noun, "measure": hero.measure, "place": random.choice(PLACES),
        "thing": thing, "count": THINGS[thing], "helper": helper,
    }  # fmt: skip
    parts = [filled(random, wordings, **values) for wordings in plot]
    if hero.pronoun != "它":
        parts = [part.replace("它们", "他们") for part in parts]
    text = OPENING.format(**values) + "".join(parts)
    problem = PROBLEMS[plot].format(**values)
    return Story(text, hero, values["name"], thing, helper, values["place"], problem, parts[-1])


def requested(random: Random) -> tuple[str, Story]:
    """A request for a story, and the story."""
    kind = random.choices(("hero", "thing", "both", "name", "open"), (3, 1.5, 3, 1, 1))[0]
    story = told(random)
    patterns = {"hero": HERO_REQUESTS, "thing": THING_REQUESTS, "both": BOTH_REQUESTS, "open": OPEN_REQUESTS}.get(
        kind, NAME_REQUESTS
    )
    thing = ASKED_THINGS.get(story.thing, story.thing) if random.random() < 0.6 else story.thing
    words = {"hero": story.hero.word, "noun": story.hero.noun, "name": story.name, "thing": thing}
    question = asked(random, patterns, **words)
    return question.replace("它的名字", f"{story.hero.pronoun}的名字"), story


def follow_ups(random: Random, story: Story) -> list[Turn]:
    """Questions about a story, with their answers."""
    noun, pronoun, name = story.hero.noun, story.hero.pronoun, story.name
    questions = (
        (("{noun}叫什么名字？", "{pronoun}叫什么名字？", "故事里的{noun}叫什么？"), f"{noun}叫{name}。"),
        (("谁帮助了{pronoun}？", "谁帮助了{name}？", "谁帮了{noun}？"), f"{story.helper}帮助了{name}。"),
        (("{name}住在哪里？", "{pronoun}住在哪儿？", "{noun}住在哪里？"), f"{name}住在{story.place}。"),
        (("故事的结尾是什么？", "最后怎么样了？", "故事的最后怎么样了？"), story.ending),
        (("{name}怎么了？", "{noun}怎么了？", "出了什么问题？"), story.problem),
        (("故事讲的是什么？", "这个故事是关于什么的？"), f"这个故事讲的是{noun}{name}和{story.thing}。"),
        (("{name}是谁？", "谁是{name}？"), f"{name}是一{story.hero.measure}{noun}。"),
    )
    chosen = random.sample(questions, random.choices((1, 2, 3), (5, 3, 1))[0])
    words = {"noun": noun, "pronoun": pronoun, "name": name}
    return [Turn(asked(random, patterns, **words), answer) for patterns, answer in chosen]


def story(random: Random) -> list[Turn]:
    """A story."""
    question, told_story = requested(random)
    return [Turn(question, told_story.text)]


def story_with_questions(random: Random) -> list[Turn]:
    """A story and questions about it."""
    question, told_story = requested(random)
    return [Turn(question, told_story.text), *follow_ups(random, told_story)]


def another_story(random: Random) -> list[Turn]:
    """A story and then another."""
    question, first = requested(random)
    turns = [Turn(question, first.text)]
    if random.random() < 0.5:
        turns.append(Turn(asked(random, AGAIN_REQUESTS), told(random).text))
    else:
        hero = random.choice(HEROES)
        request = asked(random, AGAIN_HERO_REQUESTS, noun=hero.noun, hero=hero.word)
        turns.append(Turn(request, told(random, hero).text))
    return turns


TOPICS: dict[Topic, float] = {story: 4, story_with_questions: 5, another_story: 1}
