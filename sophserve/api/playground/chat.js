// The open conversation: asking, answering again, editing, going from branch to branch.

import { read } from "./answers.js";
import { draftName, loadDraft, saveDraft, setText } from "./composer.js";
import { absorb, add, newConversation, path, show, siblings } from "./conversation.js";
import { byId } from "./dom.js";
import { t } from "./language.js";
import { load, save } from "./local.js";
import { MessageView, keepingEnd } from "./messages.js";
import { pass, tell, tellUnkept } from "./notice.js";
import { dataUrl } from "./pictures.js";
import { ServerError } from "./server.js";
import { numbers, samplingFields, setSystem, system, systemMessages } from "./settings.js";

const OPEN = "sophserve.open"; // in this tab
const EVERY = 2000; // milliseconds between two times that a growing answer is kept

/** attachments: the pictures of the message that is being written; ready() says whether a question can be sent now; onshow() is called when what can be done changes. */
export class Chat {
  constructor(store, attachments, { model, ready, onshow, onopen }) {
    Object.assign(this, { store, attachments, model, ready, onshow, onopen });
    this.conversation = newConversation();
    this.views = [];
    this.edits = new Map(); // what is being written in place of questions, by their ids
    this.answers = new Map(); // the answers that are being written: of each conversation {control, conversation, message}
    this.own = new Set(); // the messages that came from this tab
    byId("system").addEventListener("change", () => this.keepSystem());
  }

  get running() {
    return this.answers.has(this.conversation.id);
  }

  /** Go on where this tab was. */
  async resume() {
    const id = load(OPEN, "session");
    if (!(id && (await this.open(id)))) this.set(newConversation(), false);
  }

  /** Open a conversation, at one of its messages if that is given; false if there is none with the id. */
  async open(id, messageId) {
    const conversation = this.answers.get(id)?.conversation ?? (await this.store.get(id));
    if (!conversation) return false;
    if (messageId && !path(conversation).some((message) => message.id === messageId)) show(conversation, messageId);
    this.set(conversation, true);
    this.views.find(({ message }) => message.id === messageId)?.element.scrollIntoView();
    return true;
  }

  /** Begin a conversation. The one before stays in the list, and an answer that is being written there goes on. */
  begin() {
    if (this.conversation.messages.length) this.set(newConversation(), false);
    byId("input").focus();
  }

  set(conversation, kept) {
    this.conversation = conversation;
    save(OPEN, kept ? conversation.id : null, "session");
    const { text, edits } = loadDraft(conversation);
    this.edits = edits;
    setText(text);
    this.attachments.open(draftName(conversation));
    if (kept) setSystem(conversation.system);
    this.rebuild();
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
    this.onopen();
  }

  rebuild() {
    const { activeElement: writing } = document;
    const edited = this.views.find(({ editor }) => editor && editor === writing)?.message.id;
    const { conversation } = this;
    this.views = path(conversation).map((message) => new MessageView(message, siblings(conversation, message), this));
    byId("messages").replaceChildren(...this.views.map(({ element }) => element));
    this.draw();
    const editor = edited && this.views.find(({ message }) => message.id === edited)?.editor;
    editor?.focus({ preventScroll: true });
    editor?.setSelectionRange(writing.selectionStart, writing.selectionEnd);
  }

  draw() {
    const growing = this.answers.get(this.conversation.id)?.message;
    this.views.forEach((view, index) =>
      view.show({ last: index === this.views.length - 1, busy: this.running, growing: view.message === growing }));
    this.onshow();
  }

  keepDraft() {
    saveDraft(this.conversation, { text: byId("input").value, edits: this.edits });
  }

  /** Ask what is in the composer. */
  async send() {
    await this.attachments.added;
    const content = byId("input").value.trim();
    if (!(content || this.attachments.pictures.length) || this.running || !this.ready()) return;
    setText("");
    this.keepDraft(); // that of a new conversation has another name than that of one with messages
    await this.ask(this.conversation.leaf, content, this.attachments.take());
  }

  /** Ask below a message. */
  async ask(parent, content, images = []) {
    const message = add(this.conversation, parent, { role: "user", content, ...(images.length && { images }) });
    this.own.add(message.id);
    pass();
    save(OPEN, this.conversation.id, "session");
    this.keepDraft();
    this.attachments.open(draftName(this.conversation));
    await this.answer();
  }

  /** Have another answer written to the same question: a branch beside this one. */
  async again({ id, role, parent }) {
    if (this.running || !this.ready()) return;
    this.conversation.leaf = role === "user" ? id : parent;
    await this.answer();
  }

  /** Let the reader change a question. Nothing else changes until it is sent. */
  edit(message) {
    this.edits.set(message.id, message.content);
    this.keepDraft();
    const view = this.views.find((each) => each.message === message);
    this.draw();
    view.editor.focus();
    view.editor.setSelectionRange(message.content.length, message.content.length);
  }

  cancel(message) {
    this.edits.delete(message.id);
    this.keepDraft();
    this.draw();
    this.views.find((each) => each.message === message)?.foot.querySelector(".do-edit")?.focus();
  }

