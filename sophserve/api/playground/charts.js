// The live view of the server: what /metrics counts, drawn.

import { make, makeIn } from "./dom.js";
import { number, t } from "./language.js";

const SAMPLES = 60;
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [280, 44];

/** The values of Prometheus' text format by name, summed over all labels. */
export function parseMetrics(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const match = line.match(/^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)/);
    if (match) values.set(match[1], (values.get(match[1]) ?? 0) + Number(match[2]));
  }
  return values;
}

/** One number over time: read(now, before, seconds) makes it of two scrapes. */
class Chart {
  constructor(name, unit, read, format, most) {
    Object.assign(this, { name, unit, read, format, most });
    this.samples = [];
    this.title = make("span", { class: "name" });
    this.value = make("output", {});
    this.unitText = make("span", { class: "unit" });
    this.line = makeIn(SVG, "path", { class: "line" });
    this.area = makeIn(SVG, "path", { class: "area" });
    const shape = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
    const svg = makeIn(SVG, "svg", shape, this.area, this.line);
    const figures = make("div", { class: "figures" }, this.title, make("span", {}, this.value, this.unitText));
    this.element = make("div", { class: "chart", id: `chart-${name}` }, figures, svg);
  }

  add(now, before, seconds) {
    this.samples = [...this.samples, this.read(now, before, seconds)].slice(-SAMPLES);
    this.show();
  }

  show() {
    this.title.textContent = t(this.name);
    this.unitText.textContent = typeof this.unit === "function" ? this.unit() : t(this.unit);
    this.value.textContent = this.samples.length ? this.format(this.samples.at(-1)) : "–";
    const most = Math.max(this.most, ...this.samples) * 1.05;
    const x = (index) => WIDTH - ((this.samples.length - 1 - index) * WIDTH) / (SAMPLES - 1);
    const points = this.samples.map((value, index) => {
      return `${x(index).toFixed(1)},${(HEIGHT - 1.5 - (value / most) * (HEIGHT - 4)).toFixed(1)}`;
    });
    if (points.length < 2) return;
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${points.join("L")}L${WIDTH},${HEIGHT}L${x(0).toFixed(1)},${HEIGHT}Z`);
  }
}

/** All charts, in an element. */
export class Charts {
  constructor(element) {
    const rate = (name) => (now, before, seconds) => ((now.get(name) ?? 0) - (before.get(name) ?? 0)) / seconds;
    const gauge = (name) => (now) => now.get(name) ?? 0;
    const percent = (value) => `${number(100 * value, value && value < 0.1 ? 1 : 0)} %`;
    const speed = (value) => number(value, value && value < 10 ? 1 : 0);
    const hits = (now) => {
      const queries = now.get("vllm:prefix_cache_queries_total") ?? 0;
      return queries ? now.get("vllm:prefix_cache_hits_total") / queries : 0;
    };
    const waiting = () => `${t("running")}, ${number(this.waiting)} ${t("waiting")}`;
    this.waiting = 0;
    this.charts = [
      new Chart("generation", "per_second", rate("vllm:generation_tokens_total"), speed, 10),
      new Chart("prompts", "per_second", rate("vllm:prompt_tokens_total"), speed, 10),
      new Chart("requests", waiting, gauge("vllm:num_requests_running"), (value) => number(value), 2),
      new Chart("kv", "used", gauge("vllm:kv_cache_usage_perc"), percent, 0.02),
      new Chart("hits", "of_tokens", hits, percent, 1),
    ];
    element.append(...this.charts.map((chart) => chart.element));
    this.show();
  }

  /** Take in the text of /metrics. */
  update(text) {
    const [now, time] = [parseMetrics(text), performance.now()];
    this.waiting = now.get("vllm:num_requests_waiting") ?? 0;
    if (this.last) this.charts.forEach((chart) => chart.add(now, this.last, (time - this.time) / 1000));
    [this.last, this.time] = [now, time];
  }

  /** Draw again, in the language of the page. */
  show() {
    this.charts.forEach((chart) => chart.show());
  }
}
