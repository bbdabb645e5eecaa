"""How sophserve is used: clients, commands, endpoints and operation."""

from __future__ import annotations

from random import Random

from training.corpus.about import CHAT, CURL, EMBEDDED, PYTHON_CODE
from training.corpus.about_facts import Fact, one_of
from training.corpus.conversation import Topic, Turn, filled
from training.corpus.wording import phrased

CLIENTS = (
    Fact(
        (
            "How do I use sophserve from Python?",
            "How do I use the OpenAI client with sophserve?",
            "Show me a Python example.",
            "How can I call sophserve from Python?",
            "Give me a Python example for sophserve.",
            "How do I ask sophserve a question in Python?",
        ),
        PYTHON_CODE,
    ),
    Fact(
        (
            "How do I use sophserve with curl?",
            "Show me a curl example.",
            "Give me a curl example.",
            "How do I send a request with curl?",
            "How do I ask sophserve with curl?",
        ),
        CURL,
    ),
    Fact(
        (
            "How do I embed sophserve in a program?",
            "How do I use the LLM class?",
            "How do I use sophserve without a server?",
            "Can I use sophserve inside a Python program?",
            "Show me an example of the LLM class.",
        ),
        EMBEDDED,
    ),
    Fact(
        (
            "How do I chat with the model?",
            "How can I chat with a model in sophserve?",
            "How do I chat in the terminal?",
            "What does `sophserve chat` do?",
            "Is there a chat command?",
        ),
        CHAT,
    ),
    Fact(
        (
            "Which clients work with sophserve?",
            "Can I use the OpenAI client?",
            "Does the OpenAI client work with sophserve?",
            "Which API does sophserve speak?",
            "What API does sophserve have?",
        ),
        "sophserve speaks the OpenAI API. Any OpenAI client works; set its base URL to `http://localhost:8000/v1`.",
    ),
    Fact(
        (
            "What is the base URL?",
            "Which base URL do I use?",
            "What URL does sophserve have?",
            "At which address does sophserve answer?",
        ),
        "The base URL is `http://localhost:8000/v1`.",
    ),
    Fact(
        (
            "What is the default port?",
            "Which port does sophserve use?",
            "What port does sophserve listen on?",
            "On which port does sophserve run?",
        ),
        "sophserve listens on port 8000 by default. `--port` changes that.",
    ),
    Fact(
        (
            "How do I make sophserve reachable from other machines?",
            "Why can I not reach sophserve from another machine?",
            "How do I listen on all addresses?",
            "Nothing reaches my server. Why?",
        ),
        "It listens on localhost by default. Start it with `--host 0.0.0.0`, and set an API key.",
    ),
    Fact(
        (
            "How do I set an API key?",
            "How do I protect sophserve with a key?",
            "How do I use an API key?",
            "How can I secure sophserve?",
            "How do I set a password?",
        ),
        "Start the server with `--api-key` and a key of your choice. Clients have to send the same key.",
    ),
    Fact(
        (
            "How do I stream an answer?",
            "How does streaming work?",
            "How do I get the answer token by token?",
            "How do I turn on streaming?",
        ),
        'Set `"stream": true` in the request. The answer then comes token by token.',
    ),
    Fact(
        (
            "How do I get JSON?",
            "How do I get structured output?",
            "How does structured output work?",
            "Can the model answer in JSON?",
            "How do I force a JSON schema?",
        ),
        "Use `response_format` with a JSON schema. The answer then fits the schema.",
    ),
    Fact(
        (
            "How do tool calls work?",
            "How do I use tools?",
            "Can the model call functions?",
            "How does function calling work?",
        ),
        "Send `tools` in the request, as with OpenAI. The model's calls come back in `tool_calls`.",
    ),
    Fact(
        (
            "What is the playground?",
            "Is there a web page?",
            "Does sophserve have a web page?",
            "Tell me about the playground page.",
            "Where is the playground?",
        ),
        "The playground is a page to chat with the model. Open `http://localhost:8000/` in a browser.",
    ),
    Fact(
        ("What can the playground do?", "What does the playground show?", "What can I see in the playground?"),
        "The playground shows the chat, the probabilities of each token, and a live view of the server.",
    ),
)

