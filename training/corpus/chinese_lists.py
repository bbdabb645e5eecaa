"""Lists in Chinese: some things of a kind, in a sentence or numbered."""

from __future__ import annotations

from random import Random

from training.corpus.chinese import asked, count_word, joined
from training.corpus.conversation import Topic, Turn

# Each kind with its measure word and its members.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "动物": ("种", ("猫", "狗", "马", "牛", "羊", "鸟", "鱼", "大象", "老虎", "兔子", "猴子", "熊")),
    "水果": ("种", ("苹果", "香蕉", "桃子", "梨", "西瓜", "橙子", "草莓")),
    "颜色": ("种", ("红色", "黄色", "蓝色", "绿色", "白色", "黑色", "灰色")),
    "蔬菜": ("种", ("白菜", "土豆", "南瓜", "豆角", "黄瓜", "西红柿")),
    "食物": ("种", ("米饭", "面条", "面包", "蛋糕", "鱼", "鸡蛋")),
    "饮料": ("种", ("水", "茶", "牛奶", "果汁", "咖啡")),
    "衣服": ("种", ("衬衣", "毛衣", "大衣", "裙子", "裤子", "外套")),
    "国家": ("个", ("中国", "日本", "法国", "英国", "德国", "美国", "泰国")),
    "城市": ("个", ("北京", "上海", "东京", "巴黎", "南京", "广州", "伦敦")),
    "运动": ("种", ("跑步", "游泳", "足球", "篮球", "跳高", "跳远")),
    "职业": ("种", ("老师", "医生", "司机", "工人", "农民", "画家")),
    "交通工具": ("种", ("汽车", "火车", "飞机", "船", "自行车", "地铁")),
    "天气": ("种", ("晴天", "雨天", "雪天", "大风")),
}
SENTENCE_REQUESTS = (
    "说出{count}{measure}{kind}。", "请说出{count}{measure}{kind}。", "说{count}{measure}{kind}。",
    "你能说出{count}{measure}{kind}吗？", "告诉我{count}{measure}{kind}。",
)  # fmt: skip
LIST_REQUESTS = (
    "列出{count}{measure}{kind}。", "请列出{count}{measure}{kind}。", "列出{count}{measure}{kind}的名字。",
    "你能列出{count}{measure}{kind}吗？", "用列表写{count}{measure}{kind}。",
)  # fmt: skip
MORE_REQUESTS = ("再说一{measure}。", "还有吗？", "还有呢？", "再来一{measure}。")


def chosen(random: Random) -> tuple[dict[str, str], list[str], str]:
    """The words of a request, the members asked for, and one more."""
    kind = random.choice(list(KINDS))
    measure, members = KINDS[kind]
    number = random.randint(2, min(5, len(members) - 1))
    *items, more = random.sample(members, number + 1)
    count = count_word(number) if random.random() < 0.8 else f" {number} "
    return {"count": count, "measure": measure, "kind": kind}, items, more


def sentence_list(random: Random) -> list[Turn]:
    """Some things of a kind in a sentence, and maybe one more."""
    words, items, more = chosen(random)
    spoken = count_word(len(items))
    turns = [
        Turn(asked(random, SENTENCE_REQUESTS, **words), f"{spoken}{words['measure']}{words['kind']}：{joined(items)}。")
    ]
    if random.random() < 0.3:
        turns.append(Turn(asked(random, MORE_REQUESTS, measure=words["measure"]), f"还有{more}。"))
    return turns


def numbered_list(random: Random) -> list[Turn]:
    """Some things of a kind in a numbered list."""
    words, items, _ = chosen(random)
    answer = "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    return [Turn(asked(random, LIST_REQUESTS, **words), answer)]


TOPICS: dict[Topic, float] = {sentence_list: 1, numbered_list: 1}
