// One line that tells what happened, with a way back where there is one. It stays until it is closed or replaced.

import { byId, make } from "./dom.js";
import { t } from "./language.js";

/** Tell something. action: {name, run} of a button. */
export function tell(text, { error = false, action } = {}) {
  const button = (name, properties) => make("button", { class: `quiet ${name}`, type: "button", ...properties });
  const run = () => {
    clear();
    action.run();
  };
  byId("notice").replaceChildren(
    make("p", { class: error && "error", role: error && "alert", text }),
    ...(action ? [button("act", { text: t(action.name), onclick: run })] : []),
    button("close", { text: "×", "aria-label": t("close"), onclick: clear }),
  );
}

/** Tell that the browser did not keep a conversation. */
export function tellUnkept(error) {
  tell(t(error?.name === "QuotaExceededError" ? "full" : "unkept", { why: error?.message }), { error: true });
}

/** Tell nothing any more of what went well and cannot be taken back. */
export function pass() {
  if (!byId("notice").querySelector(".error, .act")) clear();
}

function clear() {
  byId("notice").replaceChildren();
}
