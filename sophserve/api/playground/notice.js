// One line that tells what happened, with a way back where there is one. It stays until it is closed or replaced.

import { byId, make } from "./dom.js";
import { t } from "./language.js";

/** Tell something. action: {name, run} of a button. */
export function tell(text, { error = false, action } = {}) {
  const buttons = [];
  if (action) {
    const run = () => {
      clear();
      action.run();
    };
    buttons.push(make("button", { class: "quiet act", type: "button", text: t(action.name), onclick: run }));
  }
  buttons.push(make("button", { class: "quiet close", type: "button", text: "×", "aria-label": t("close"), onclick: clear }));
  byId("notice").replaceChildren(
    make("p", { class: error ? "error" : undefined, role: error ? "alert" : undefined, text }), ...buttons,
  );
}

/** Tell nothing any more of what went well and cannot be taken back. */
export function pass() {
  if (!byId("notice").querySelector(".error, .act")) clear();
}

/** Tell nothing any more. */
export function clear() {
  byId("notice").replaceChildren();
}
