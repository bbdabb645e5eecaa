// Markdown as DOM nodes. Text becomes text nodes only: nothing that a model writes is read as HTML, and nothing is
// fetched: images become links.

import { copyButton, make } from "./dom.js";
import { emphasize } from "./emphasis.js";
import { highlight } from "./highlight.js";
import { t } from "./language.js";
import { Spans, openFormula } from "./spans.js";

const FENCE = /^ {0,3}(`{3,}(?!.*`)|~{3,})\s*(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const UNDERLINE = /^ {0,3}(=+|-{2,}) *$/;
const INDENTED = /^( {4}|\t)/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ *\|?( *:?-+:? *\|)+( *:?-+:? *)?$/;

const DEEPEST = 20;
let depth = 0; // of the quotes and lists around a block

/** Show text in an element; parts that are as they were stay, and with them selections. growing: more will come, so
 *  that a formula which is not closed is shown as it is written. */
export function render(element, text, growing = false) {
  const blocks = split(text.split("\n"), growing);
  blocks.forEach((lines, index) => {
    const open = growing && index === blocks.length - 1;
    const source = `${open ? "…" : ""}${lines.join("\n")}`;
    const shown = element.children[index];
    if (shown?.source === source) return;
    const node = block(lines, open);
    node.source = source;
    if (shown) shown.replaceWith(node);
    else element.append(node);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

/** Cut lines into blocks: arrays of lines. */
function split(lines, growing) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const end = blockEnd(lines, at, growing);
    blocks.push(lines.slice(at, end));
    at = end;
  }
  return blocks;
}

function blockEnd(lines, at, growing) {
  const fence = lines[at].match(FENCE);
  if (fence) return fenceEnd(lines, at, fence[1]);
  if (HEADING.test(lines[at]) || RULE.test(lines[at])) return at + 1;
  if (QUOTE.test(lines[at])) {
    const goesOn = (index) => lines[index - 1].replace(QUOTE, "").trim() && lines[index].trim() && !interrupts(lines, index);
    return endOf(lines, at, (line, index) => QUOTE.test(line) || goesOn(index));
  }
  if (ITEM.test(lines[at])) return listEnd(lines, at, growing);
  if (isTable(lines, at)) return endOf(lines, at, (line) => line.includes("|"));
  if (INDENTED.test(lines[at])) return codeEnd(lines, at);
  let end = at;
  while (end < lines.length && lines[end].trim()) {
    if (end > at && UNDERLINE.test(lines[end])) return end + 1;
    if (end > at && interrupts(lines, end)) break;
    end = formulaEnd(lines, end, growing);
  }
  return end;
}

/** Behind the line that closes the displayed formula which a line leaves open; else behind the line. */
function formulaEnd(lines, at, growing) {
  const closing = openFormula(lines[at]);
  if (!closing) return at + 1;
  for (let end = at + 1; end < lines.length; end++) {
    if (lines[end].includes(closing)) return end + 1;
    if (FENCE.test(lines[end]) || HEADING.test(lines[end])) return at + 1;
  }
  return growing ? lines.length : at + 1;
}

function endOf(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end], end)) end++;
  return Math.max(end, at + 1);
}

function codeEnd(lines, at) {
  let end = endOf(lines, at, (line) => INDENTED.test(line) || !line.trim());
  while (!lines[end - 1].trim()) end--;
  return end;
}

function fenceEnd(lines, at, mark) {
  for (let end = at + 1; end < lines.length; end++) if (closes(lines[end], mark)) return end + 1;
  return lines.length;
}

function closes(line, mark) {
  return line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
}

function listEnd(lines, at, growing) {
  const kind = (item) => item[2].at(-1);
  const first = kind(lines[at].match(ITEM));
  let end = formulaEnd(lines, at, growing);
  for (; end < lines.length; end = formulaEnd(lines, end, growing)) {
    const line = lines[end];
    if (/^ {2,}\S/.test(line)) continue;
    const item = line.match(ITEM);
    if (!line.trim()) {
      let next = end;
      while (next < lines.length && !lines[next].trim()) next++;
      const after = lines[next]?.match(ITEM);
      if (!/^ {2,}\S/.test(lines[next] ?? "") && !(after && kind(after) === first)) return end;
    } else if (item ? kind(item) !== first || RULE.test(line) : interrupts(lines, end)) return end;
  }
  return end;
}

function interrupts(lines, at) {
  const line = lines[at];
  return [FENCE, HEADING, RULE, QUOTE].some((mark) => mark.test(line)) || /^ {0,3}([-*+]|1[.)]) +\S/.test(line)
    || isTable(lines, at);
}

function isTable(lines, at) {
  return lines[at].includes("|") && DELIMITERS.test(lines[at + 1] ?? "");
}

function block(lines, growing) {
  const fence = lines[0].match(FENCE);
  if (fence) return code(lines, fence);
  const heading = lines[0].match(HEADING);
  // The page has its own h1 and h2.
  if (heading) return make(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2] ?? "", growing));
  if (RULE.test(lines[0])) return make("hr");
  if (depth < DEEPEST && QUOTE.test(lines[0])) {
    return make("blockquote", {}, ...blocks(lines.map((line) => line.replace(QUOTE, "")), growing));
  }
  if (depth < DEEPEST && ITEM.test(lines[0])) return list(lines, growing);
  if (isTable(lines, 0)) return table(lines);
  if (INDENTED.test(lines[0])) return codeBox("", lines.map((line) => line.replace(INDENTED, "")).join("\n"));
  const underline = lines.length > 1 && !openFormula(lines[0]) && lines.at(-1).match(UNDERLINE);
  if (underline) {
    const title = lines.slice(0, -1).map((line) => line.trim()).join("\n");
    return make(underline[1][0] === "=" ? "h3" : "h4", {}, ...inline(title, growing));
  }
  return make("p", {}, ...inline(lines.map((line) => line.trimStart()).join("\n"), growing));
}

