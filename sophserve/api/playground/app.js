// The page: the list of conversations, the open one, and the panel.

import { Attachments } from "./attachments.js";
import { Chat } from "./chat.js";
import { connectComposer } from "./composer.js";
import { byId, make } from "./dom.js";
import { History } from "./history.js";
import { switchLanguage, t, translate } from "./language.js";
import { connectSettings, wrongSetting } from "./settings.js";
import { Status } from "./status.js";
import { copySources } from "./spans.js";
import { Store } from "./store.js";

// Where there is no room for a column it lies over the conversation, and is closed at first.
const SIDES = {
  list: { toggle: byId("list-toggle"), narrow: matchMedia("(max-width: 75rem)"), closed: "without-list" },
  panel: { toggle: byId("panel-toggle"), narrow: matchMedia("(max-width: 60rem)"), closed: "without-panel" },
};

connectSettings();
const store = await Store.open();
const status = new Status(show);
const attachments = new Attachments(status, () => chat.sentPictures(), show);
const chat = new Chat(store, attachments, {
  model: () => status.model, ready: () => status.ready && settingsAreRight(), onshow: show, onopen: () => history.show(),
});
const history = new History(store, chat, closeList);
chat.onerror = (error) => status.fail(error);
store.onchange = (change) => {
  chat.changed(change);
  history.changed(change);
};

function show() {
  byId("empty").hidden = chat.conversation.messages.length > 0 || !status.ready;
  byId("send").hidden = chat.running;
  byId("stop").hidden = !chat.running;
  byId("send").disabled = !status.ready || !(byId("input").value.trim() || attachments.pictures.length);
  byId("attach").hidden = !status.sees;
}

function closeList() {
  if (SIDES.list.narrow.matches) showSide("list", false);
  byId("input").focus();
}

function settingsAreRight() {
  const wrong = wrongSetting();
  if (wrong) {
    showSide("panel", true);
    wrong.reportValidity();
  }
  return !wrong;
}

function showSide(name, shown) {
  const { toggle, closed } = SIDES[name];
  document.body.classList.toggle(closed, !shown);
  toggle.setAttribute("aria-expanded", shown);
}

/** Close what lies over the conversation; whether there was something. */
function closeSides() {
  const open = Object.keys(SIDES).filter((name) => SIDES[name].narrow.matches && isShown(name));
  for (const name of open) {
    showSide(name, false);
    SIDES[name].toggle.focus();
  }
  return open.length > 0;
}

function isShown(name) {
  return !document.body.classList.contains(SIDES[name].closed);
}

function speak() {
  translate(document);
  const ask = (text) => {
    byId("input").value = text;
    chat.send();
  };
  const examples = t("examples").map((text) => make("button", { type: "button", text, onclick: () => ask(text) }));
  byId("examples").replaceChildren(...examples);
  status.show();
  history.show();
  attachments.show();
  chat.draw();
}

for (const [name, { toggle, narrow }] of Object.entries(SIDES)) {
  toggle.addEventListener("click", () => {
    if (narrow.matches && !isShown(name)) closeSides();
    showSide(name, !isShown(name));
    if (name === "list" && isShown(name)) byId("search").focus();
  });
  narrow.addEventListener("change", () => showSide(name, !narrow.matches));
  showSide(name, !narrow.matches);
}
connectComposer(() => {
  chat.keepDraft();
  show();
}, () => chat.send());
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key").open || closeSides()) return;
  chat.stop();
});
byId("stop").addEventListener("click", () => chat.stop());
byId("new").addEventListener("click", () => {
  chat.begin();
  closeList();
});
byId("language").addEventListener("click", () => {
  switchLanguage();
  speak();
});
copySources(byId("messages"));
await chat.resume();
speak();
history.load();
if (document.activeElement === document.body) byId("input").focus(); // else the reader is already somewhere
