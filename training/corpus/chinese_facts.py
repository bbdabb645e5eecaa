"""Facts in Chinese: countries, colors, animals, opposites, days and months, what things are, and English words."""

from __future__ import annotations

from random import Random

from training.corpus.chinese import DIGITS, asked, numeral
from training.corpus.conversation import Topic, Turn

CAPITALS = {
    "中国": "北京",
    "日本": "东京",
    "法国": "巴黎",
    "英国": "伦敦",
    "德国": "柏林",
    "美国": "华盛顿",
    "俄罗斯": "莫斯科",
    "意大利": "罗马",
    "西班牙": "马德里",
    "韩国": "首尔",
    "泰国": "曼谷",
    "埃及": "开罗",
    "希腊": "雅典",
    "加拿大": "渥太华",
    "越南": "河内",
    "印度": "新德里",
    "葡萄牙": "里斯本",
    "秘鲁": "利马",
    "波兰": "华沙",
    "墨西哥": "墨西哥城",
}
CONTINENTS = {
    "中国": "亚洲", "日本": "亚洲", "法国": "欧洲", "英国": "欧洲", "德国": "欧洲", "美国": "美洲", "意大利": "欧洲",
    "西班牙": "欧洲", "韩国": "亚洲", "泰国": "亚洲", "希腊": "欧洲", "加拿大": "美洲", "越南": "亚洲", "印度": "亚洲",
    "葡萄牙": "欧洲", "秘鲁": "美洲", "波兰": "欧洲", "墨西哥": "美洲",
}  # fmt: skip
COLORS = {
    "天空": "蓝色",
    "大海": "蓝色",
    "草": "绿色",
    "树叶": "绿色",
    "雪": "白色",
    "牛奶": "白色",
    "云": "白色",
    "米饭": "白色",
    "太阳": "黄色",
    "香蕉": "黄色",
    "西红柿": "红色",
    "草莓": "红色",
    "血": "红色",
    "橙子": "橙色",
    "南瓜": "橙色",
    "大象": "灰色",
    "咖啡": "黑色",
    "晚上的天空": "黑色",
}
# What each animal eats, and where it lives.
ANIMALS = {
    "猫": ("鱼和肉", "人的家里"),
    "狗": ("肉和狗粮", "人的家里"),
    "兔子": ("草和青菜", "草地上的洞里"),
    "牛": ("草", "农场里"),
    "羊": ("草", "农场里"),
    "马": ("草", "农场里"),
    "猪": ("菜和粮食", "农场里"),
    "鸡": ("米和虫子", "农场里"),
    "鸭子": ("小鱼和水草", "水边"),
    "老虎": ("肉", "森林里"),
    "熊": ("鱼和水果", "森林里"),
    "狐狸": ("小动物和水果", "森林里"),
    "猴子": ("水果和树叶", "树林里"),
    "大象": ("草和树叶", "草原和森林里"),
    "狮子": ("肉", "草原上"),
    "老鼠": ("粮食和果子", "地下的洞里"),
    "青蛙": ("虫子", "水边"),
    "鸟": ("虫子和果子", "树上"),
    "蜜蜂": ("花蜜", "蜂房里"),
    "熊猫": ("竹子", "中国的山林里"),
    "鱼": ("水草和小虫子", "水里"),
    "松鼠": ("果子", "树上"),
}
OPPOSITES = (
    ("大", "小"), ("高", "矮"), ("长", "短"), ("多", "少"), ("快", "慢"), ("冷", "热"), ("新", "旧"), ("好", "坏"),
    ("上", "下"), ("左", "右"), ("前", "后"), ("里", "外"), ("开", "关"), ("黑", "白"), ("早", "晚"), ("远", "近"),
    ("轻", "重"), ("男", "女"), ("有", "没有"), ("来", "去"), ("买", "卖"), ("高兴", "难过"), ("白天", "晚上"),
    ("干净", "脏"), ("老", "年轻"),
)  # fmt: skip
WEEK = ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期天")
SEASONS = ("春天", "夏天", "秋天", "冬天")
SEASON_WEATHER = {"春天": "很暖和", "夏天": "很热", "秋天": "很凉快", "冬天": "很冷"}
# Questions with one answer each.
FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("一年有几个月？", "一年有多少个月？"), "一年有 12 个月。"),
    (("一年有多少天？", "一年有几天？"), "一年有 365 天，有时候有 366 天。"),
    (("一个星期有几天？", "一星期有多少天？"), "一个星期有 7 天。"),
    (("一天有几个小时？", "一天有多少小时？"), "一天有 24 个小时。"),
    (("一小时有多少分钟？", "一个小时有几分钟？"), "一个小时有 60 分钟。"),
    (("一分钟有多少秒？", "一分钟有几秒？"), "一分钟有 60 秒。"),
    (("一年有几个季节？", "一年有哪几个季节？", "四季是什么？"), "一年有四个季节：春天、夏天、秋天和冬天。"),
    (("狗有几条腿？", "一只狗有几条腿？"), "狗有 4 条腿。"),
    (("猫有几条腿？", "一只猫有几条腿？"), "猫有 4 条腿。"),
    (("鸟有几条腿？", "一只鸟有几条腿？"), "鸟有 2 条腿。"),
    (("人有几只手？", "人有多少只手？"), "人有 2 只手。"),
    (("一只手有几个手指？", "人的一只手有几个手指？"), "一只手有 5 个手指。"),
    (("人用什么看东西？", "我们用什么看？"), "我们用眼睛看东西。"),
    (("人用什么听声音？", "我们用什么听？"), "我们用耳朵听声音。"),
    (("人用什么闻味道？", "我们用什么闻？"), "我们用鼻子闻味道。"),
    (("太阳从哪边出来？", "太阳从哪里升起？"), "太阳从东边升起。"),
    (("太阳从哪边落下？", "太阳在哪边落下？"), "太阳从西边落下。"),
    (("冰是什么做的？", "冰是什么变的？"), "冰是水变的。水很冷的时候会变成冰。"),
    (("水多少度会开？", "水几度会开？"), "水到 100 度会开。"),
    (("水多少度会变成冰？", "水几度变成冰？"), "水到 0 度会变成冰。"),
    (("最大的动物是什么？", "世界上最大的动物是什么？"), "最大的动物是蓝鲸。"),
    (("最高的动物是什么？", "世界上最高的动物是什么？"), "最高的动物是长颈鹿。"),
    (("地球是圆的吗？", "地球像一个球吗？"), "是的，地球像一个大球。"),
    (("面包是什么做的？", "面包是用什么做的？"), "面包是用面粉和水做的。"),
    (("牛奶从哪里来？", "牛奶是从哪里来的？"), "牛奶是从奶牛那里来的。"),
    (("蜂蜜是从哪里来的？", "蜂蜜是什么做的？"), "蜂蜜是蜜蜂用花蜜做的。"),
)
# What a thing is; each sentence begins with the thing.
MEANINGS = {
    "太阳": "一颗很大很热的星，给我们光和热",
    "月亮": "离地球最近的星球，晚上看起来很亮",
    "地球": "我们住的星球",
    "星星": "晚上天上发光的东西，离我们很远",
    "云": "天上很多很小的水和冰",
    "雨": "从云里落下来的水",
    "雪": "从云里落下来的白色冰花",
    "风": "流动的空气",
    "河": "在地上流动的水，会流到大海里",
    "大海": "很大很大的一片水",
    "山": "很高的土地",
    "森林": "有很多树的地方",
    "树": "一种又高又大的植物",
    "花": "植物上好看的部分，有很多种颜色",
    "草": "一种矮小的绿色植物",
    "猫": "一种小动物，喜欢和人住在一起",
    "狗": "一种动物，是人的好朋友",
    "马": "一种跑得很快的大动物",
    "鸟": "一种有翅膀的动物",
    "鱼": "一种住在水里的动物",
    "熊猫": "一种黑白两色的动物，喜欢吃竹子",
    "蜜蜂": "一种会做蜜的小虫子",
    "苹果": "一种水果，又圆又甜",
    "香蕉": "一种长长的黄色水果",
    "面包": "一种用面粉做的食物",
    "牛奶": "一种白色的饮料，从奶牛那里来",
    "茶": "一种用茶叶做的饮料",
    "书": "很多张纸做成的东西，里面有字和画",
    "笔": "用来写字的工具",
    "钟": "告诉我们时间的东西",
    "灯": "在黑的地方发光的东西",
    "雨伞": "下雨的时候用的东西",
    "椅子": "用来坐的东西",
    "床": "用来睡觉的东西",
    "船": "在水上走的交通工具",
    "飞机": "在天上飞的交通工具",
    "火车": "在铁路上走的交通工具",
    "学校": "学生学习的地方",
    "医院": "医生给人看病的地方",
    "书店": "买书的地方",
    "花店": "买花的地方",
    "老师": "教学生的人",
    "医生": "给人看病的人",
    "电脑": "一种会计算的机器",
    "机器人": "一种会动的机器，可以帮人做事",
    "音乐": "好听的声音",
    "朋友": "和你关系很好的人",
    "语言模型": "一种电脑程序，会看文字，也会写文字",
}
ENGLISH = {
    "猫": "cat", "狗": "dog", "马": "horse", "牛": "cow", "鸟": "bird", "鱼": "fish", "兔子": "rabbit", "熊": "bear",
    "苹果": "apple", "香蕉": "banana", "面包": "bread", "牛奶": "milk", "水": "water", "茶": "tea", "蛋糕": "cake",
    "鸡蛋": "egg", "书": "book", "笔": "pen", "桌子": "table", "椅子": "chair", "床": "bed", "门": "door", "灯": "lamp",
    "房子": "house", "学校": "school", "老师": "teacher", "学生": "student", "医生": "doctor", "朋友": "friend",
    "妈妈": "mother", "爸爸": "father", "太阳": "sun", "月亮": "moon", "星星": "star", "雨": "rain", "雪": "snow",
    "风": "wind", "山": "mountain", "河": "river", "大海": "sea", "树": "tree", "花": "flower", "草": "grass",
    "红色": "red", "蓝色": "blue", "绿色": "green", "黄色": "yellow", "白色": "white", "黑色": "black", "船": "boat",
    "谢谢": "thank you", "你好": "hello", "再见": "goodbye", "早上好": "good morning",
}  # fmt: skip


