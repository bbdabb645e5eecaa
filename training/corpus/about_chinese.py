"""Questions and answers about sophserve in Chinese."""

from __future__ import annotations

from random import Random

from training.corpus.about_facts import Fact
from training.corpus.conversation import Topic, Turn, filled

WHAT = "sophserve 是一个大语言模型服务器。它提供 OpenAI API，任何 OpenAI 客户端都可以使用它。"
WHAT_IN_DETAIL = (
    "sophserve 是一个大语言模型服务器。它提供 OpenAI API，任何 OpenAI 客户端都可以使用它。"
    "它可以运行在算能 SG2260 TPU 上；没有芯片时，也可以运行在 CPU 上。"
)
START = "运行 `sophserve --model /data/Qwen2-7B`。日志出现 `ready` 后，就可以访问 `http://localhost:8000`。"
INSTALL = "在源代码目录中运行 `pip install .`。需要 Linux 和 Python 3.11 或更高版本。"
MODELS = "sophserve 支持 Llama、Mistral、Qwen2、Qwen2.5、QwQ 和 Qwen3 模型。"
GPU = "不需要。它可以运行在 CPU 上，也可以运行在 SG2260 TPU 上。"
FREE = "是的，sophserve 是自由软件，使用 Apache-2.0 许可证。"
LINUX = "不能，sophserve 只能在 Linux 上运行。"
LANGUAGE = "它是用 Python 写的，CPU 内核是用 C++ 写的。"
CHAT = "在终端中运行 `sophserve chat`，或者用浏览器打开 `http://localhost:8000/`。"
PORT = "默认端口是 8000，可以用 `--port` 修改。"
DEMO = "演示模型是一个很小的对话模型，大约有四百万个参数。用 `sophserve --model demo` 启动。"
DEMO_SIZE = "演示模型大约有四百万个参数，占用约 8 MB。"
DEMO_LIMITS = "演示模型很小，知道的不多，也会出错。实际工作请使用更大的模型。"
DEMO_TRAINING = "演示模型是用生成的文本从头训练的，方法见 `training/` 目录。"
PYTHON_CODE = """使用 OpenAI 的官方客户端：

```python
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
answer = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "你好！"}],
)
print(answer.choices[0].message.content)
```"""

INTRODUCTION = Fact(
    (
        "sophserve 是什么？",
        "sophserve 是什么？",
        "sophserve是什么？",
        "什么是 sophserve？",
        "什么是sophserve？",
        "介绍一下 sophserve。",
        "介绍一下sophserve。",
        "你知道 sophserve 吗？",
        "sophserve 是做什么的？",
        "sophserve 有什么用？",
        "sophserve 能做什么？",
        "解释一下 sophserve。",
        "告诉我 sophserve 是什么。",
        "说说 sophserve。",
        "sophserve 是什么软件？",
        "你听说过 sophserve 吗？",
    ),
    WHAT,
)
IN_DETAIL = Fact(("详细介绍一下 sophserve。", "详细说说 sophserve。", "请详细解释 sophserve 是什么。"), WHAT_IN_DETAIL)
FOLLOW_UPS = (
    Fact(("怎么启动它？", "如何启动它？", "怎么运行它？", "那怎么启动？"), START),
    Fact(("怎么安装它？", "如何安装？", "怎么安装？"), INSTALL),
    Fact(("它支持哪些模型？", "它能运行哪些模型？", "支持什么模型？"), MODELS),
    Fact(("它需要 GPU 吗？", "需要显卡吗？", "没有 GPU 能用吗？"), GPU),
    Fact(("它是免费的吗？", "它是开源的吗？", "它收费吗？"), FREE),
    Fact(("它能在 Windows 上运行吗？", "支持 Windows 吗？"), LINUX),
    Fact(("它是用什么语言写的？", "它用什么语言编写？"), LANGUAGE),
    Fact(("怎么和它对话？", "怎么和模型聊天？"), CHAT),
    Fact(("它的默认端口是多少？", "它用哪个端口？"), PORT),
    Fact(("怎么用 Python 调用它？", "怎么在 Python 里使用它？"), PYTHON_CODE),
    Fact(("详细说说。", "再详细一点。", "能详细介绍一下吗？"), WHAT_IN_DETAIL),
)

