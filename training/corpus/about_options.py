"""The options of sophserve and its environment variables."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from training.corpus.conversation import Topic, Turn, filled
from training.corpus.wording import phrased


class Option(NamedTuple):
    """What an option is called, does and is when nothing is given; values to set it to, if it takes any."""

    name: str
    purpose: str  # after "How do I" or "Which option can"
    effect: str  # after the option's name
    default: str = ""
    values: tuple[str, ...] = ()


OPTIONS = (
    Option(
        "--host",
        "choose the address to listen on",
        "sets the address where the server listens",
        "localhost",
        ("0.0.0.0", "127.0.0.1"),
    ),
    Option(
        "--port",
        "change the port",
        "sets the port where the server listens",
        "8000",
        ("80", "8001", "8080", "9000", "5000", "7000"),
    ),
    Option(
        "--served-model-name",
        "give the model another name",
        "sets the name of the model for clients",
        "the model argument",
        ("my-model", "qwen", "chat"),
    ),
    Option("--device", "choose the device", "chooses the device that computes", "auto", ("cmodel",)),
    Option(
        "--dtype",
        "choose the number format",
        "chooses the number format of the computation",
        "auto",
        ("float32", "float16", "bfloat16"),
    ),
    Option(
        "--quantization",
        "quantize a plain model on loading",
        "quantizes a plain model on loading",
        "the format of the checkpoint",
        ("gptq", "fp8"),
    ),
    Option(
        "--reorder-cache-dir",
        "move the reorder cache",
        "says where packed weights are kept",
        "a folder beside the model",
        ("/data/cache",),
    ),
    Option(
        "--tensor-parallel-size",
        "split a model between devices",
        "sets how many workers share a model",
        "1",
        ("2", "4", "8"),
    ),
    Option(
        "--max-model-len",
        "limit the length of prompt and answer",
        "sets the longest prompt plus answer in tokens",
        "taken from config.json",
        ("2048", "4096", "8192"),
    ),
    Option(
        "--max-num-seqs",
        "limit the requests in one step",
        "limits how many requests one step may hold",
        "256",
        ("8", "32", "64", "128"),
    ),
    Option(
        "--max-num-batched-tokens",
        "limit the tokens in one step",
        "limits how many tokens one step may hold",
        "2048",
        ("100", "512", "1024", "4096"),
    ),
    Option(
        "--block-size",
        "change the size of a KV cache block",
        "sets how many tokens a block of the KV cache holds",
        "16",
    ),
    Option(
        "--kv-cache-memory",
        "set the memory of the KV cache",
        "sets the memory of the KV cache",
        "auto",
        ("1GiB", "2GiB", "4GiB", "8GiB"),
    ),
    Option(
        "--scheduling-policy",
        "serve important requests first",
        "chooses which requests go first",
        "fcfs",
        ("priority",),
    ),
    Option(
        "--step-timeout",
        "restart a silent worker sooner",
        "sets after how many silent seconds a worker is restarted",
        "60",
        ("20", "30", "120"),
    ),
    Option(
        "--max-restarts",
        "limit the restarts of workers",
        "limits the restarts of workers within ten minutes",
        "5",
        ("1", "3", "10"),
    ),
    Option(
        "--api-key", "set an API key", "sets a key that clients have to send", "", ("sk-alice", "sk-secret", "my-key")
    ),
    Option(
        "--max-queued-requests", "limit the queue", "limits how many requests may wait", "1024", ("100", "200", "500")
    ),
    Option(
        "--max-queue-time",
        "limit the time in the queue",
        "limits how many seconds a request may wait",
        "",
        ("5", "10", "30", "60"),
    ),
    Option(
        "--tool-call-parser",
        "choose the parser of tool calls",
        "chooses how tool calls are read",
        "auto",
        ("hermes", "llama3_json", "mistral"),
    ),
    Option(
        "--reasoning-parser",
        "choose the parser of reasoning",
        "chooses how reasoning is read",
        "auto",
        ("qwen3", "deepseek_r1"),
    ),
    Option(
        "--pooling",
        "choose how embeddings are made",
        "chooses how embeddings are made",
        "last, unless the checkpoint says otherwise",
        ("last", "mean"),
    ),
    Option(
        "--response-store-memory",
        "limit the memory of stored responses",
        "limits the memory of stored responses",
        "64MiB",
        ("16MiB", "128MiB"),
    ),
    Option(
        "--root-path",
        "serve under a path behind a proxy",
        "sets the path under which a proxy shows the server",
        "",
        ("/llm", "/ai"),
    ),
    Option(
        "--sse-keep-alive-interval",
        "keep silent streams alive",
        "sets after how many seconds a silent stream sends a comment",
        "10",
        ("5", "20"),
    ),
    Option("--log-format", "change the format of the log", "chooses the format of the log", "text", ("json",)),
    Option(
        "--drain-timeout",
        "give running requests more time at the end",
        "sets how many seconds running requests get when the server stops",
        "30",
        ("60", "90"),
    ),
    Option(
        "--config",
        "read the options from a file",
        "reads the options from a TOML file",
        "",
        ("server.toml", "/etc/sophserve.toml"),
    ),
)

# Switches: the name, what it is about, and whether it is on by itself.
SWITCHES = (
    ("enable-prefix-caching", "prefix caching", True),
    ("enable-chunked-prefill", "chunked prefill", True),
    ("ui", "the playground page", True),
    ("reject-unknown-fields", "the refusal of unknown fields", False),
    ("log-requests", "the logging of prompts", False),
    ("trust-request-chat-template", "chat templates from requests", False),
)

ENVIRONMENT = (
    ("OMP_NUM_THREADS", "sets the CPU threads of the cmodel. The default is the number of physical cores"),
    ("CHIP_MAP", "names the devices of the workers in order, such as `0,1`"),
    ("CMODEL_ISA", "forces the instruction set of the kernels, such as avx2 or amx"),
    ("ENABLE_PROFILE", "set to 1 records a profile from the first step on"),
    ("SOPHSERVE_API_KEY", "sets an API key, just as `--api-key` does"),
    ("DEVICE", "chooses the device, just as `--device` does"),
)

EFFECT_QUESTIONS = (
    "What does {name} do?",
    "What does `{name}` do?",
    "What is {name}?",
    "What is {name} for?",
    "What is the option {name} for?",
    "What does the option {name} do?",
    "Explain {name}.",
    "Explain the option {name}.",
    "Tell me about {name}.",
    "What is the meaning of {name}?",
)
DEFAULT_QUESTIONS = (
    "What is the default of {name}?",
    "What is the default of `{name}`?",
    "What is the default value of {name}?",
    "What is {name} by default?",
    "Which default does {name} have?",
    "Tell me the default of {name}.",
)
DEFAULT_FOLLOW_UPS = ("What is its default?", "And the default?", "What is the default?", "And what is its default?")
PURPOSE_QUESTIONS = (
    "How do I {purpose}?",
    "How can I {purpose}?",
    "Which option do I need to {purpose}?",
    "What do I do to {purpose}?",
    "How do I {purpose} in sophserve?",
    "I want to {purpose}. Which option is it?",
)
VALUE_QUESTIONS = (
    "How do I set {name} to {value}?",
    "Show me the command with {name} {value}.",
    "How do I start sophserve with {name} {value}?",
)
SWITCH_OFF = (
    "How do I turn off {about}?",
    "How do I switch off {about}?",
    "How can I disable {about}?",
    "Which option turns off {about}?",
)
SWITCH_ON = (
    "How do I turn on {about}?",
    "How do I switch on {about}?",
    "How can I enable {about}?",
    "Which option turns on {about}?",
)
MODEL_PATHS = ("/data/Qwen2-7B", "/data/Qwen2.5-0.5B-Instruct", "/data/Llama3.1-8B", "/data/QwQ-32B", "demo")


def default_answer(option: Option) -> str:
    """What the option is when nothing is given."""
    if option.default:
        return f"The default of `{option.name}` is {option.default}."
    return f"`{option.name}` is not set by default."


def option_effect(random: Random) -> list[Turn]:
    """What an option does, and sometimes its default."""
    option = random.choice(OPTIONS)
    default = f" The default is {option.default}." if option.default else ""
    question = phrased(random, filled(random, EFFECT_QUESTIONS, name=option.name))
    turns = [Turn(question, f"`{option.name}` {option.effect}.{default}")]
    if random.random() < 0.25:
        turns.append(Turn(phrased(random, random.choice(DEFAULT_FOLLOW_UPS)), default_answer(option)))
    return turns


def option_default(random: Random) -> list[Turn]:
    """What the default of an option is."""
    option = random.choice(OPTIONS)
    return [Turn(phrased(random, filled(random, DEFAULT_QUESTIONS, name=option.name)), default_answer(option))]


def option_for_purpose(random: Random) -> list[Turn]:
    """Which option does something."""
    option = random.choice(OPTIONS)
    question = phrased(random, filled(random, PURPOSE_QUESTIONS, purpose=option.purpose))
    example = f", such as `{option.name} {option.values[0]}`" if option.values else ""
    return [Turn(question, f"Use the option `{option.name}`{example}.")]


def option_value(random: Random) -> list[Turn]:
    """The command that sets an option to a value."""
    option = random.choice([option for option in OPTIONS if option.values])
    value, model = random.choice(option.values), random.choice(MODEL_PATHS)
    question = phrased(random, filled(random, VALUE_QUESTIONS, name=option.name, value=value))
    if random.random() < 0.5:
        question = f"I serve {model}. {question}"
    else:
        model = MODEL_PATHS[0]
    return [Turn(question, f"Run `sophserve --model {model} {option.name} {value}`.")]


def switch(random: Random) -> list[Turn]:
    """How something is turned on or off."""
    name, about, is_on = random.choice(SWITCHES)
    if is_on:
        answer = f"Start the server with `--no-{name}`."
        return [Turn(phrased(random, filled(random, SWITCH_OFF, about=about)), answer)]
    answer = f"Start the server with `--{name}`."
    return [Turn(phrased(random, filled(random, SWITCH_ON, about=about)), answer)]


def environment_variable(random: Random) -> list[Turn]:
    """What an environment variable does."""
    name, effect = random.choice(ENVIRONMENT)
    patterns = (
        "What does {name} do?",
        "What is {name}?",
        "What is {name} for?",
        "Explain {name}.",
        "Tell me about {name}.",
    )
    return [Turn(phrased(random, filled(random, patterns, name=name)), f"The environment variable `{name}` {effect}.")]


def all_options(random: Random) -> list[Turn]:
    """Where all options are listed."""
    patterns = (
        "Which options are there?",
        "What options does sophserve have?",
        "Where do I find all options?",
        "How do I list all options?",
        "Show me the options of sophserve.",
    )
    return [Turn(phrased(random, random.choice(patterns)), "Run `sophserve --help`. It lists all options.")]


TOPICS: dict[Topic, float] = {
    option_effect: 2.5,
    option_default: 1,
    option_for_purpose: 2,
    option_value: 1,
    switch: 0.6,
    environment_variable: 0.4,
    all_options: 0.2,
}