def capital(random: Random) -> list[Turn]:
    """The capital of a country, or the country of a capital, and maybe another one."""
    country, other = random.sample(list(CAPITALS), 2)
    city = CAPITALS[country]
    if random.random() < 0.25:
        question = asked(
            random, ("{city}是哪个国家的首都？", "{city}在哪个国家？", "哪个国家的首都是{city}？"), city=city
        )
        return [Turn(question, f"{city}是{country}的首都。")]
    patterns = (
        "{country}的首都是哪里？", "{country}的首都是什么？", "{country}的首都叫什么？", "请问{country}的首都是哪里？",
        "哪个城市是{country}的首都？", "告诉我{country}的首都。", "{country}首都是哪？",
    )  # fmt: skip
    turns = [Turn(asked(random, patterns, country=country), f"{country}的首都是{city}。")]
    if random.random() < 0.35:
        question = asked(random, ("{other}呢？", "那{other}呢？", "那{other}的首都呢？"), other=other)
        turns.append(Turn(question, f"{other}的首都是{CAPITALS[other]}。"))
    return turns


def continent(random: Random) -> list[Turn]:
    """The continent of a country."""
    country = random.choice(list(CONTINENTS))
    question = asked(random, ("{country}在哪里？", "{country}在哪个洲？", "请问{country}在哪儿？"), country=country)
    return [Turn(question, f"{country}在{CONTINENTS[country]}。")]


