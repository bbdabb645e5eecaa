// The conversation as it is shown.

import { byId, copyButton, make } from "./dom.js";
import { number, t } from "./language.js";
import { render } from "./markdown.js";
import { hideTip, tokenView } from "./tokens.js";

/** One message. `actions` are what the page does with it: again(), edit(message). */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.byToken = false;
    this.who = make("h3", {});
    this.summary = make("summary", {});
    this.thoughts = make("div", { class: "text" });
    this.reasoning = make("details", { class: "reasoning" }, this.summary, this.thoughts);
    this.text = make("div", { class: "text" });
    this.foot = make("div", { class: "foot" });
    const parts = [this.who, this.reasoning, this.text, this.foot];
    if (message.role === "user") parts.splice(1, 1);
    this.element = make("article", { class: `message ${message.role === "user" ? "user" : "answer"}` }, ...parts);
  }

  /** Draw what the message now holds. last: whether nothing follows it; busy: whether it still grows. */
  show(last, busy) {
    const { message } = this;
    this.who.textContent = t(message.role === "user" ? "you" : "assistant");
    this.element.classList.toggle("busy", busy);
    this.element.setAttribute("aria-busy", busy);
    this.reasoning.hidden = !message.reasoning;
    if (message.reasoning) {
      this.summary.textContent = t(busy && !message.content ? "thinking" : "reasoning");
      render(this.thoughts, message.reasoning);
    }
    if (message.role === "user") this.text.textContent = message.content;
    else if (!this.byToken) render(this.text, message.content);
    if (!busy) this.showFoot(last);
    else this.foot.replaceChildren();
  }

  showFoot(last) {
    const { message } = this;
    const buttons = [copyButton(t, () => message.content)];
    const button = (name, onclick) => make("button", { class: "quiet", type: "button", text: t(name), onclick });
    if (message.role === "user") buttons.push(button("edit", () => this.actions.edit(message)));
    else {
      if (last) buttons.push(button("again", () => this.actions.again()));
      if (message.tokens?.length) buttons.push(button(this.byToken ? "text" : "tokens", () => this.switchView(last)));
    }
    const error = message.error ? [make("p", { class: "error", role: "alert", text: message.error })] : [];
    const numbers = make("span", { class: "numbers", text: describe(message) });
    this.foot.replaceChildren(...error, make("div", { class: "buttons" }, ...buttons, numbers));
  }

  switchView(last) {
    this.byToken = !this.byToken;
    hideTip();
    this.text.replaceChildren(...(this.byToken ? [tokenView(this.message.tokens)] : []));
    this.show(last, false);
    [...this.foot.querySelectorAll("button")].at(-1).focus();
  }
}

/** What an answer took: its tokens, its speed, why it ended. */
function describe({ stats, finish, stopped }) {
  const parts = [];
  if (stats?.tokens) parts.push(t("count", { n: number(stats.tokens) }));
  if (stats?.speed) parts.push(t("speed", { n: number(stats.speed, stats.speed < 10 ? 1 : 0) }));
  if (stats?.first) parts.push(t("first", { n: number(stats.first, 2) }));
  if (stats?.cached) parts.push(t("cached", { n: number(stats.cached) }));
  if (finish === "length") parts.push(t("cut"));
  if (stopped) parts.push(t("stopped"));
  return parts.join(" · ");
}

/** Do something that makes the conversation grow, and stay at its end if that was in view. */
export function keepingEnd(change) {
  const scroll = byId("scroll");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}
