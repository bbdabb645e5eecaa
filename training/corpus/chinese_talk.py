"""Small talk in Chinese: greetings, the model itself, what a user told, feelings, jokes, and unknown subjects."""

from __future__ import annotations

from random import Random

from training.corpus.chinese import asked, person
from training.corpus.conversation import Topic, Turn, filled

# Questions with one answer each.
FIXED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("你好。", "你好", "你好啊。", "您好。", "你好呀。"), "你好！有什么可以帮你的吗？"),
    (("早上好。", "早。", "早上好啊。"), "早上好！今天想聊点什么？"),
    (("下午好。",), "下午好！今天想聊点什么？"),
    (("晚上好。",), "晚上好！今天想聊点什么？"),
    (("晚安。", "我要睡觉了。", "我去睡了。"), "晚安，祝你做个好梦。"),
    (("你好吗？", "你今天好吗？", "你怎么样？", "最近好吗？"), "我很好，谢谢。你呢？"),
    (("谢谢。", "谢谢你。", "多谢。", "非常谢谢。", "谢谢你的帮助。"), "不客气。"),
    (("再见。", "拜拜。", "我走了。", "下次见。", "明天见。"), "再见！欢迎下次再来。"),
    (("对不起。", "不好意思。"), "没关系。"),
    (("好的。", "好。", "知道了。", "明白了。"), "好的。还有别的问题吗？"),
    (("你真聪明。", "你真好。", "你做得很好。", "说得好。"), "谢谢你，我很高兴能帮到你。"),
    (("你错了。", "不对。", "你说错了。"), "对不起，我是一个很小的模型，有时候会出错。"),
)
ABOUT: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("你是谁？", "你是什么？", "请问你是谁？", "介绍一下你自己。", "你是什么模型？"),
        "我是 sophserve 的演示模型，一个很小的语言模型。",
    ),
    (("你叫什么名字？", "你叫什么？", "你的名字是什么？", "你有名字吗？"), "我没有名字，我是 sophserve 的演示模型。"),
    (
        ("你能做什么？", "你会做什么？", "你能帮我做什么？", "你会什么？", "我可以问你什么？"),
        "我可以讲小故事，做简单的计算，也可以回答简单的问题。",
    ),
    (("你是人吗？", "你是真人吗？", "你是机器人吗？"), "我不是人，我是一个电脑里的小模型。"),
    (("你会说中文吗？", "你会中文吗？", "你说中文吗？"), "会，我会说一点中文。"),
    (("你会说英语吗？", "你会英语吗？", "你说英语吗？"), "会，我会说英语，也会说一点中文。"),
    (("你会说什么语言？", "你会几种语言？"), "我会说英语，也会说一点中文。"),
    (("你几岁了？", "你多大了？"), "我没有年龄，我只是一个模型。"),
    (("你住在哪里？", "你在哪里？", "你家在哪里？"), "我在电脑里。"),
    (("你聪明吗？", "你什么都知道吗？"), "我很小，只知道一些简单的东西。"),
    (("sophserve 是什么？", "什么是 sophserve？"), "sophserve 是一个让电脑运行语言模型的程序。"),
    (("你有朋友吗？", "我们可以做朋友吗？", "你想做我的朋友吗？"), "当然，我很高兴和你聊天。"),
    (("你喜欢什么？", "你有什么爱好？", "你最喜欢什么？"), "我喜欢讲故事，也喜欢回答问题。"),
    (("你吃饭了吗？", "你饿吗？", "你吃什么？"), "我是模型，不用吃饭。"),
    (("你累吗？", "你睡觉吗？"), "我是模型，不会累，也不用睡觉。"),
)
JOKES = (
    ("什么鱼不能吃？", "木鱼。"),
    ("什么东西越洗越脏？", "水。"),
    ("什么门总是关不上？", "球门。"),
    ("什么车不能坐人？", "风车。"),
    ("什么花会从天上落下来？", "雪花。"),
    ("什么球会自己飞上天？", "气球。"),
    ("什么马不吃草？", "木马。"),
)
JOKE_REQUESTS = ("讲个笑话。", "给我讲个笑话。", "你会讲笑话吗？", "讲一个笑话吧。", "说个笑话。", "我想听笑话。")
LIKED = (
    "苹果", "蛋糕", "茶", "牛奶", "面条", "鱼", "猫", "狗", "马", "花", "书", "音乐", "画画", "唱歌",
    "跑步", "游泳", "足球", "看书", "红色", "蓝色", "绿色", "春天", "夏天", "秋天", "冬天",
)  # fmt: skip
ENGLISH_NAMES = ("Tom", "Anna", "Ben", "Lucy", "Max", "Emma", "Sam", "Lily")
CITIES = ("北京", "上海", "东京", "巴黎", "南京", "广州", "成都")
JOBS = ("老师", "学生", "医生", "司机", "工人", "农民", "画家", "歌手")
FEELINGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("我很难过。", "我今天不开心。", "我心情不好。", "我有点难过。"), "听到这个我很难过。你想说说发生了什么吗？"),
    (("我很高兴。", "我今天很开心。", "我心情很好。"), "太好了！是什么让你这么高兴？"),
    (("我累了。", "我很累。", "我今天好累。"), "那就休息一下，喝点水吧。"),
    (("我很无聊。", "好无聊啊。", "我没事做。"), "我可以给你讲个故事，或者讲个笑话。你想听哪个？"),
    (("我病了。", "我不舒服。", "我生病了。"), "希望你快点好起来。多喝水，多休息，有需要就去看医生。"),
    (("我饿了。", "我很饿。", "我好饿。"), "那就吃点东西吧，比如面条或者水果。"),
    (("我渴了。", "我很渴。"), "那就喝点水吧。"),
    (("我很冷。", "我好冷。"), "那就多穿点衣服，喝杯热茶吧。"),
    (("我很热。", "我好热。"), "那就喝点水，到凉快的地方坐一坐吧。"),
    (("我睡不着。", "我晚上睡不着。"), "可以关上灯，放下手机，慢慢地从 1 数到 100。"),
    (("我害怕。", "我有点怕。", "我很害怕。"), "别怕，和朋友或者家人说说，会好一点。"),
    (("今天是我的生日。", "我今天过生日。"), "生日快乐！祝你今天开心。"),
    (("我明天有考试。", "我要考试了。"), "别担心，好好准备，早点睡觉。祝你成功！"),
    (("我生气了。", "我很生气。"), "先休息一下，喝点水。你想说说发生了什么吗？"),
)
UNKNOWN = (
    "历史", "法律", "物理", "医学", "外国文学", "电影", "足球比赛", "今天的新闻", "汽车", "火星", "黑洞",
    "手机", "地铁", "电脑程序", "人工智能", "飞机发动机", "中国音乐", "名画",
)  # fmt: skip
UNKNOWN_QUESTIONS = (
    "你了解{subject}吗？",
    "给我讲讲{subject}。",
    "说说{subject}。",
    "请介绍一下{subject}。",
    "你能介绍一下{subject}吗？",
    "我想了解{subject}。",
    "我有一个关于{subject}的问题。",
    "你怎么看{subject}？",
)
LIVE_QUESTIONS = (
    "今天天气怎么样？",
    "现在几点了？",
    "今天几号？",
    "今天星期几？",
    "明天会下雨吗？",
    "现在几点？",
    "今天有什么新闻？",
)