def color(random: Random) -> list[Turn]:
    """The color of a thing, and maybe of another."""
    thing, other = random.sample(list(COLORS), 2)
    patterns = ("{thing}是什么颜色？", "{thing}是什么颜色的？", "请问{thing}是什么颜色？", "{thing}的颜色是什么？")
    turns = [Turn(asked(random, patterns, thing=thing), f"{thing}是{COLORS[thing]}的。")]
    if random.random() < 0.3:
        turns.append(
            Turn(asked(random, ("{other}呢？", "那{other}呢？"), other=other), f"{other}是{COLORS[other]}的。")
        )
    return turns


def animal(random: Random) -> list[Turn]:
    """What an animal eats and where it lives."""
    name = random.choice(list(ANIMALS))
    food, home = ANIMALS[name]
    eats = ("{name}吃什么？", "{name}喜欢吃什么？", "请问{name}吃什么？", "{name}一般吃什么？")
    lives = ("{name}住在哪里？", "{name}住在哪儿？", "请问{name}住在哪里？", "{name}一般住在哪里？")
    eating, living = f"{name}吃{food}。", f"{name}住在{home}。"
    if random.random() < 0.5:
        turns = [Turn(asked(random, eats, name=name), eating)]
        later = Turn(asked(random, ("它住在哪里？", "那它住在哪儿？", "它一般住在哪里？")), living)
    else:
        turns = [Turn(asked(random, lives, name=name), living)]
        later = Turn(asked(random, ("它吃什么？", "那它吃什么？", "它喜欢吃什么？")), eating)
    return [*turns, later] if random.random() < 0.5 else turns


def opposite(random: Random) -> list[Turn]:
    """The opposite of a word."""
    word, other = random.sample(random.choice(OPPOSITES), 2)
    patterns = (
        "“{word}”的反义词是什么？",
        "{word}的反义词是什么？",
        "“{word}”的反义词是？",
        "请问“{word}”的反义词是什么？",
    )
    return [Turn(asked(random, patterns, word=word), f"“{word}”的反义词是“{other}”。")]


