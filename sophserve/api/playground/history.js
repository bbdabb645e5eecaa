// The list of conversations: searching, opening, renaming, deleting, exporting and importing them.

import { path, titleOf } from "./conversation.js";
import { loadDraft, saveDraft } from "./composer.js";
import { byId, make } from "./dom.js";
import { FormatError, read, write } from "./exchange.js";
import { t } from "./language.js";
import { tell, tellUnkept } from "./notice.js";

const LARGEST = 100; // MB of a file that is imported
const AROUND = 30; // characters of a text that are shown before what was searched

/** chat is the open conversation. */
export class History {
  constructor(store, chat, onopen) {
    Object.assign(this, { store, chat, onopen });
    this.rows = new Map();
    this.undoable = [];
    let due;
    byId("search").addEventListener("input", () => {
      clearTimeout(due);
      due = setTimeout(() => this.search(), 120);
    });
    byId("save-all").addEventListener("click", async () => download("conversations", await store.all()));
    byId("import").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", () => this.take([...byId("file").files]));
  }

  /** Show what the browser keeps. */
  async load() {
    for (const conversation of await this.store.all()) this.row(conversation);
    this.show();
  }

  /** Take note that a conversation was changed, or is gone. */
  async changed({ id, gone }) {
    const conversation = gone ? undefined : await this.store.get(id);
    if (conversation) this.row(conversation);
    else this.rows.delete(id);
    this.show();
  }

  row(conversation) {
    const { id } = conversation;
    if (!this.rows.has(id)) this.rows.set(id, new Row(id, this));
    Object.assign(this.rows.get(id), { title: titleOf(conversation), updated: conversation.updated });
  }

  /** Draw the list, in the language of the page. */
  show() {
    const rows = [...this.rows.values()].sort((a, b) => b.updated - a.updated);
    const shown = rows.filter((row) => !this.found || this.found.has(row.id));
    for (const row of shown) row.show(this.found?.get(row.id), row.id === this.chat.conversation.id);
    const [elements, now] = [shown.map((row) => row.element), [...byId("conversations").children]];
    // What is where it was stays, and with it the focus.
    if (elements.some((element, index) => element !== now[index]) || now.length !== elements.length) {
      byId("conversations").replaceChildren(...elements);
    }
    byId("none").textContent = t(this.found ? "nothing" : "none");
    byId("none").hidden = shown.length > 0;
    byId("save-all").disabled = rows.length === 0;
  }

  /** Show those conversations whose titles or texts hold every word of the search field. */
  async search() {
    const wanted = () => byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const words = wanted();
    this.found = null;
    if (words.length) {
      const found = (await this.store.all()).map((each) => [each.id, find(each, words)]);
      if (words.join() !== wanted().join()) return;
      this.found = new Map(found.filter(([, match]) => match));
    }
    this.show();
  }

  async open(id) {
    await this.chat.open(id, this.found?.get(id)?.message);
    this.onopen();
  }

  async rename(id, title) {
    const kept = await this.store.get(id);
    if (kept) await this.try(() => this.store.change(kept, (each) => (each.title = title)));
    if (id === this.chat.conversation.id) this.chat.conversation.title = title;
  }

  /** Forget a conversation; Undo brings it back, with those that were deleted right before. */
  async remove(id) {
    const kept = await this.store.get(id);
    if (!kept) return;
    const draft = loadDraft(kept);
    if (!byId("notice").querySelector(".act")) this.undoable = [];
    this.undoable.push({ kept, draft });
    const { length } = this.undoable;
    await this.try(() => this.store.remove(id));
    saveDraft(kept, { text: "", edits: new Map() });
    const run = async () => {
      for (const each of this.undoable) saveDraft(each.kept, each.draft);
      await this.try(() => this.store.addAll(this.undoable.map((each) => each.kept)));
      await this.open(this.undoable.at(-1).kept.id);
      this.undoable = [];
    };
    tell(t(length > 1 ? "removed_many" : "removed", { n: length, title: titleOf(kept) }), { action: { name: "undo", run } });
    byId("notice").querySelector(".act").focus();
  }