FACTS = (
    Fact(
        (
            "怎么启动 sophserve？",
            "如何启动 sophserve？",
            "sophserve 怎么启动？",
            "怎么运行 sophserve？",
            "启动 sophserve 的命令是什么？",
        ),
        START,
    ),
    Fact(
        ("怎么安装 sophserve？", "如何安装 sophserve？", "sophserve 怎么安装？", "安装 sophserve 需要什么？"), INSTALL
    ),
    Fact(("sophserve 支持哪些模型？", "sophserve 能运行哪些模型？", "哪些模型可以用 sophserve？"), MODELS),
    Fact(("sophserve 需要 GPU 吗？", "没有 GPU 能用 sophserve 吗？", "运行 sophserve 需要显卡吗？"), GPU),
    Fact(("sophserve 是免费的吗？", "sophserve 是开源的吗？", "sophserve 收费吗？"), FREE),
    Fact(("sophserve 的许可证是什么？", "sophserve 用什么许可证？"), "sophserve 的许可证是 Apache-2.0。"),
    Fact(("sophserve 能在 Windows 上运行吗？", "sophserve 支持 Windows 吗？"), LINUX),
    Fact(("sophserve 是用什么语言写的？", "sophserve 用什么语言编写？"), LANGUAGE),
    Fact(
        ("sophserve 需要哪个版本的 Python？", "sophserve 要求什么 Python 版本？"),
        "sophserve 需要 Python 3.11 或更高版本。",
    ),
    Fact(("怎么用 Python 调用 sophserve？", "怎么在 Python 里使用 sophserve？", "给我一个 Python 例子。"), PYTHON_CODE),
    Fact(("怎么和模型聊天？", "怎么和模型对话？", "sophserve chat 是什么？"), CHAT),
    Fact(("sophserve 的默认端口是多少？", "sophserve 用哪个端口？", "默认端口是多少？"), PORT),
    Fact(("怎么修改端口？", "如何设置端口？"), "使用选项 `--port`，例如 `--port 9000`。"),
    Fact(
        ("怎么设置 API 密钥？", "如何设置密钥？", "怎么保护服务器？"),
        "启动时使用 `--api-key`，客户端必须发送同样的密钥。",
    ),
    Fact(
        ("怎么让其他机器访问服务器？", "为什么其他机器访问不到服务器？"),
        "默认只监听 localhost。请使用 `--host 0.0.0.0`，并设置 API 密钥。",
    ),
    Fact(
        ("cmodel 是什么？", "什么是 cmodel？", "解释一下 cmodel。"),
        "cmodel 是在 CPU 上实现的芯片算子模型。有了它，没有芯片也能使用 sophserve。",
    ),
    Fact(
        ("SG2260 是什么？", "什么是 SG2260？", "介绍一下 SG2260。"),
        "SG2260 是算能的 TPU 芯片，sophserve 可以在它上面运行大语言模型。",
    ),
    Fact(
        ("什么是前缀缓存？", "前缀缓存是什么？", "解释一下前缀缓存。"),
        "有了前缀缓存，开头相同的提示词只计算一次。多轮对话也因此更快。",
    ),
    Fact(("怎么关闭前缀缓存？", "如何关闭前缀缓存？"), "启动时使用 `--no-enable-prefix-caching`。"),
    Fact(
        ("什么是分块预填充？", "分块预填充是什么？", "解释一下分块预填充。"),
        "分块预填充把长提示词分成几块计算，其他答案可以在中间继续生成。",
    ),
    Fact(("怎么关闭分块预填充？", "如何关闭分块预填充？"), "启动时使用 `--no-enable-chunked-prefill`。"),
    Fact(
        ("什么是连续批处理？", "连续批处理是什么？", "解释一下连续批处理。"),
        "连续批处理让新请求在每一步都可以加入，不必等待整批请求结束。",
    ),
    Fact(
        ("什么是张量并行？", "张量并行是什么？", "怎么使用张量并行？"),
        "张量并行让多个设备共同运行一个模型，选项是 `--tensor-parallel-size`。",
    ),
    Fact(
        ("什么是 KV 缓存？", "KV 缓存是什么？", "解释一下 KV 缓存。"),
        "KV 缓存保存已有词元的键和值，这样它们只需要计算一次。",
    ),
    Fact(
        ("什么是量化？", "量化是什么？", "解释一下量化。"),
        "量化用 4 位或 8 位保存模型的权重。模型占用的内存更少，回答也更快。",
    ),
    Fact(
        ("sophserve 支持哪些量化格式？", "支持哪些量化模型？", "sophserve 支持 GPTQ 吗？"),
        "sophserve 支持 GPTQ、AWQ、FP8 和 compressed-tensors。",
    ),
    Fact(
        ("怎么量化模型？", "如何量化一个模型？"), "运行 `sophserve quantize`，或者在启动时使用 `--quantization gptq`。"
    ),
    Fact(("什么是词元？", "词元是什么？"), "词元是一小段文字。语言模型按词元读写文字。"),
    Fact(("工作进程崩溃了怎么办？", "工作进程崩溃后会怎样？"), "它会自动重启，答案从中断处继续。"),
    Fact(
        ("sophserve 的答案是确定的吗？", "同样的问题会得到同样的答案吗？"),
        "在 cmodel 上，贪心解码的答案不受其他请求影响。",
    ),
    Fact(
        ("怎么使用流式输出？", "支持流式输出吗？", "什么是流式输出？"),
        '在请求中设置 `"stream": true`，答案就会逐个词元返回。',
    ),
    Fact(("支持工具调用吗？", "怎么使用工具调用？"), "在请求中发送 `tools` 即可，和 OpenAI 相同。"),
    Fact(("支持结构化输出吗？", "怎么得到 JSON？"), "使用 `response_format` 和 JSON 模式即可。"),
    Fact(
        ("怎么用 Docker 运行 sophserve？", "支持 Docker 吗？"),
        "先运行 `docker build -t sophserve .`，再用 `docker run` 启动。",
    ),
    Fact(("怎么查看指标？", "指标在哪里？", "支持 Prometheus 吗？"), "Prometheus 指标在 `/metrics`。"),
    Fact(("怎么知道模型已经可用？", "怎么检查服务器状态？"), "访问 `/health`。模型可用时返回 200，加载时返回 503。"),
    Fact(("为什么返回 503？", "503 是什么意思？"), "模型还在加载，或者服务器正在重启或停止。请稍后再试。"),
    Fact(("怎么测量服务器的速度？", "sophserve load 是什么？"), "使用 `sophserve load`，它会发送许多请求并测量速度。"),
    Fact(
        ("怎么知道模型需要多少内存？", "sophserve plan 是什么？"),
        "使用 `sophserve plan`，它在下载之前就能算出需要多少内存。",
    ),
    Fact(
        ("sophserve 和 vLLM 哪个快？", "sophserve 快吗？"), "在两个 CPU 核上运行 Qwen2 0.5B 时，sophserve 比 vLLM 快。"
    ),
    Fact(("有网页吗？", "对话页面在哪里？"), "用浏览器打开 `http://localhost:8000/`。"),
    Fact(("演示模型是什么？", "什么是演示模型？", "介绍一下演示模型。", "`--model demo` 是什么？"), DEMO),
    Fact(("演示模型有多大？", "演示模型有多少参数？"), DEMO_SIZE),
    Fact(("演示模型可靠吗？", "演示模型会出错吗？", "演示模型有什么局限？"), DEMO_LIMITS),
    Fact(("演示模型是怎么训练的？", "演示模型从哪里来？"), DEMO_TRAINING),
    Fact(
        ("demo-gptq 是什么？", "什么是 demo-gptq？"),
        "`demo-gptq` 是 4 位的演示模型，用 `sophserve --model demo-gptq` 启动。",
    ),
)
RUNNING_ON = Fact(
    ("你运行在什么软件上？", "你在哪里运行？", "你用的是什么服务器？", "你运行在什么上面？"),
    "我运行在 sophserve 上，它是一个大语言模型服务器。",
)
DEMO_FOLLOW_UPS = (
    Fact(("它有多大？", "它有多少参数？"), DEMO_SIZE),
    Fact(("它可靠吗？", "它会出错吗？", "它有什么局限？"), DEMO_LIMITS),
    Fact(("它是怎么训练的？", "它从哪里来？"), DEMO_TRAINING),
)