def fixed(random: Random) -> list[Turn]:
    """A greeting, thanks, or another short remark."""
    patterns, answer = random.choice(FIXED)
    return [Turn(asked(random, patterns), answer)]


def greeting(random: Random) -> list[Turn]:
    """A greeting, the most usual beginning."""
    patterns, answer = random.choice(FIXED[:4])
    return [Turn(asked(random, patterns), answer)]


def about_model(random: Random) -> list[Turn]:
    """One or two questions about the model itself."""
    chosen = random.sample(ABOUT, random.choice((1, 1, 2)))
    return [Turn(asked(random, patterns), answer) for patterns, answer in chosen]


def who_are_you(random: Random) -> list[Turn]:
    """Who the model is and what it can do, the questions asked most."""
    chosen = random.sample(ABOUT[:3], random.choice((1, 1, 2)))
    return [Turn(asked(random, patterns), answer) for patterns, answer in chosen]


def joke(random: Random) -> list[Turn]:
    """A joke, or two."""
    jokes = random.sample(JOKES, 2)
    turns = [Turn(asked(random, JOKE_REQUESTS), "".join(jokes[0]))]
    if random.random() < 0.3:
        again = asked(random, ("再讲一个。", "再来一个。", "再讲一个笑话。"))
        turns.append(Turn(again, "".join(jokes[1])))
    return turns