function blocks(lines, growing) {
  depth++;
  const cut = split(lines, growing);
  const found = cut.map((each, index) => block(each, growing && index === cut.length - 1));
  depth--;
  return found;
}

function code(lines, fence) {
  const language = fence[2].trim().split(/\s/)[0];
  const closed = lines.length > 1 && closes(lines.at(-1), fence[1]);
  const indent = new RegExp(`^ {0,${lines[0].search(/\S/)}}`);
  return codeBox(language, lines.slice(1, closed ? -1 : undefined).map((line) => line.replace(indent, "")).join("\n"));
}

function codeBox(language, text) {
  const bar = make("div", { class: "bar" }, make("span", { text: language }), copyButton(t, () => text));
  return make("div", { class: "code" }, bar, make("pre", { tabindex: 0 }, make("code", {}, ...highlight(text, language))));
}

function list(lines, growing) {
  const [, , mark] = lines[0].match(ITEM);
  const element = make(/\d/.test(mark) ? "ol" : "ul", { start: parseInt(mark) !== 1 && /\d/.test(mark) ? parseInt(mark) : undefined });
  const indent = lines[0].match(ITEM)[1].length;
  const items = [];
  for (let at = 0; at < lines.length; ) {
    const item = lines[at].match(ITEM);
    const end = formulaEnd(lines, at, growing);
    if (item && item[1].length <= indent + 1) {
      const offset = item[3].length > 4 ? item[0].length - item[3].length + 1 : item[0].length;
      items.push([offset, lines[at].slice(offset)]);
    } else items.at(-1).push(lines[at]);
    items.at(-1).push(...lines.slice(at + 1, end));
    at = end;
  }
  items.forEach(([offset, first, ...rest], index) => {
    const deep = Math.min(...rest.filter((line) => line.trim()).map((line) => line.search(/\S/)), offset);
    const [, mark, text] = first.match(/^(?:\[([ xX])\]\s+)?(.*)$/);
    const inner = [mark ? text : first, ...rest.map((line) => line.slice(Math.min(deep, line.search(/\S|$/))))];
    const nodes = blocks(inner, growing && index === items.length - 1);
    const beginning = nodes[0]?.tagName === "P" ? [...nodes.shift().childNodes] : [];
    element.append(make("li", { class: mark ? "task" : undefined }, ...(mark ? [box(mark, text)] : []), ...beginning, ...nodes));
  });
  return element;
}

/** The box of a task. */
function box(mark, text) {
  return make("input", { type: "checkbox", disabled: true, checked: mark !== " ", "aria-label": text });
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const sides = cells(lines[1]).map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "middle" : "end") : undefined));
  const row = (line, kind) =>
    make("tr", {}, ...cells(line).map((cell, index) => make(kind, { class: sides[index] }, ...inline(cell))));
  const body = make("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
  return make("div", { class: "table", tabindex: 0 }, make("table", {}, make("thead", {}, row(lines[0], "th")), body));
}

const LINK = new RegExp(
  [
    "(?<image>!?)\\[(?<label>(?:[^\\[\\]]|\\[[^\\[\\]]*\\])*)\\]\\(\\s*"
      + "(?:<(?<angled>[^<>\\n]*)>|(?<target>[^\\s()<]*(?:\\([^\\s()]*\\)[^\\s()]*)*))(?:\\s+(?:\"[^\"]*\"|'[^']*'|\\([^()]*\\)))?\\s*\\)",
    "<(?<auto>(?:https?://|mailto:)[^\\s<>]*)>",
    "(?<url>https?://[^\\s<>]*[^\\s<>.,:;!?'\")\\]*_~，。；：！？）】」』、])",
    "(?<break>(?: {2,}|\\\\)?\\n)",
  ].join("|"),
);

/** The nodes of a piece of running text. */
function inline(text, growing) {
  const spans = new Spans(text, growing);
  return runs(spans.text, spans);
}

function runs(text, spans, linked = false) {
  const items = [];
  let plain = "";
  for (let rest = text; rest; ) {
    const match = rest.match(LINK) ?? { index: rest.length, 0: "" };
    plain += rest.slice(0, match.index);
    rest = rest.slice(match.index + match[0].length);
    const node = match[0] && (match.groups.break ? make("br") : linked ? null : link(match.groups, spans));
    if (node) items.push(plain, node);
    plain = node ? "" : plain + match[0];
  }
  return emphasize([...items, plain].filter((item) => item !== ""), (part) => spans.nodes(part));
}

/** A link, or null if its target is none that is followed from here. */
function link({ angled, target, auto, url, label }, spans) {
  const href = spans.restored(angled ?? target ?? auto ?? url);
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return null;
  const content = label ? runs(label, spans, true) : [href];
  return make("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...content);
}