OPTIONS = (
    ("--port", "设置监听的端口", "8000"),
    ("--host", "设置监听的地址", "localhost"),
    ("--dtype", "选择计算的精度", "auto"),
    ("--device", "选择计算的设备", "auto"),
    ("--tensor-parallel-size", "设置共同运行一个模型的工作进程数", "1"),
    ("--max-num-seqs", "限制一步中的请求数", "256"),
    ("--max-num-batched-tokens", "限制一步中的词元数", "2048"),
    ("--block-size", "设置 KV 缓存每块的词元数", "16"),
    ("--kv-cache-memory", "设置 KV 缓存的内存", "auto"),
    ("--max-queued-requests", "限制排队的请求数", "1024"),
    ("--step-timeout", "设置工作进程多少秒没有动静就重启", "60"),
    ("--max-restarts", "限制十分钟内的重启次数", "5"),
    ("--drain-timeout", "设置停止时留给请求的秒数", "30"),
)
OPTION_QUESTIONS = (
    "{name} 是什么？",
    "{name} 有什么用？",
    "选项 {name} 是做什么的？",
    "解释一下 {name}。",
    "{name} 是什么意思？",
)
DEFAULT_QUESTIONS = ("{name} 的默认值是多少？", "{name} 默认是多少？", "选项 {name} 的默认值是什么？")
SERVED_MODELS = ("Llama 2", "Llama 3", "Mistral", "Qwen2", "Qwen2.5", "Qwen3", "QwQ", "Qwen2-7B")
SERVED_QUESTIONS = (
    "sophserve 支持 {model} 吗？",
    "sophserve 能运行 {model} 吗？",
    "可以用 sophserve 运行 {model} 吗？",
)