OPERATION = (
    Fact(
        (
            "How do I run sophserve in Docker?",
            "Can I use Docker?",
            "Is there a Docker image?",
            "How do I use Docker with sophserve?",
            "Does sophserve run in Docker?",
        ),
        "Run `docker build -t sophserve .` and then `docker run` with port 8000 and your models. "
        "Give the server `--host 0.0.0.0`.",
    ),
    Fact(
        (
            "Does sophserve run on Kubernetes?",
            "Can I deploy sophserve on Kubernetes?",
            "How do I deploy sophserve on Kubernetes?",
        ),
        "Yes. Run `kubectl apply -f deploy/kubernetes.yaml`.",
    ),
    Fact(
        (
            "How do I monitor sophserve?",
            "Does sophserve have metrics?",
            "Where are the metrics?",
            "How do I use Prometheus with sophserve?",
            "Is there a Grafana dashboard?",
        ),
        "The metrics for Prometheus are at `/metrics`. There is a Grafana dashboard in `deploy/grafana`.",
    ),
    Fact(
        (
            "How do I check that the server is ready?",
            "Is there a health check?",
            "How do I know that the model is loaded?",
            "How do I check the health of the server?",
        ),
        "Ask `/health`. It answers 200 when the model is ready, and 503 while it loads.",
    ),
    Fact(
        ("How do I stop sophserve?", "How do I end the server?", "What happens when the server stops?"),
        "Press Ctrl-C once. Running requests get 30 seconds to finish.",
    ),
    Fact(
        ("Why do I get 503?", "What does a 503 mean?", "The server answers 503. Why?", "What does error 503 mean?"),
        "The model is still loading, a worker restarts, or the server stops. Try again a little later.",
    ),
    Fact(
        ("Why do I get 429?", "What does a 429 mean?", "The server answers 429. Why?", "What does error 429 mean?"),
        "The queue is full, or the limit of your key is reached. Wait as long as `Retry-After` says.",
    ),
    Fact(
        ("The port is in use. What can I do?", "What do I do when the port is in use?", "What if port 8000 is in use?"),
        "Another server uses the port. Stop it, or choose another one with `--port`.",
    ),
    Fact(
        (
            "Why is sophserve slow?",
            "sophserve is slow. What can I do?",
            "How do I make sophserve faster?",
            "Why are the answers slow?",
        ),
        "Look at the line `device: cmodel` in the log. It names the kernels in use; without a C++ "
        "compiler at installation they are slow.",
    ),
    Fact(
        (
            "What does it mean that the worker was killed by signal 9?",
            "Why was the worker killed?",
            "I am out of memory. What can I do?",
            "There is not enough memory. What can I do?",
        ),
        "There was not enough memory. Lower `--kv-cache-memory`, or use a quantized model.",
    ),
    Fact(
        (
            "How do I save memory?",
            "How do I serve a model with less memory?",
            "How can I make a model smaller?",
            "How do I quantize a model?",
        ),
        "Start the server with `--quantization gptq`. The weights then take about a quarter of the memory.",
    ),
    Fact(
        (
            "How do I write a plugin?",
            "How do I add a model?",
            "Can I add my own model?",
            "How do I add a device?",
            "What can a plugin do?",
        ),
        "A plugin is a Python package that adds a model or a device. The folder `docs/` explains how to write one.",
    ),
    Fact(
        (
            "Where is the documentation?",
            "Where can I read more about sophserve?",
            "Is there documentation?",
            "Where do I find help?",
        ),
        "Read `README.md` and the folder `docs/`. There is also a Chinese README.",
    ),
    Fact(
        ("How do I clear the reorder cache?", "How do I delete the reorder cache?", "Can I remove the reorder cache?"),
        "Run `sophserve cache clear --model` with the model. The cache is made anew at the next start.",
    ),
    Fact(
        ("How do I record a profile?", "How do I profile the server?", "How do I see where the time goes?"),
        "Start the server with `ENABLE_PROFILE=1`, and then run `sophserve profile . drawn`. Open "
        "`drawn/profile.html`.",
    ),
    Fact(
        ("Which commands does sophserve have?", "What commands are there?", "List the commands of sophserve."),
        "There are `sophserve chat`, `load`, `bench`, `plan`, `profile`, `quantize`, `cache` and "
        "`plugins`. Without a command it starts the server.",
    ),
)

