// Requests to the server that the page comes from.

import { load, save } from "./local.js";

const KEY = "sophserve.key";

/** An answer other than 200, with the server's own words. */
export class ServerError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `HTTP ${status}`);
    this.status = status;
    this.body = body;
  }
}

/** Keep an API key until the tab is closed. */
export function useKey(key) {
  save(KEY, key, "session");
}

export function hasKey() {
  return load(KEY, "session") !== null;
}

/** Ask for a path relative to the page; throws ServerError. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (hasKey()) headers["Authorization"] = `Bearer ${load(KEY, "session")}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  throw new ServerError(response.status, await response.json().catch(() => null));
}

/** The chunks of a streamed answer. Throws ServerError, also for one that comes within the stream. */
export async function* stream(path, body, signal) {
  const response = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(500, chunk);
    yield chunk;
  }
  throw new TypeError("the stream ended early");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}