  async save(id) {
    const kept = await this.store.get(id);
    if (kept) await download(titleOf(kept), [kept]);
  }

  /** Import files, all or none of them. */
  async take(files) {
    byId("file").value = "";
    const taken = [];
    for (const file of files) {
      const wrong = (name, values) => tell(t(name, { file: file.name, ...values }), { error: true });
      if (file.size > LARGEST * 1e6) return wrong("large_import", { n: LARGEST });
      try {
        taken.push(...read(await file.text()));
      } catch (error) {
        if (!(error instanceof FormatError)) throw error;
        return wrong("no_import", { why: error.message });
      }
      if (!taken.length) return wrong("empty_import");
    }
    const added = await this.try(() => this.store.addAll(taken));
    if (!added) return;
    const newest = added.reduce((one, other) => (other.updated > one.updated ? other : one));
    tell(t(added.length > 1 ? "imported_many" : "imported", { n: added.length, title: titleOf(newest) }));
    await this.chat.open(newest.id);
    this.show();
  }

  /** Do something with the store, and tell if it cannot be done. */
  async try(work) {
    try {
      return await work();
    } catch (error) {
      tellUnkept(error);
    }
  }
}

/** One conversation in the list. */
class Row {
  constructor(id, history) {
    Object.assign(this, { id, history });
    this.name = make("span", { class: "name" });
    this.snippet = make("span", { class: "snippet" });
    this.button = make("button", { class: "open", type: "button", onclick: () => history.open(id) }, this.name, this.snippet);
    this.tools = make("div", { class: "tools" });
    this.element = make("li", {}, this.button, this.tools);
  }

  show(match, open) {
    this.name.textContent = this.title;
    this.snippet.replaceChildren(...(match?.parts ?? []));
    if (open) this.button.setAttribute("aria-current", "true");
    else this.button.removeAttribute("aria-current");
    this.tools.hidden = !open;
    if (this.tools.lang === document.documentElement.lang) return;
    this.tools.lang = document.documentElement.lang;
    const tool = (name, onclick) => make("button", { class: `quiet do-${name}`, type: "button", text: t(name), onclick });
    this.tools.replaceChildren(
      tool("rename", () => this.rename()),
      tool("save", () => this.history.save(this.id)),
      tool("remove", () => this.history.remove(this.id)),
    );
  }

  /** Let the reader write another title in place of this one. */
  rename() {
    const field = make("input", { type: "text", maxlength: 200, "aria-label": t("name"), class: "name" });
    field.value = this.title;
    let ended = false;
    const end = (keep) => {
      if (ended) return;
      ended = true;
      const focused = document.activeElement === field;
      field.replaceWith(this.button);
      if (focused) this.button.focus();
      if (keep && field.value.trim() !== this.title) this.history.rename(this.id, field.value.trim());
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      end(event.key === "Enter");
    });
    field.addEventListener("blur", () => end(true));
    this.button.replaceWith(field);
    field.select();
  }
}

/** Where a conversation holds all of the words: {message, parts} of the first place in a text, or in its title. */
function find(conversation, words) {
  const texts = conversation.messages.map(({ content }) => content.toLowerCase());
  const all = [titleOf(conversation).toLowerCase(), ...texts];
  if (!words.every((word) => all.some((text) => text.includes(word)))) return null;
  const shown = new Set(path(conversation).map(({ id }) => id));
  const places = texts.map((text, index) => ({ at: text.indexOf(words[0]), message: conversation.messages[index] }))
    .filter(({ at }) => at >= 0);
  const place = places.find(({ message }) => shown.has(message.id)) ?? places[0];
  if (!place) return { parts: [] };
  const { at, message: { id, content } } = place;
  const start = Math.max(0, at - AROUND);
  return {
    message: id,
    parts: [
      `${start ? "…" : ""}${content.slice(start, at)}`,
      make("mark", { text: content.slice(at, at + words[0].length) }),
      content.slice(at + words[0].length, at + 2 * AROUND),
    ],
  };
}

async function download(title, conversations) {
  const url = URL.createObjectURL(new Blob([await write(conversations)], { type: "application/json" }));
  const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
  make("a", { href: url, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
