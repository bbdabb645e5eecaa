// The conversation as it is shown.

import { byId, copyButton, fitTo, make } from "./dom.js";
import { number, t } from "./language.js";
import { render } from "./markdown.js";
import { thumbnail } from "./pictures.js";
import { hideTip, tokenView } from "./tokens.js";

/** One message of the open conversation, a Chat; siblings: the messages that were tried at its place, with it. */
export class MessageView {
  constructor(message, siblings, chat) {
    Object.assign(this, { message, siblings, chat });
    this.byToken = false;
    this.who = make("h3", {});
    this.summary = make("summary", {});
    this.thoughts = make("div", { class: "text" });
    this.reasoning = make("details", { class: "reasoning" }, this.summary, this.thoughts);
    this.text = make("div", { class: "text" });
    this.foot = make("div", { class: "foot" });
    const parts = [this.who, this.reasoning, this.text, this.foot];
    if (message.role === "user") parts.splice(1, 1);
    if (message.images) {
      this.pictures = make("ul", { class: "pictures" }, ...message.images.map((picture) => make("li", {}, thumbnail(picture))));
      parts.splice(1, 0, this.pictures);
    }
    this.element = make("article", { class: `message ${message.role === "user" ? "user" : "answer"}` }, ...parts);
  }

  /** Draw what the message now holds. last: whether nothing follows it; busy: whether an answer is being written;
   *  growing: whether this is that answer. */
  show({ last, busy, growing }) {
    const { message } = this;
    this.who.textContent = t(message.role === "user" ? "you" : "assistant");
    this.pictures?.setAttribute("aria-label", t("pictures"));
    this.element.classList.toggle("busy", growing);
    this.element.setAttribute("aria-busy", growing);
    this.reasoning.hidden = !message.reasoning;
    if (message.reasoning) {
      this.summary.textContent = t(growing && !message.content ? "thinking" : "reasoning");
      render(this.thoughts, message.reasoning, growing && !message.content);
    }
    if (message.role === "user") this.showQuestion(busy);
    else if (!this.byToken) render(this.text, message.content, growing);
    if (!growing) this.showFoot(last, busy);
    else this.foot.replaceChildren();
  }

  showQuestion(busy) {
    const { message, chat } = this;
    const editing = chat.edits.has(message.id);
    this.element.classList.toggle("editing", editing);
    if (!editing) {
      this.editor = null;
      this.text.textContent = message.content;
      return;
    }
    if (!this.editor) {
      this.editor = make("textarea", { rows: 1, "aria-label": t("edit") });
      this.editor.value = chat.edits.get(message.id);
      this.editor.addEventListener("input", () => {
        chat.edits.set(message.id, this.editor.value);
        chat.keepDraft();
        fitTo(this.editor);
        this.sendButton.disabled = this.busy || this.isEmpty();
      });
      this.editor.addEventListener("keydown", (event) => this.editorKey(event));
      this.text.replaceChildren(this.editor);
      requestAnimationFrame(() => fitTo(this.editor));
    }
    this.busy = busy;
  }

  /** Whether there is nothing to send. */
  isEmpty() {
    return !(this.editor.value.trim() || this.message.images);
  }

  editorKey(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      this.chat.cancel(this.message);
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.chat.resend(this.message);
    }
  }

  showFoot(last, busy) {
    const { message, chat } = this;
    const button = (name, onclick, disabled = false) =>
      make("button", { class: `quiet do-${name}`, type: "button", text: t(name), disabled, onclick });
    const buttons = [];
    if (this.editor) {
      buttons.push(button("cancel", () => chat.cancel(message)));
      this.sendButton = button("send", () => chat.resend(message), busy || this.isEmpty());
      buttons.push(this.sendButton);
    } else {
      buttons.push(copyButton(t, () => message.content));
      if (message.role === "user") buttons.push(button("edit", () => chat.edit(message)));
      if (message.role !== "user" || last) buttons.push(button("again", () => chat.again(message), busy));
      if (message.tokens?.length) buttons.push(button(this.byToken ? "text" : "tokens", () => this.switchView(last, busy)));
      if (this.siblings.length > 1) buttons.push(this.branches());
    }
    const error = message.error ? [make("p", { class: "error", role: "alert", text: message.error })] : [];
    const numbers = make("span", { class: "numbers", text: describe(message) });
    this.foot.replaceChildren(...error, make("div", { class: "buttons" }, ...buttons, numbers));
  }

  /** ‹ 2/3 ›: goes through what else was asked or answered at this place. */
  branches() {
    const { siblings } = this;
    const index = siblings.indexOf(this.message);
    const step = (name, mark, to) =>
      make("button", {
        class: `quiet do-${name}`, type: "button", text: mark, "aria-label": t(name), title: t(name), disabled: !siblings[to],
        onclick: () => this.chat.showBranch(siblings[to], name),
      });
    const where = make("span", { text: `${index + 1}/${siblings.length}` });
    return make("span", { class: "branches", role: "group", "aria-label": t("branches") },
      step("before", "‹", index - 1), where, step("after", "›", index + 1));
  }

  switchView(last, busy) {
    this.byToken = !this.byToken;
    hideTip();
    this.text.replaceChildren(...(this.byToken ? [tokenView(this.message.tokens)] : []));
    this.show({ last, busy, growing: false });
    this.foot.querySelector(".do-tokens, .do-text").focus();
  }
}

/** What an answer took: its tokens, its speed, why it ended. */
function describe({ stats, finish, stopped, partial }) {
  const parts = [];
  if (stats?.tokens) parts.push(t("count", { n: number(stats.tokens) }));
  if (stats?.speed) parts.push(t("speed", { n: number(stats.speed, stats.speed < 10 ? 1 : 0) }));
  if (stats?.first) parts.push(t("first", { n: number(stats.first, 2) }));
  if (stats?.cached) parts.push(t("cached", { n: number(stats.cached) }));
  if (finish === "length") parts.push(t("cut"));
  if (stopped) parts.push(t("stopped"));
  if (partial) parts.push(t("unfinished"));
  return parts.join(" · ");
}

/** Do something that makes the conversation grow, and stay at its end if that was in view. */
export function keepingEnd(change) {
  const scroll = byId("scroll");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}
