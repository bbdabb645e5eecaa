"""Turns with tool calls and objects, streamed, through the libraries that applications are written with."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.clients

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}</tool_call>'
QUESTION = "Weather?"
REPLY = "Sunny in Köln."
# What the second turn's prompt must be, whichever library brought the call and its result back.
SECOND = f"user:{QUESTION}assistant:{CALL}tool:sun<|im_start|>"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}


@pytest.mark.parametrize("responses", [False, True])
async def test_langchain(app: Any, responses: bool) -> None:
    import langchain_openai as openai
    from langchain_core.messages import HumanMessage, ToolMessage

    model = openai.ChatOpenAI(
        model="tiny", base_url=f"{app.url}/v1", api_key="none", max_retries=0, use_responses_api=responses
    ).bind_tools([{"type": "function", "function": FUNCTION}])

    async def turn(messages: list[Any]) -> Any:
        chunks = [chunk async for chunk in model.astream(messages)]
        message = chunks[0]
        for chunk in chunks[1:]:
            message += chunk
        return message

    messages: list[Any] = [HumanMessage(QUESTION)]
    called = await turn(messages)
    [call] = called.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Köln", "days": 2})
    app.engine.text = REPLY
    answer = await turn([*messages, called, ToolMessage("sun", tool_call_id=call["id"])])
    assert answer.text == REPLY and not answer.tool_calls
    assert app.prompt == SECOND


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_litellm(app: Any, provider: str) -> None:
    import litellm

    base = f"{app.url}/v1" if provider == "openai" else app.url

    async def turn(messages: list[Any]) -> Any:
        stream = await litellm.acompletion(
            model=f"{provider}/tiny",
            api_base=base,
            api_key="none",
            messages=messages,
            tools=[{"type": "function", "function": FUNCTION}],
            max_tokens=150,
            stream=True,
        )
        chunks = [chunk async for chunk in stream]
        return litellm.stream_chunk_builder(chunks, messages=messages).choices[0]

    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    choice = await turn(messages)
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Köln", "days": 2}
    app.engine.text = REPLY
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    choice = await turn([*messages, choice.message.model_dump(), result])
    assert (choice.message.content, choice.finish_reason) == (REPLY, "stop")
    assert app.prompt == SECOND


@pytest.mark.parametrize("responses", [False, True])
async def test_openai_agents(app: Any, responses: bool) -> None:
    import agents

    agents.set_tracing_disabled(True)
    calls = []

    @agents.function_tool
    def weather(city: str, days: int) -> str:
        """The weather."""
        calls.append((city, days))
        app.engine.text = REPLY
        return "sun"

    kind = agents.OpenAIResponsesModel if responses else agents.OpenAIChatCompletionsModel
    agent = agents.Agent(name="Sky", tools=[weather], model=kind(model="tiny", openai_client=app.openai))
    run = agents.Runner.run_streamed(agent, QUESTION)
    text = ""
    async for event in run.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    assert calls == [("Köln", 2)] and run.final_output == text == REPLY
    assert app.prompt == SECOND


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_litellm_knows_the_errors(start_app: Any, provider: str) -> None:
    import litellm

    app = await start_app(api_key=["secret"], max_concurrent_requests_per_key=1)
    base = f"{app.url}/v1" if provider == "openai" else app.url

    async def ask(content: str = "Hi", model: str = "tiny", key: str = "secret", **options: Any) -> str:
        messages = [{"role": "user", "content": content}]
        try:
            await litellm.acompletion(
                model=f"{provider}/{model}", api_base=base, api_key=key, messages=messages, num_retries=0, **options
            )
        except Exception as error:
            return type(error).__name__
        return ""

    assert await ask(max_tokens=5) == ""
    for stream in (False, True):
        for content in ("x " * 300, "x" * 100_000):
            assert await ask(content, stream=stream, max_tokens=5) == "ContextWindowExceededError"
        assert await ask(model="absent", stream=stream, max_tokens=5) == "NotFoundError"
        assert await ask(key="wrong", stream=stream, max_tokens=5) == "AuthenticationError"
    if provider == "openai":
        assert await ask(max_tokens=300) == "ContextWindowExceededError"
    app.engine.gate.clear()
    held = asyncio.create_task(ask(max_tokens=5))
    await app.until_running(1)
    assert await ask(max_tokens=5) == "RateLimitError"
    app.engine.gate.set()
    assert await held == ""
    app.serving.draining = True
    assert await ask(max_tokens=5) in ("ServiceUnavailableError", "InternalServerError")


class Weather(BaseModel):
    """The weather."""

    city: str
    days: int


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "RESPONSES_TOOLS"])
async def test_instructor(app: Any, mode: str) -> None:
    import instructor

    arguments = '{"city": "Köln", "days": 2}'
    called = f'<tool_call>{{"name": "Weather", "arguments": {arguments}}}</tool_call>'
    app.engine.text = called if "TOOLS" in mode else arguments
    client = instructor.from_openai(app.openai, mode=instructor.Mode[mode])
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    made = await client.create(model="tiny", messages=messages, response_model=Weather, max_retries=0)
    assert (made.city, made.days) == ("Köln", 2)


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
async def test_pydantic_ai(app: Any, api: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    if api == "anthropic":
        model: Any = AnthropicModel("tiny", provider=AnthropicProvider(base_url=app.url, api_key="none"))
    else:
        kind = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
        model = kind("tiny", provider=OpenAIProvider(openai_client=app.openai))
    agent, calls = Agent(model), []

    @agent.tool_plain
    def weather(city: str, days: int) -> str:
        """The weather."""
        calls.append((city, days))
        app.engine.text = REPLY
        return "sun"

    async with agent.run_stream(QUESTION) as run:
        assert await run.get_output() == REPLY
    assert calls == [("Köln", 2)] and app.prompt == SECOND


async def test_llm(app: Any) -> None:
    import llm
    from llm.default_plugins.openai_models import AsyncChat

    model = AsyncChat("tiny", api_base=f"{app.url}/v1", supports_tools=True)
    model.needs_key, model.key = None, "none"

    def weather(city: str, days: int) -> str:
        """The weather."""
        app.engine.text = REPLY
        return "sun"

    chain = model.chain(QUESTION, tools=[llm.Tool.function(weather)])
    text = "".join([piece async for piece in chain])
    assert text == REPLY and app.prompt == SECOND
