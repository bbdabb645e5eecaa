// The controls of sampling.

import { byId } from "./dom.js";
import { load, save } from "./local.js";

const KEPT = "sophserve.settings";
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const FIELDS = [...NUMBERS, "system"];

/** Show the kept settings, and keep every change. */
export function connectSettings() {
  const kept = keptSettings();
  for (const name of FIELDS) {
    byId(name).value = kept[name] ?? "";
    byId(name).addEventListener("input", changed);
  }
  byId("logprobs").checked = kept.logprobs ?? true;
  byId("logprobs").addEventListener("input", changed);
  for (const slider of document.querySelectorAll("input[type=range]")) {
    slider.addEventListener("input", () => {
      byId(slider.dataset.for).value = slider.value;
      changed();
    });
  }
  byId("reset").addEventListener("click", () => {
    for (const name of FIELDS) byId(name).value = "";
    byId("logprobs").checked = true;
    changed();
  });
  changed();
}

function keptSettings() {
  try {
    return JSON.parse(load(KEPT)) ?? {};
  } catch {
    return {};
  }
}

function changed() {
  for (const slider of document.querySelectorAll("input[type=range]")) {
    const { value } = byId(slider.dataset.for);
    slider.value = value || 1;
    slider.classList.toggle("unset", !value);
  }
  const fields = Object.fromEntries(FIELDS.map((name) => [name, byId(name).value]));
  save(KEPT, JSON.stringify({ ...fields, logprobs: byId("logprobs").checked }));
}

/** The first control with a value that cannot be sent. */
export function wrongSetting() {
  return NUMBERS.map(byId).find((input) => !input.checkValidity());
}

export function system() {
  return byId("system").value.trim();
}

/** Put another in its place. */
export function setSystem(text) {
  if (text === system()) return;
  byId("system").value = text;
  changed();
}

/** The system prompt's message, if there is one. */
export function systemMessages() {
  return system() ? [{ role: "system", content: system() }] : [];
}

/** The numbers that the controls set. */
export function numbers() {
  const given = NUMBERS.filter((name) => byId(name).value !== "");
  return Object.fromEntries(given.map((name) => [name, Number(byId(name).value)]));
}

/** The fields of a request that the controls set. */
export function samplingFields() {
  return { ...numbers(), ...(byId("logprobs").checked && { logprobs: true, top_logprobs: 5 }) };
}
