// An answer token by token: coloured by probability, with the alternatives in a tooltip.

import { byId, make } from "./dom.js";
import { number, t } from "./language.js";

/** A list of tokens as chat completions describe them. Arrow keys go from one to the next. */
export function tokenView(tokens) {
  const view = make("div", { class: "tokens", role: "group", "aria-label": t("tokens") });
  const decoder = new TextDecoder();
  for (const token of tokens) {
    const text = token.bytes ? decoder.decode(new Uint8Array(token.bytes), { stream: true }) : token.token;
    const span = make("span", { class: `token p${level(token.logprob)}`, tabindex: view.childElementCount ? -1 : 0 });
    span.textContent = text || "·"; // the rest of the character comes with a later token
    span.described = token;
    view.append(span);
  }
  for (const name of ["mouseover", "focusin"]) view.addEventListener(name, (event) => showTip(event.target));
  for (const name of ["mouseleave", "focusout"]) view.addEventListener(name, hideTip);
  view.addEventListener("keydown", move);
  return view;
}

function level(logprob) {
  const limits = [0.9, 0.7, 0.4, 0.15];
  const found = limits.findIndex((limit) => Math.exp(logprob) >= limit);
  return found < 0 ? limits.length : found;
}

function move(event) {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const next = step && event.target[step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function showTip(span) {
  const token = span.described;
  if (!token) return hideTip();
  const top = token.top_logprobs ?? [];
  const same = (other) => String(other.bytes) === String(token.bytes) && other.token === token.token;
  const rows = top.some(same) ? top : [...top, token];
  const tip = byId("tip");
  tip.replaceChildren(
    ...rows.map((each) => {
      const share = Math.exp(each.logprob);
      const bar = make("i", { class: "bar" });
      bar.style.width = `${Math.max(1, 100 * share)}%`;
      const percent = make("span", { class: "share", text: `${number(100 * share, share < 0.1 ? 2 : 1)} %` });
      return make("div", { class: same(each) ? "row chosen" : "row" },
        make("code", { text: visible(each.token) }), make("span", { class: "track" }, bar), percent);
    }),
  );
  tip.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  const [box, own] = [span.getBoundingClientRect(), tip.getBoundingClientRect()];
  const above = box.top - own.height - 8;
  tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
}

/** Put the tooltip away. */
export function hideTip() {
  byId("tip").hidden = true;
}

function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}
