// What is being written, and not yet sent: it outlives the page.

import { byId, fitTo } from "./dom.js";
import { load, save } from "./local.js";

/** The name under which the drafts of a conversation are kept; new ones have one in common. */
export function draftName(conversation) {
  return `sophserve.draft.${conversation.messages.length ? conversation.id : "new"}`;
}

/** The drafts of a conversation: {text, edits: [[id of a message, text]]}. */
export function loadDraft(conversation) {
  try {
    const { text = "", edits = [] } = JSON.parse(load(draftName(conversation))) ?? {};
    return { text: String(text), edits: new Map(edits) };
  } catch {
    return { text: "", edits: new Map() };
  }
}

/** Keep them, or forget them where there are none. */
export function saveDraft(conversation, { text, edits }) {
  save(draftName(conversation), text || edits.size ? JSON.stringify({ text, edits: [...edits] }) : null);
}

/** Call onchange() when the reader writes, and onsend() when what is written shall go. */
export function connectComposer(onchange, onsend) {
  const input = byId("input");
  input.addEventListener("input", () => {
    fitTo(input);
    onchange();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    onsend();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    onsend();
  });
}

/** Put a text into the composer. */
export function setText(text) {
  byId("input").value = text;
  fitTo(byId("input"));
}
