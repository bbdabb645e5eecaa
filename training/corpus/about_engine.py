"""How sophserve works: its notions, the chip, models and their memory."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from training.corpus.about_facts import (
    DETAIL_QUESTIONS,
    SUPPORT_QUESTIONS,
    Fact,
    one_of,
    questions_about,
    turn,
)
from training.corpus.conversation import Topic, Turn, filled
from training.corpus.wording import phrased


class Notion(NamedTuple):
    """A term, what it means, more about it, and questions that may follow."""

    term: str
    meaning: str
    more: str = ""
    follow_ups: tuple[Fact, ...] = ()


ON_BY_DEFAULT = ("Is it on by default?", "Is it on?", "Do I have to turn it on?", "How do I turn it on?")
TURNED_OFF = ("How do I turn it off?", "How can I switch it off?", "Can I turn it off?", "How do I disable it?")
WHY = ("Why is it useful?", "What is it good for?", "Why does that help?", "What is the advantage?")

NOTIONS = (
    Notion(
        "prefix caching",
        "With prefix caching, prompts that begin alike are computed only once. This also helps the "
        "turns of a conversation.",
        "With prefix caching, the server keeps the keys and values of earlier prompts. A new prompt "
        "with the same beginning "
        "takes them over, so only its new part is computed. It is on by default.",
        (
            Fact(ON_BY_DEFAULT, "It is on by default."),
            Fact(TURNED_OFF, "Start the server with `--no-enable-prefix-caching`."),
            Fact(WHY, "The first token comes sooner, because less of the prompt is computed."),
            Fact(("How do I clear it?", "How can I clear the cache?"), "Send a POST request to `/reset_prefix_cache`."),
        ),
    ),
    Notion(
        "chunked prefill",
        "With chunked prefill, a long prompt is computed in pieces. Other answers go on between the pieces.",
        "With chunked prefill, a long prompt is computed in pieces of limited size. Between the "
        "pieces the server makes the "
        "next tokens of running answers, so nobody has to wait for a long prompt. It is on by default.",
        (
            Fact(ON_BY_DEFAULT, "It is on by default."),
            Fact(TURNED_OFF, "Start the server with `--no-enable-chunked-prefill`."),
            Fact(WHY, "Running answers do not have to wait for a long prompt."),
            Fact(
                ("How large are the pieces?", "Which option sets the size?"),
                "The option `--max-num-batched-tokens` limits the tokens of a step.",
            ),
        ),
    ),
    Notion(
        "continuous batching",
        "With continuous batching, new requests join the running ones at any step. Nobody waits for "
        "a whole batch to end.",
        "With continuous batching, the server decides at each step which requests to compute. "
        "Running answers come first, "
        "and new requests join as soon as there is room.",
        (Fact(WHY, "Many users can be answered at the same time."),),
    ),
    Notion(
        "tensor parallel",
        "With tensor parallel, several workers share one model, each on a device of its own. The "
        "option is `--tensor-parallel-size`.",
        "",
        (
            Fact(
                ("Which option is it?", "How do I use it?", "How do I turn it on?"),
                "Give `--tensor-parallel-size` the number of devices.",
            ),
            Fact(WHY, "A model that is too large for one device can be served."),
        ),
    ),
    Notion(
        "the KV cache",
        "The KV cache is the memory for the keys and values of the tokens so far, so they are computed only once.",
        "The KV cache is the memory for the keys and values of the tokens so far. It is divided "
        "into blocks of 16 tokens. "
        "Its size is set with `--kv-cache-memory`; by default it takes up to 60 % of the free memory.",
        (
            Fact(("How large is it?", "How big is it?"), "By default it takes up to 60 % of the free memory."),
            Fact(
                ("How do I set its size?", "How do I make it larger?"),
                "Use the option `--kv-cache-memory`, such as `--kv-cache-memory 2GiB`.",
            ),
        ),
    ),
    Notion(
        "the cmodel",
        "The cmodel is a model of the chip's operators that runs on the CPU. It lets sophserve work without a chip.",
        "The cmodel is a model of the operators of the SG2260 that runs on the CPU. Its kernels are written in C++ for "
        "AVX-512, AVX2 and plain C++, and the best are chosen when the program starts.",
        (
            Fact(
                ("Is it fast?", "Is it slow?"),
                "Its kernels are quick. Without a C++ compiler at installation it still works, but slowly.",
            ),
            Fact(("Does it need a chip?", "Does it need a GPU?"), "No, it runs on the CPU."),
            Fact(("How many threads does it use?",), "It uses the physical cores. `OMP_NUM_THREADS` changes that."),
        ),
    ),
    Notion("the SG2260", "The SG2260 is a TPU made by Sophgo. sophserve is made to serve language models on it."),
    Notion(
        "a TPU", "A TPU is a chip that is made for the computations of neural networks. The SG2260 by Sophgo is one."
    ),
    Notion(
        "quantization",
        "Quantization stores the weights of a model in 4 or 8 bits. The model takes less memory and answers faster.",
        "Quantization stores the weights of a model in 4 or 8 bits, while the computation keeps its usual format. "
        "sophserve reads GPTQ, AWQ, FP8 and compressed-tensors.",
        (
            Fact(
                ("Which formats are there?", "Which formats can it read?"),
                "sophserve reads GPTQ, AWQ, FP8 and compressed-tensors.",
            ),
            Fact(
                ("How do I quantize a model?", "How do I do that?"),
                "Run `sophserve quantize`, or start the server with `--quantization gptq`.",
            ),
        ),
    ),
    Notion("GPTQ", "GPTQ is a format for quantized models. sophserve reads it with 4 and 8 bits."),
    Notion("AWQ", "AWQ is a format for quantized models. sophserve reads it with 4 bits."),
    Notion("FP8", "FP8 is a number format of 8 bits. A model with FP8 weights takes about half of the memory."),
    Notion(
        "the reorder cache",
        "The reorder cache keeps the packed weights of quantized models, so later starts are "
        "faster. It lies beside the model.",
    ),
    Notion(
        "a token",
        "A token is a piece of text, such as a word or a part of a word. Language models read and write tokens.",
    ),
    Notion("a tokenizer", "A tokenizer cuts text into tokens, and turns tokens back into text."),
    Notion("a prompt", "A prompt is the text that is given to a language model. The model answers it."),
    Notion("prefill", "Prefill is the computation of the prompt. It ends with the first token of the answer."),
    Notion("decoding", "Decoding is the making of the answer, one token after the other."),
    Notion(
        "a large language model",
        "A large language model is a program that has learned from much text to write text, one token after the other.",
    ),
    Notion(
        "an embedding",
        "An embedding is a list of numbers that stands for the meaning of a text. `/v1/embeddings` makes them.",
    ),
    Notion(
        "greedy decoding",
        "With greedy decoding, the model always takes the most likely token. Set the temperature to 0 for it.",
    ),
    Notion(
        "the temperature",
        "The temperature says how much chance there is in the answer. With 0 the most likely token is always taken.",
    ),
    Notion("TTFT", "TTFT is the time to the first token of an answer."),
    Notion("TPOT", "TPOT is the time for each further token of an answer."),
    Notion("a worker", "A worker is the process that holds the model and computes. There is one for each device."),
    Notion("the scheduler", "The scheduler decides at each step which requests are computed."),
    Notion("a chat template", "A chat template turns the messages of a conversation into one prompt for the model."),
)

SUPPORTED = (
    ("streaming", 'Yes. Set `"stream": true` in the request, and the answer comes token by token.'),
    ("prefix caching", "Yes. Prefix caching is on by default."),
    ("chunked prefill", "Yes. Chunked prefill is on by default."),
    ("continuous batching", "Yes. New requests join the running ones at any step."),
    ("tensor parallel", "Yes. Set `--tensor-parallel-size` to the number of devices."),
    ("quantization", "Yes. sophserve reads GPTQ, AWQ, FP8 and compressed-tensors."),
    ("GPTQ", "Yes. sophserve reads GPTQ models with 4 and 8 bits."),
    ("AWQ", "Yes. sophserve reads AWQ models with 4 bits."),
    ("FP8", "Yes. sophserve reads FP8 models, and `--quantization fp8` makes one on loading."),
    ("tool calls", "Yes. Tool calls work with the chat template of the model, and nothing needs to be set."),
    ("structured output", "Yes. Use `response_format` with a JSON schema, and the answer fits it."),
    ("embeddings", "Yes. Use the endpoint `/v1/embeddings`."),
    ("HTTPS", "Yes. Set `--ssl-certfile` and `--ssl-keyfile`."),
    ("API keys", "Yes. Set one with `--api-key`."),
    ("plugins", "Yes. A plugin can add a model or a device."),
    ("the Anthropic API", "Yes. Use the endpoint `/v1/messages`."),
    ("the Responses API", "Yes. Use the endpoint `/v1/responses`."),
    ("reasoning models", "Yes. The reasoning comes in a field of its own."),
    ("GGUF files", "No. sophserve only reads safetensors."),
    ("images", "No. sophserve serves text models."),
)

SERVED_MODELS = (
    "Llama 2",
    "Llama 3",
    "Llama 3.1",
    "Mistral",
    "Qwen2",
    "Qwen2.5",
    "Qwen3",
    "QwQ",
    "Llama3.1-8B",
    "Qwen2-7B",
    "Qwen2.5-14B",
    "QwQ-32B",
)
OTHER_MODELS = ("DeepSeek-V3", "DeepSeek-R1", "LLaVA-NeXT", "Qwen2.5-VL", "Qwen2-57B-A14B")
SERVED_QUESTIONS = (
    "Can sophserve serve {model}?",
    "Does sophserve support {model}?",
    "Can I run {model} with sophserve?",
    "Does {model} work with sophserve?",
    "Is {model} supported by sophserve?",
    "Can I use {model} with sophserve?",
)
# The memory of weights: the model, its format, and GiB.
WEIGHTS = (
    ("Llama2-7B", "FP16", "12.6"),
    ("Llama2-7B", "GPTQ", "3.6"),
    ("Llama3.1-8B", "GPTQ", "5.3"),
    ("Llama3.1-70B", "FP16", "131.4"),
    ("Llama3.1-70B", "GPTQ", "36.8"),
    ("Qwen2-7B", "BF16", "14.2"),
    ("Qwen2-7B", "GPTQ", "5.2"),
    ("Qwen2-72B", "GPTQ", "38.5"),
    ("Qwen2.5-14B", "BF16", "27.5"),
    ("QwQ-32B", "BF16", "61.0"),
    ("QwQ-32B", "AWQ", "18.1"),
)
WEIGHT_QUESTIONS = (
    "How much memory does {model} take in {form}?",
    "How much memory do I need for {model} in {form}?",
    "How large is {model} in {form}?",
    "How big is {model} in {form}?",
)


def notion(random: Random) -> list[Turn]:
    """What a term means, and sometimes more about it."""
    chosen = random.choice(NOTIONS[:9] if random.random() < 0.5 else NOTIONS)
    if chosen.more and random.random() < 0.2:
        return [turn(random, Fact(questions_about(chosen.term, DETAIL_QUESTIONS), chosen.more))]
    turns = [turn(random, Fact(questions_about(chosen.term), chosen.meaning))]
    if chosen.follow_ups:
        count = random.choice((0, 1, 1, 2))
        turns += [turn(random, fact) for fact in random.sample(chosen.follow_ups, min(count, len(chosen.follow_ups)))]
    return turns


def supported(random: Random) -> list[Turn]:
    """Whether sophserve can do something."""
    feature, answer = random.choice(SUPPORTED)
    return [turn(random, Fact(questions_about(feature, SUPPORT_QUESTIONS), answer))]


def served_model(random: Random) -> list[Turn]:
    """Whether sophserve serves a model."""
    served = random.random() < 0.75
    model = random.choice(SERVED_MODELS if served else OTHER_MODELS)
    question = phrased(random, filled(random, SERVED_QUESTIONS, model=model))
    return [
        Turn(question, f"Yes, sophserve can serve {model}." if served else f"No, sophserve does not serve {model}.")
    ]


def model_memory(random: Random) -> list[Turn]:
    """How much memory the weights of a model take."""
    model, form, size = random.choice(WEIGHTS)
    question = phrased(random, filled(random, WEIGHT_QUESTIONS, model=model, form=form))
    return [Turn(question, f"The weights of {model} take about {size} GiB in {form}.")]


PROPERTIES = (
    Fact(
        (
            "Which models can sophserve serve?",
            "What models does sophserve support?",
            "Which models does sophserve run?",
            "Which models are supported?",
            "List the models of sophserve.",
        ),
        "sophserve serves Llama, Mistral, Qwen2, Qwen2.5, QwQ and Qwen3 models.",
    ),
    Fact(
        (
            "Which quantization formats does sophserve read?",
            "Which quantized models can sophserve serve?",
            "What quantization does sophserve support?",
        ),
        "sophserve reads GPTQ, AWQ, FP8 and compressed-tensors.",
    ),
    Fact(
        (
            "What happens when a worker crashes?",
            "What if a worker crashes?",
            "What does sophserve do when a worker hangs?",
            "Are requests lost when a worker crashes?",
            "Is sophserve robust?",
        ),
        "The worker is restarted, and its answers go on where they were. Only a request that takes "
        "the worker down twice fails.",
    ),
    Fact(
        (
            "Is sophserve deterministic?",
            "Does sophserve give the same answer twice?",
            "Are the answers of sophserve deterministic?",
        ),
        "Yes. On the cmodel, greedy answers do not depend on other requests. With a `seed`, the "
        "answer is the same under any load.",
    ),
    Fact(
        (
            "Is sophserve fast?",
            "How fast is sophserve?",
            "Is sophserve faster than vLLM?",
            "Is sophserve quicker than vLLM?",
            "How does its speed compare with vLLM?",
        ),
        "On two CPU cores, sophserve was faster than vLLM with Qwen2 0.5B: 32 tokens per second "
        "against 22.6, one request at a time.",
    ),
    Fact(
        (
            "How does sophserve differ from vLLM?",
            "What is the difference between sophserve and vLLM?",
            "Is sophserve like vLLM?",
            "sophserve or vLLM?",
        ),
        "sophserve is made for SG2260 TPUs and the CPU. It takes vLLM's sampling parameters, and "
        "its metrics have the same names.",
    ),
    Fact(
        (
            "Which file formats does sophserve read?",
            "Which format must the weights have?",
            "What format do models need?",
            "Does sophserve read pickle files?",
        ),
        "sophserve reads safetensors files, as they are on the Hugging Face Hub.",
    ),
    Fact(
        ("Where do I get models for sophserve?", "Can sophserve download models?", "How do I download a model?"),
        "Give `--model` a Hub id, such as `Qwen/Qwen2.5-0.5B-Instruct`. It is downloaded once.",
    ),
    Fact(
        (
            "How is sophserve built?",
            "What is the architecture of sophserve?",
            "How does sophserve work?",
            "How does sophserve work inside?",
            "Which processes does sophserve start?",
        ),
        "There is one server process and one worker for each device. The server plans the steps, "
        "and the workers compute them.",
    ),
    Fact(
        (
            "Does sophserve send data to anyone?",
            "Is my data safe with sophserve?",
            "Does sophserve log my prompts?",
            "Are prompts logged?",
        ),
        "Nothing is reported to anyone. Prompts are logged only with `--log-requests`.",
    ),
)

TOPICS: dict[Topic, float] = {
    notion: 5,
    supported: 2,
    served_model: 1.5,
    model_memory: 0.7,
    one_of(PROPERTIES, "properties"): 2,
}
