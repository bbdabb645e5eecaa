// Conversations as JSON, the format that `sophserve chat` reads and writes, too.

import { newConversation, newId } from "./conversation.js";
import { dataUrl, fileOf } from "./pictures.js";

const FORMAT = "sophserve.conversations";
const PARAMETERS = [
  "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop", "presence_penalty", "frequency_penalty",
  "repetition_penalty",
];

/** What makes a text no file of conversations: a path into it, and what should be there. */
export class FormatError extends Error {}

/** The text of a file that holds these conversations, their pictures as data URLs. */
export async function write(conversations) {
  const written = await Promise.all(conversations.map(async ({ created, updated, messages, ...rest }) => ({
    ...rest,
    created: new Date(created).toISOString(),
    updated: new Date(updated).toISOString(),
    messages: await Promise.all(messages.map(writtenMessage)),
  })));
  return `${JSON.stringify({ format: FORMAT, version: 1, conversations: written }, null, 1)}\n`;
}

async function writtenMessage({ images, ...rest }) {
  if (!images) return rest;
  return { ...rest, images: await Promise.all(images.map(async ({ name, file }) => ({ name, url: await dataUrl(file) }))) };
}

/** The conversations in such a text, or in one with a single list of `messages`. Throws FormatError. */
export function read(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new FormatError("JSON");
  }
  if (Array.isArray(data?.messages)) return [conversation(data, "")].filter(({ messages }) => messages.length);
  must(data?.format === FORMAT, "format", JSON.stringify(FORMAT));
  must(data.version === 1, "version", "1");
  must(Array.isArray(data.conversations), "conversations", "[...]");
  return data.conversations.map((each, index) => conversation(each, `conversations[${index}].`))
    .filter(({ messages }) => messages.length);
}

function must(holds, where, what) {
  if (!holds) throw new FormatError(`${where}: ${what}`);
}

function text(object, name, where, otherwise) {
  const value = object[name] ?? otherwise;
  must(typeof value === "string", where + name, '"..."');
  return value;
}

function time(object, name, where) {
  if (object[name] === undefined) return Date.now();
  const value = Date.parse(object[name]);
  must(!Number.isNaN(value), where + name, "2026-01-31T12:00:00Z");
  return value;
}

function conversation(given, where) {
  must(typeof given === "object" && given && Array.isArray(given.messages), `${where}messages`, "[...]");
  const messages = [];
  let system = text(given, "system", where, "");
  given.messages.forEach((each, index) => {
    const at = `${where}messages[${index}].`;
    must(typeof each === "object" && each, at.slice(0, -1), "{...}");
    if (index === 0 && each.role === "system") system ||= text(each, "content", at);
    else messages.push(message(each, at, messages));
  });
  const leaf = given.leaf ?? messages.at(-1)?.id ?? null;
  must(leaf === null || messages.some(({ id }) => id === leaf), `${where}leaf`, "messages[...].id");
  return {
    ...newConversation(),
    id: text(given, "id", where, newId()),
    title: text(given, "title", where, ""),
    created: time(given, "created", where),
    updated: time(given, "updated", where),
    system,
    parameters: Object.fromEntries(PARAMETERS.filter((name) => given.parameters?.[name] !== undefined)
      .map((name) => [name, given.parameters[name]])),
    leaf,
    messages,
  };
}

function message(given, where, before) {
  must(["user", "assistant"].includes(given.role), `${where}role`, '"user" | "assistant"');
  const id = text(given, "id", where, newId());
  must(!before.some((other) => other.id === id), `${where}id`, "≠ messages[...].id");
  const parent = given.parent !== undefined ? given.parent : before.at(-1)?.id ?? null;
  must(parent === null || before.some((other) => other.id === parent), `${where}parent`, "messages[...].id");
  const found = { id, parent, role: given.role, content: text(given, "content", where) };
  for (const name of ["reasoning", "finish", "error", "model"]) {
    if (given[name] !== undefined && given[name] !== null) found[name] = text(given, name, where);
  }
  const images = given.images ?? [];
  must(Array.isArray(images), `${where}images`, "[...]");
  if (images.length) found.images = images.map((each, index) => image(each, `${where}images[${index}].`));
  if (given.stopped) found.stopped = true;
  const numbers = Object.entries(given.stats ?? {}).filter(([, value]) => typeof value === "number");
  if (numbers.length) found.stats = Object.fromEntries(numbers);
  return found;
}

function image(given, where) {
  must(typeof given === "object" && given, where.slice(0, -1), "{...}");
  const file = fileOf(text(given, "url", where));
  must(file, `${where}url`, '"data:image/...;base64,..."');
  return { name: text(given, "name", where, "image"), file };
}