COMMANDS = (
    ("chat", "lets you chat with a model in the terminal"),
    ("load", "sends many requests to a server and measures its speed"),
    ("bench", "measures a model without a server"),
    ("plan", "says how much memory a model takes, before anything is downloaded"),
    ("profile", "draws a recorded profile as a web page"),
    ("quantize", "writes a quantized copy of a model"),
    ("cache", "lists or clears the reorder cache"),
    ("plugins", "lists the plugins that are installed"),
)
COMMAND_PURPOSES = (
    ("chat", "chat with a model in the terminal"),
    ("load", "measure the speed of a server"),
    ("bench", "measure a model without a server"),
    ("plan", "find out how much memory a model takes"),
    ("profile", "draw a profile"),
    ("quantize", "write a quantized copy of a model"),
    ("plugins", "list the installed plugins"),
)
COMMAND_QUESTIONS = (
    "What does `sophserve {name}` do?",
    "What does sophserve {name} do?",
    "What is `sophserve {name}`?",
    "What is sophserve {name} for?",
    "What is the command `sophserve {name}` for?",
    "Explain sophserve {name}.",
    "Tell me about sophserve {name}.",
)
PURPOSE_QUESTIONS = (
    "How do I {purpose}?",
    "How can I {purpose}?",
    "Which command do I use to {purpose}?",
    "I want to {purpose}. How?",
)

ENDPOINTS = (
    ("/v1/chat/completions", "answers a conversation"),
    ("/v1/completions", "continues a text"),
    ("/v1/responses", "is OpenAI's Responses API"),
    ("/v1/messages", "is Anthropic's Messages API"),
    ("/v1/embeddings", "makes embeddings of texts"),
    ("/v1/models", "lists the names of the served models"),
    ("/tokenize", "turns a text into tokens"),
    ("/detokenize", "turns tokens into a text"),
    ("/health", "answers 200 when the model is ready, and 503 while it loads"),
    ("/metrics", "shows the metrics for Prometheus"),
    ("/server_info", "shows the options, the model and its memory"),
    ("/requests", "lists the waiting and running requests"),
    ("/reset_prefix_cache", "forgets the cached prompts"),
    ("/start_profile", "starts the recording of a profile"),
    ("/openapi.json", "describes all endpoints"),
)
ENDPOINT_QUESTIONS = (
    "What does {path} do?",
    "What does `{path}` do?",
    "What is {path}?",
    "What is the endpoint {path} for?",
    "Explain the endpoint {path}.",
    "Tell me about {path}.",
)


def command(random: Random) -> list[Turn]:
    """What a command does."""
    name, effect = random.choice(COMMANDS)
    return [Turn(phrased(random, filled(random, COMMAND_QUESTIONS, name=name)), f"`sophserve {name}` {effect}.")]


def command_for_purpose(random: Random) -> list[Turn]:
    """Which command does something."""
    name, purpose = random.choice(COMMAND_PURPOSES)
    return [
        Turn(
            phrased(random, filled(random, PURPOSE_QUESTIONS, purpose=purpose)), f"Use the command `sophserve {name}`."
        )
    ]


def endpoint(random: Random) -> list[Turn]:
    """What an endpoint does."""
    path, effect = random.choice(ENDPOINTS)
    return [Turn(phrased(random, filled(random, ENDPOINT_QUESTIONS, path=path)), f"The endpoint `{path}` {effect}.")]


TOPICS: dict[Topic, float] = {
    one_of(CLIENTS, "clients"): 4,
    one_of(OPERATION, "operation"): 3,
    command: 1,
    command_for_purpose: 0.7,
    endpoint: 1,
}
