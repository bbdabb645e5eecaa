// Asking for an answer, and measuring it while it comes.

import { stream } from "./server.js";

/** Ask, and put what comes into the message; calls ongrow() with each piece. Throws ServerError, and what fetch throws. */
export async function read(body, message, signal, ongrow) {
  const started = performance.now();
  let first = 0;
  const options = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  for await (const { choices, usage } of stream("v1/chat/completions", { ...body, ...options }, signal)) {
    const [choice] = choices;
    const delta = choice?.delta ?? {};
    if (delta.content || delta.reasoning || delta.reasoning_content) first ||= performance.now();
    message.content += delta.content ?? "";
    message.reasoning += delta.reasoning ?? delta.reasoning_content ?? "";
    message.tokens.push(...(choice?.logprobs?.content ?? []));
    message.finish = choice?.finish_reason ?? message.finish;
    if (usage) message.stats = measure(usage, started, first);
    ongrow();
  }
}

function measure(usage, started, first) {
  const seconds = (performance.now() - first) / 1000;
  const tokens = usage.completion_tokens;
  return {
    tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    first: first && (first - started) / 1000,
    speed: first && tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : 0,
  };
}