  /** Send a changed question: a branch beside the old one. */
  async resend(message) {
    const content = (this.edits.get(message.id) ?? "").trim();
    if (!(content || message.images) || this.running || !this.ready()) return;
    this.edits.delete(message.id);
    await this.ask(message.parent, content, message.images);
  }

  showBranch(message, button) {
    const place = this.views.findIndex((view) => view.message.parent === message.parent);
    const before = this.views[place].foot.getBoundingClientRect().top;
    show(this.conversation, message.id);
    this.rebuild();
    const { foot } = this.views[place];
    byId("scroll").scrollTop += foot.getBoundingClientRect().top - before; // the buttons stay where they were
    const [wanted, other] = [`.do-${button}`, ".branches button:enabled"].map((name) => foot.querySelector(name));
    (wanted?.disabled ? other : wanted)?.focus({ preventScroll: true });
    if (!this.running) this.keep(this.conversation, []);
  }

  /** Answer the leaf of the open conversation. */
  async answer() {
    const { conversation } = this;
    const history = path(conversation).filter(({ role, content }) => role === "user" || content);
    const asked = history.at(-1);
    Object.assign(conversation, { system: system(), parameters: numbers() });
    const before = systemMessages();
    const body = { model: this.model(), ...samplingFields() };
    const fields = { role: "assistant", content: "", reasoning: "", tokens: [], model: this.model(), partial: true };
    const message = add(conversation, conversation.leaf, fields);
    this.own.add(message.id);
    const control = new AbortController();
    this.answers.set(conversation.id, { control, conversation, message });
    this.rebuild();
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
    this.keep(conversation, [asked]);
    try {
      const messages = [...before, ...(await Promise.all(history.map(asSent)))];
      await read({ ...body, messages }, message, control.signal, this.follow(conversation, message));
    } catch (error) {
      if (error.name === "AbortError") message.stopped = true;
      else if (error instanceof UnreadPicture) message.error = error.message;
      else {
        message.error = error instanceof ServerError ? error.message : t("lost");
        this.onerror?.(error);
      }
    }
    message.partial = false;
    this.answers.delete(conversation.id);
    if (conversation === this.conversation) {
      byId("said").textContent = message.error ? "" : `${t("answered")} ${message.content}`;
      keepingEnd(() => this.draw());
    }
    await this.keep(conversation, [message]);
  }

  /** The pictures that go with the next message, as they are in the conversation before it. */
  sentPictures() {
    return path(this.conversation).flatMap(({ images = [] }) => images);
  }

  /** A function that draws a growing answer, once a frame, and keeps it now and then. */
  follow(conversation, message) {
    let due = false;
    let kept = performance.now();
    return () => {
      if (performance.now() - kept > EVERY) {
        kept = performance.now();
        this.keep(conversation, [message]);
      }
      if (due || conversation !== this.conversation) return;
      due = true;
      requestAnimationFrame(() => {
        due = false;
        const view = this.views.find((each) => each.message === message);
        if (view && this.running) keepingEnd(() => view.show({ last: true, busy: true, growing: true }));
      });
    };
  }

  /** Stop the answer that is being written. */
  stop(id = this.conversation.id) {
    this.answers.get(id)?.control.abort();
  }

  /** Keep a conversation, and show what other tabs have added to it. */
  async keep(conversation, messages) {
    if (messages.length) conversation.updated = Date.now();
    try {
      this.takeIn(conversation, await this.store.keep(conversation, messages));
      if (!this.store.kept && !this.warned) tell(t("not_kept"));
      if (!this.store.kept) this.warned = true;
    } catch (error) {
      tellUnkept(error);
    }
  }

  takeIn(conversation, kept) {
    const known = conversation.messages.length;
    absorb(conversation, kept, this.own);
    if (conversation === this.conversation && conversation.messages.length > known) this.rebuild();
  }

  async keepSystem() {
    const { conversation } = this;
    if (!conversation.messages.length) return;
    conversation.system = system();
    await this.keep(conversation, []);
  }

  /** Take note that a conversation was changed, or is gone. */
  async changed({ id, gone, elsewhere }) {
    if (gone) this.stop(id);
    if (id !== this.conversation.id || !this.conversation.messages.length) return;
    if (gone) {
      const typed = byId("input").value;
      this.set(newConversation(), false);
      if (!elsewhere) return;
      if (!byId("input").value) setText(typed);
      this.keepDraft();
      tell(t("gone"));
    } else if (elsewhere) {
      const kept = await this.store.get(id);
      if (kept && id === this.conversation.id) {
        absorb(this.conversation, kept, this.own);
        keepingEnd(() => this.rebuild());
      }
    }
  }
}

/** A picture of the conversation is no longer what the browser kept. */
class UnreadPicture extends Error {}

/** A message as the server is told it. Throws UnreadPicture. */
async function asSent({ role, content, images }) {
  if (!images) return { role, content };
  const part = async ({ name, file }) => {
    try {
      return { type: "image_url", image_url: { url: await dataUrl(file) } };
    } catch (error) {
      throw new UnreadPicture(t("broken_picture", { file: name, why: error.message }));
    }
  };
  const parts = await Promise.all(images.map(part));
  return { role, content: content ? [...parts, { type: "text", text: content }] : parts };
}
