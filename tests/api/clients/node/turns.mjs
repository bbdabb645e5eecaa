// A question that is answered with the help of a tool: `node turns.mjs LIBRARY SERVER TOOL`. Prints what came as JSON.
// SERVER and TOOL are addresses; the tool asks the latter.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [library, server, asked] = process.argv.slice(2);
const question = "Weather?";

async function withAiSdk(model) {
  const calls = [];
  const weather = tool({
    description: "The weather.",
    inputSchema: z.object({ city: z.string(), days: z.number().int() }),
    execute: async (input) => {
      calls.push(input);
      await fetch(asked);
      return "sun";
    },
  });
  const turn = streamText({ model, prompt: question, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 });
  let text = "";
  for await (const piece of turn.textStream) text += piece;
  return { calls, text, finish: await turn.finishReason };
}

async function withOpenAi() {
  const client = new OpenAI({ baseURL: `${server}/v1`, apiKey: "none", maxRetries: 0 });
  const calls = [];
  const runner = client.chat.completions.runTools({
    model: "tiny",
    messages: [{ role: "user", content: question }],
    stream: true,
    tools: [
      {
        type: "function",
        function: {
          name: "weather",
          description: "The weather.",
          parameters: {
            type: "object",
            properties: { city: { type: "string" }, days: { type: "integer" } },
            required: ["city", "days"],
          },
          parse: JSON.parse,
          function: async (input) => {
            calls.push(input);
            await fetch(asked);
            return "sun";
          },
        },
      },
    ],
  });
  const text = await runner.finalContent();
  const { choices } = await runner.finalChatCompletion();
  return { calls, text, finish: choices[0].finish_reason };
}

const options = { baseURL: `${server}/v1`, apiKey: "none" };
const models = {
  "ai-openai": () => createOpenAI(options).responses("tiny"),
  "ai-openai-chat": () => createOpenAI(options).chat("tiny"),
  "ai-compatible": () => createOpenAICompatible({ ...options, name: "ours" })("tiny"),
  "ai-anthropic": () => createAnthropic(options)("tiny"),
};
const result = library === "openai" ? await withOpenAi() : await withAiSdk(models[library]());
console.log(JSON.stringify(result));