def asked(random: Random, question: str) -> str:
    """The question as one user or another would type it."""
    chance = random.random()
    if chance < 0.65:
        return question
    if chance < 0.8:
        return question[:-1]
    if chance < 0.92 and not question.startswith("请"):
        return f"请问，{question}" if question.endswith("？") else f"请{question}"
    return f"你好，{question}"


def turn(random: Random, fact: Fact) -> Turn:
    """One of the fact's questions, and its answer."""
    return Turn(asked(random, random.choice(fact.questions)), fact.answer)


def introduction(random: Random) -> list[Turn]:
    """What sophserve is, and sometimes further questions about it."""
    if random.random() < 0.1:
        return [turn(random, IN_DETAIL)]
    turns = [turn(random, INTRODUCTION)]
    for fact in random.sample(FOLLOW_UPS, random.choice((0, 0, 1, 1, 2))):
        turns.append(Turn(random.choice(fact.questions), fact.answer))
    return turns


def running_on(random: Random) -> list[Turn]:
    """What the model runs on."""
    return [turn(random, RUNNING_ON)]


def known_fact(random: Random) -> list[Turn]:
    """One of the facts about sophserve."""
    fact = random.choice(FACTS)
    turns = [turn(random, fact)]
    if fact.answer == DEMO:
        for follow_up in random.sample(DEMO_FOLLOW_UPS, random.choice((0, 1, 2))):
            turns.append(Turn(random.choice(follow_up.questions), follow_up.answer))
    return turns


def option(random: Random) -> list[Turn]:
    """What an option does, or what its default is."""
    name, effect, default = random.choice(OPTIONS)
    if random.random() < 0.3:
        return [Turn(asked(random, filled(random, DEFAULT_QUESTIONS, name=name)), f"`{name}` 的默认值是 {default}。")]
    return [
        Turn(asked(random, filled(random, OPTION_QUESTIONS, name=name)), f"`{name}` {effect}，默认值是 {default}。")
    ]


def served_model(random: Random) -> list[Turn]:
    """Whether sophserve serves a model."""
    model = random.choice(SERVED_MODELS)
    return [Turn(asked(random, filled(random, SERVED_QUESTIONS, model=model)), f"支持，sophserve 可以运行 {model}。")]


TOPICS: dict[Topic, float] = {
    introduction: 4,
    running_on: 0.5,
    known_fact: 4,
    option: 1,
    served_model: 0.5,
}
