// What the browser keeps: the conversation and the settings.

const CONVERSATION = "sophserve.conversation";
const SETTINGS = "sophserve.settings";

function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function save(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Full, or forbidden by the browser: the page works on without a memory.
  }
}

export const loadMessages = () => load(CONVERSATION, []);
export const loadSettings = () => load(SETTINGS, {});
export const saveSettings = (settings) => save(SETTINGS, settings);

/** Keep a conversation; the probabilities of its tokens are too many for that. */
export function saveMessages(messages) {
  save(CONVERSATION, messages.map(({ tokens, ...message }) => message));
}