def calendar(random: Random) -> list[Turn]:
    """What comes after or before a day, a month or a season, or what a season is like."""
    after = random.random() < 0.65
    kind = random.choice(("day", "day", "tomorrow", "month", "season", "weather"))
    if kind == "tomorrow":
        today, word = random.randrange(7), "明天" if after else "昨天"
        question = asked(
            random, ("今天是{today}，{word}是星期几？", "今天{today}，{word}星期几？"), today=WEEK[today], word=word
        )
        return [Turn(question, f"{word}是{WEEK[(today + (1 if after else -1)) % 7]}。")]
    if kind == "weather":
        season = random.choice(SEASONS)
        asking = ("{season}冷吗？", "{season}热吗？", "{season}的天气怎么样？", "{season}怎么样？")
        return [Turn(asked(random, asking, season=season), f"{season}{SEASON_WEATHER[season]}。")]
    if kind == "day":
        names: tuple[str, ...] = WEEK
        patterns: tuple[str, ...] = ("{name}{side}是星期几？", "{name}的{side}一天是星期几？", "{name}{side}是哪天？")
    elif kind == "month":
        names = tuple(f"{numeral(number)}月" for number in range(1, 13))
        patterns = ("{name}{side}是几月？", "{name}{side}是哪个月？", "{name}的{side}一个月是几月？")
    else:
        names = SEASONS
        patterns = ("{name}{side}是什么季节？", "{name}{side}是哪个季节？", "{name}的{side}是什么季节？")
    index = random.randrange(len(names))
    side = "后面" if after else "前面"
    result = names[(index + (1 if after else -1)) % len(names)]
    return [Turn(asked(random, patterns, name=names[index], side=side), f"{names[index]}{side}是{result}。")]


def listed_calendar(random: Random) -> list[Turn]:
    """The days of the week in order, or which number a day has."""
    if random.random() < 0.4:
        question = asked(random, ("一个星期有哪几天？", "说出一个星期的每一天。", "一星期有哪些天？"))
        return [Turn(question, "、".join(WEEK[:-1]) + f"和{WEEK[-1]}。")]
    number = random.randint(1, 7)
    question = asked(random, ("一个星期的第{count}天是星期几？", "一星期的第{count}天是什么？"), count=DIGITS[number])
    return [Turn(question, f"一个星期的第{DIGITS[number]}天是{WEEK[number - 1]}。")]


def fact(random: Random) -> list[Turn]:
    """A simple fact, or two."""
    chosen = random.sample(FACTS, random.choice((1, 1, 1, 2)))
    return [Turn(asked(random, patterns), answer) for patterns, answer in chosen]


def meaning(random: Random) -> list[Turn]:
    """What a thing is."""
    thing = random.choice(list(MEANINGS))
    person = MEANINGS[thing].endswith("的人")
    patterns = [
        "{thing}是什么？",
        "什么是{thing}？",
        "请问{thing}是什么？",
        "告诉我{thing}是什么。",
        "你知道{thing}是什么吗？",
    ]
    patterns += ["{thing}是什么人？"] if person else ["{thing}是什么东西？", "解释一下什么是{thing}。"]
    return [Turn(asked(random, patterns, thing=thing), f"{thing}是{MEANINGS[thing]}。")]


def translation(random: Random) -> list[Turn]:
    """A word from Chinese to English or back, and maybe another one."""
    word, other = random.sample(list(ENGLISH), 2)
    into_english = (
        "“{word}”用英语怎么说？", "{word}用英语怎么说？", "{word}的英语是什么？", "“{word}”的英语是什么？",
        "把“{word}”翻译成英语。", "{word}英语怎么说？",
    )  # fmt: skip
    into_chinese = (
        "“{word}”是什么意思？", "{word} 是什么意思？", "“{word}”用中文怎么说？", "{word} 的中文是什么？",
        "把“{word}”翻译成中文。", "{word} 用中文怎么说？",
    )  # fmt: skip
    if random.random() < 0.5:
        turns = [Turn(asked(random, into_english, word=word), f"“{word}”的英语是“{ENGLISH[word]}”。")]
        second, answer = other, f"“{other}”的英语是“{ENGLISH[other]}”。"
    else:
        turns = [Turn(asked(random, into_chinese, word=ENGLISH[word]), f"“{ENGLISH[word]}”的意思是“{word}”。")]
        second, answer = ENGLISH[other], f"“{ENGLISH[other]}”的意思是“{other}”。"
    if random.random() < 0.3:
        turns.append(Turn(asked(random, ("“{second}”呢？", "那“{second}”呢？"), second=second), answer))
    return turns


TOPICS: dict[Topic, float] = {
    capital: 3,
    continent: 0.7,
    color: 1.5,
    animal: 2.5,
    opposite: 1.5,
    calendar: 2,
    listed_calendar: 0.5,
    fact: 2,
    meaning: 3,
    translation: 3,
}
