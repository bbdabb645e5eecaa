// A conversation: a tree of messages, of which the path to one leaf is shown. Edits and retries add branches to it;
// nothing is ever taken out. It is a plain object, as the browser keeps it:
// { id, title, created, updated, system, parameters, leaf, messages: [{ id, parent, role, content, ... }] }.
// A message's parent comes before it in the list; the first ones have the parent null.

const TITLE_LENGTH = 60;

/** An identifier that nobody else has. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A conversation in which nothing was said. */
export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system: "", parameters: {}, leaf: null, messages: [] };
}

/** The shown messages, from the first to the leaf. */
export function path({ messages, leaf }) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = byId.get(leaf); at; at = byId.get(at.parent)) found.unshift(at);
  return found;
}

/** What stands at the same place as a message, with it, in the order in which it came. */
export function siblings({ messages }, { parent }) {
  return messages.filter((message) => message.parent === parent);
}

/** Add a message below a parent (null: at the beginning), and show it. */
export function add(conversation, parent, fields) {
  const message = { id: newId(), parent, ...fields };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  return message;
}

/** Show the newest branch that goes through a message. */
export function show(conversation, id) {
  const newest = new Map(conversation.messages.map(({ id, parent }) => [parent, id]));
  for (let at = id; at !== undefined; at = newest.get(at)) conversation.leaf = at;
}

/** Take in what another tab has added to a conversation; `own` are the ids that only this one changes. */
export function absorb(conversation, { title, messages }, own) {
  conversation.title = title;
  const known = new Map(conversation.messages.map((message) => [message.id, message]));
  for (const message of messages) {
    if (!known.has(message.id)) conversation.messages.push(message);
    else if (!own.has(message.id)) Object.assign(known.get(message.id), message);
  }
  if (conversation.leaf !== null) show(conversation, conversation.leaf);
}

/** What a conversation is called: as the reader says, or as it begins. */
export function titleOf({ title, messages }) {
  if (title) return title;
  const [first = ""] = (messages[0]?.content || messages[0]?.images?.[0].name || "").trim().split("\n");
  if (!first) return "…";
  return first.length > TITLE_LENGTH ? `${first.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : first;
}