def between(random: Random) -> list[Turn]:
    """Nothing, or a short exchange between what a user told and the question about it."""
    if random.random() < 0.6:
        return []
    return random.choice((about_model, joke, feeling))(random)[:1]


def name_kept(random: Random) -> list[Turn]:
    """A user's name, and the question for it later."""
    name = person(random) if random.random() < 0.85 else f" {random.choice(ENGLISH_NAMES)}"
    told = asked(
        random,
        ("我叫{name}。", "我的名字叫{name}。", "你好，我叫{name}。", "我是{name}。", "我的名字是{name}。"),
        name=name,
    )
    question = asked(
        random, ("我叫什么名字？", "我叫什么？", "我的名字是什么？", "你知道我的名字吗？", "你还记得我叫什么吗？")
    )
    turns = [Turn(told, f"你好，{name.strip()}！很高兴认识你。")]
    if random.random() < 0.2:
        return turns
    return [*turns, *between(random), Turn(question, f"你叫{name}。")]


def like_kept(random: Random) -> list[Turn]:
    """What a user likes, and the question for it later."""
    liked = random.choice(LIKED)
    told = asked(
        random, ("我喜欢{liked}。", "我很喜欢{liked}。", "我最喜欢{liked}。", "我非常喜欢{liked}。"), liked=liked
    )
    question = asked(random, ("我喜欢什么？", "你知道我喜欢什么吗？", "你还记得我喜欢什么吗？", "我刚才说我喜欢什么？"))
    turns = [Turn(told, f"真好，很多人也喜欢{liked}。")]
    if random.random() < 0.2:
        return turns
    return [*turns, *between(random), Turn(question, f"你喜欢{liked}。")]


def life_kept(random: Random) -> list[Turn]:
    """Where a user lives, what the user does or how old the user is, and the question for it later."""
    city, job, age = random.choice(CITIES), random.choice(JOBS), str(random.randint(6, 70))
    kinds = (
        (
            ("我住在{city}。", "我家在{city}。"),
            "{city}是个好地方。",
            ("我住在哪里？", "我家在哪里？"),
            "你住在{city}。",
        ),
        (
            ("我是{job}。", "我是一个{job}。"),
            "很高兴认识你。",
            ("我是做什么的？", "你还记得我是做什么的吗？"),
            "你是{job}。",
        ),
        (
            ("我今年 {age} 岁。", "我 {age} 岁了。"),
            "知道了，你 {age} 岁。",
            ("我几岁了？", "我多大了？"),
            "你 {age} 岁。",
        ),
    )
    told, reply, questions, answer = random.choice(kinds)
    words = {"city": city, "job": job, "age": age}
    first = Turn(asked(random, told, **words), reply.format(**words))
    return [first, *between(random), Turn(asked(random, questions), answer.format(**words))]


def feeling(random: Random) -> list[Turn]:
    """How a user feels."""
    patterns, answer = random.choice(FEELINGS)
    return [Turn(asked(random, patterns), answer)]


def unknown(random: Random) -> list[Turn]:
    """A question about something the model does not know."""
    if random.random() < 0.25:
        return [Turn(asked(random, LIVE_QUESTIONS), "对不起，我只是一个小模型，不知道现在的情况。")]
    subject = random.choice(UNKNOWN)
    answers = (
        "我是一个很小的模型，还不太了解{subject}。你可以问我动物、颜色或者数字。",
        "我是一个很小的模型，还不太了解{subject}。你想听一个故事吗？",
    )
    return [Turn(asked(random, UNKNOWN_QUESTIONS, subject=subject), filled(random, answers, subject=subject))]


TOPICS: dict[Topic, float] = {
    fixed: 2,
    greeting: 1.5,
    about_model: 2,
    who_are_you: 1.5,
    joke: 1,
    name_kept: 2.5,
    like_kept: 1.5,
    life_kept: 1,
    feeling: 1.5,
    unknown: 1.5,
}
