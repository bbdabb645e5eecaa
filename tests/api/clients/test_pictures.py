"""Pictures in the libraries that applications are written with."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.api.images import PLACEHOLDER, digest_of, picture

pytestmark = pytest.mark.clients

URL = picture("a")
DATA = URL.partition(",")[2]
QUESTION = "Which bird?"
PARTS = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": URL}}]
PROMPT = f"<|im_start|>user\n{QUESTION}[{PLACEHOLDER * 3}]<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def answer(seeing: Any) -> None:
    seeing.engine.text = "A gull."


def check(app: Any, said: str) -> None:
    assert (said, app.prompt) == ("A gull.", PROMPT)
    assert [item.digest for item in app.engine.items[-1]] == [digest_of(URL)]


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("part", [PARTS[1], {"type": "image", "base64": DATA, "mime_type": "image/png"}])
async def test_langchain(seeing: Any, responses: bool, part: dict[str, Any]) -> None:
    import langchain_openai as openai
    from langchain_core.messages import HumanMessage

    model = openai.ChatOpenAI(
        model="tiny", base_url=f"{seeing.url}/v1", api_key="none", max_retries=0, use_responses_api=responses
    )
    chunks = [chunk async for chunk in model.astream([HumanMessage(content=[PARTS[0], part])])]
    check(seeing, "".join(chunk.text for chunk in chunks))
    check(seeing, (await model.ainvoke([HumanMessage(content=[PARTS[0], part])])).text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_litellm(seeing: Any, provider: str, stream: bool) -> None:
    import litellm

    messages: list[Any] = [{"role": "user", "content": PARTS}]
    answer = await litellm.acompletion(
        model=f"{provider}/tiny",
        api_base=f"{seeing.url}/v1" if provider == "openai" else seeing.url,
        api_key="none",
        messages=messages,
        max_tokens=50,
        stream=stream,
    )
    if stream:
        answer = litellm.stream_chunk_builder([chunk async for chunk in answer], messages=messages)
    check(seeing, answer.choices[0].message.content)


@pytest.mark.parametrize("responses", [False, True])
async def test_openai_agents(seeing: Any, responses: bool) -> None:
    import agents

    agents.set_tracing_disabled(True)
    kind = agents.OpenAIResponsesModel if responses else agents.OpenAIChatCompletionsModel
    agent = agents.Agent(name="Sky", model=kind(model="tiny", openai_client=seeing.openai))
    content = [
        {"type": "input_text", "text": QUESTION},
        {"type": "input_image", "image_url": URL, "detail": "auto"},
    ]
    run = await agents.Runner.run(agent, [{"role": "user", "content": content}])
    check(seeing, run.final_output)


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
async def test_pydantic_ai(seeing: Any, api: str) -> None:
    from pydantic_ai import Agent, BinaryContent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    if api == "anthropic":
        provider = AnthropicProvider(base_url=seeing.url, api_key="none")
        model: Any = AnthropicModel("tiny", provider=provider, settings={"max_tokens": 50})
    else:
        kind = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
        model = kind("tiny", provider=OpenAIProvider(openai_client=seeing.openai))
    run = await Agent(model).run([QUESTION, BinaryContent(base64.b64decode(DATA), media_type="image/png")])
    check(seeing, run.output)
