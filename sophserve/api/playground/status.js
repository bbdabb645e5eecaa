// What the server is doing: loads, is ready, asks for a key, is gone.

import { Charts } from "./charts.js";
import { byId, make } from "./dom.js";
import { t } from "./language.js";
import { ServerError, ask, hasKey, useKey } from "./server.js";

const STATES = { loading: "busy" };

/** Follows the server and calls onchange() when it becomes ready, or no longer is. */
export class Status {
  constructor(onchange) {
    this.onchange = onchange;
    this.name = "connecting";
    this.seeing = new Set(); // the models that take pictures
    this.limits = {}; // bytes that a request and its pictures may have, as far as the server tells
    this.charts = new Charts(byId("charts"));
    byId("key").addEventListener("close", () => this.takeKey());
    byId("model").addEventListener("change", onchange);
    byId("state").addEventListener("click", () => this.name === "locked" && this.askKey());
    this.watch();
  }

  get ready() {
    return this.name === "ready";
  }

  get model() {
    return byId("model").value;
  }

  /** Whether the model takes pictures. */
  get sees() {
    return this.seeing.has(this.model);
  }

  async watch() {
    for (;;) {
      await this.look();
      await new Promise((resolve) => setTimeout(resolve, document.hidden ? 5000 : 1000));
    }
  }

  async look() {
    try {
      if (!this.ready) {
        await ask("health");
        if (this.name === "locked" && !hasKey()) return; // waits for the reader
        await this.loadModels();
        this.set("ready");
      }
      if (byId("panel").checkVisibility()) this.charts.update(await (await ask("metrics")).text());
      else await ask("health");
    } catch (error) {
      this.fail(error);
    }
  }

  async loadModels() {
    const { data } = await (await ask("v1/models")).json();
    const chosen = this.model;
    byId("model").replaceChildren(...data.map(({ id }) => make("option", { value: id, text: id })));
    if (data.some(({ id }) => id === chosen)) byId("model").value = chosen;
    byId("model").disabled = data.length < 2;
    this.seeing = new Set(data.filter((model) => model.architecture?.input_modalities?.includes("image")).map(({ id }) => id));
    if (this.seeing.size) this.limits = (await (await ask("server_info")).json()).limits ?? {};
  }

  fail(error) {
    const body = error.body ?? {};
    if (error.status === 401) this.askKey();
    else if (error.status === 503 && body.status) this.set(STATES[body.status] ?? body.status, body);
    else if (error instanceof ServerError) this.set("ready"); // it answers, if not to this
    else this.set("offline");
  }

  set(name, { stage, done, total } = {}) {
    const loading = name === "busy" || name === "restarting";
    byId("loading").hidden = !loading;
    byId("stage").textContent = total ? `${stage} · ${Math.floor((100 * done) / total)} %` : stage ?? "";
    if (total) byId("progress").value = done / total;
    else byId("progress").removeAttribute("value");
    const before = this.name;
    this.name = name;
    this.show();
    if (before !== name) this.onchange();
  }

  /** Draw again, in the language of the page. */
  show() {
    byId("state").className = `state ${this.name}`;
    byId("state").lastElementChild.textContent = t(this.name);
    this.charts.show();
  }

  askKey() {
    this.set("locked");
    byId("key-wrong").hidden = !hasKey();
    if (!byId("key").open) byId("key").showModal();
  }

  takeKey() {
    const key = byId("key-input").value.trim();
    byId("key-input").value = "";
    if (!key) return;
    useKey(key);
    this.look();
  }
}
