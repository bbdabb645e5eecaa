// The page: a conversation with the model.

import { byId, make } from "./dom.js";
import { switchLanguage, t, translate } from "./language.js";
import { MessageView, keepingEnd } from "./messages.js";
import { ServerError, stream } from "./server.js";
import { connectSettings, samplingFields, systemMessages, wrongSetting } from "./settings.js";
import { Status } from "./status.js";
import { loadMessages, saveMessages } from "./store.js";

const NARROW = matchMedia("(max-width: 60rem)");

let messages = loadMessages();
let views = [];
let running = null; // the AbortController of the answer that is being written

connectSettings();
const status = new Status(show);

function rebuild() {
  views = messages.map((message) => new MessageView(message, { again, edit }));
  byId("messages").replaceChildren(...views.map((view) => view.element));
  show();
  byId("scroll").scrollTop = byId("scroll").scrollHeight;
}

function show() {
  views.forEach((view, index) => view.show(index === views.length - 1, Boolean(running) && index === views.length - 1));
  byId("empty").hidden = messages.length > 0 || !status.ready;
  byId("send").hidden = Boolean(running);
  byId("stop").hidden = !running;
  byId("send").disabled = !status.ready || !byId("input").value.trim();
}

function add(message) {
  messages.push(message);
  views.push(new MessageView(message, { again, edit }));
  byId("messages").append(views.at(-1).element);
}

async function send() {
  const content = byId("input").value.trim();
  if (!content || running || !status.ready || !settingsAreRight()) return;
  byId("input").value = "";
  fit();
  add({ role: "user", content });
  await answer();
}

function settingsAreRight() {
  const wrong = wrongSetting();
  if (wrong) {
    showPanel(true);
    wrong.reportValidity();
  }
  return !wrong;
}

async function answer() {
  const history = messages.filter(({ role, content }) => role === "user" || content);
  const body = {
    model: status.model,
    messages: [...systemMessages(), ...history.map(({ role, content }) => ({ role, content }))],
    stream: true,
    stream_options: { include_usage: true },
    ...samplingFields(),
  };
  const message = { role: "assistant", content: "", reasoning: "", tokens: [] };
  add(message);
  running = new AbortController();
  show();
  byId("scroll").scrollTop = byId("scroll").scrollHeight;
  try {
    await read(body, message, running.signal);
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else {
      message.error = error instanceof ServerError ? error.message : t("lost");
      status.fail(error);
    }
  }
  running = null;
  byId("said").textContent = message.error ? "" : `${t("answered")} ${message.content}`;
  keepingEnd(show);
  saveMessages(messages);
}

async function read(body, message, signal) {
  const started = performance.now();
  let first = 0;
  let due = false;
  const draw = () => {
    due = false;
    if (running) keepingEnd(() => views.at(-1).show(true, true));
  };
  for await (const { choices, usage } of stream("v1/chat/completions", body, signal)) {
    const [choice] = choices;
    if (choice?.delta.content || choice?.delta.reasoning) first ||= performance.now();
    message.content += choice?.delta.content ?? "";
    message.reasoning += choice?.delta.reasoning ?? choice?.delta.reasoning_content ?? "";
    message.tokens.push(...(choice?.logprobs?.content ?? []));
    message.finish = choice?.finish_reason ?? message.finish;
    if (usage) message.stats = measure(usage, started, first);
    if (!due) {
      due = true;
      requestAnimationFrame(draw);
    }
  }
}

function measure(usage, started, first) {
  const seconds = (performance.now() - first) / 1000;
  const tokens = usage.completion_tokens;
  return {
    tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    first: first && (first - started) / 1000,
    speed: first && tokens > 1 ? (tokens - 1) / seconds : 0,
  };
}

async function again() {
  if (running || !status.ready || !settingsAreRight()) return;
  if (messages.at(-1).role === "assistant") messages.pop();
  rebuild();
  await answer();
}

function edit(message) {
  if (running) return;
  messages = messages.slice(0, messages.indexOf(message));
  saveMessages(messages);
  rebuild();
  byId("input").value = message.content;
  fit();
  byId("input").focus();
}

function startAnew() {
  running?.abort();
  messages = [];
  saveMessages(messages);
  rebuild();
  byId("input").focus();
}

function fit() {
  const input = byId("input");
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, innerHeight * 0.4)}px`;
  byId("send").disabled = !status.ready || !input.value.trim();
}

function showPanel(shown) {
  document.body.classList.toggle("without-panel", !shown);
  byId("panel-toggle").setAttribute("aria-expanded", shown);
}

function speak() {
  translate(document);
  byId("examples").replaceChildren(
    ...t("examples").map((text) => {
      const onclick = () => {
        byId("input").value = text;
        send();
      };
      return make("button", { type: "button", text, onclick });
    }),
  );
  status.show();
  show();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("input").addEventListener("input", fit);
byId("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key").open) return;
  if (running) running.abort();
  else if (NARROW.matches) showPanel(false);
});
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", startAnew);
byId("language").addEventListener("click", () => {
  switchLanguage();
  speak();
});
byId("panel-toggle").addEventListener("click", () => showPanel(document.body.classList.contains("without-panel")));
NARROW.addEventListener("change", () => showPanel(!NARROW.matches));
showPanel(!NARROW.matches);
speak();
rebuild();
byId("input").focus();
