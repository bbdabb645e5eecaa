// Markdown as DOM nodes. Text becomes text nodes only: nothing that a model writes is read as HTML, and nothing is
// fetched: images become links.

import { copyButton, make } from "./dom.js";
import { highlight } from "./highlight.js";
import { t } from "./language.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ *\|?( *:?-+:? *\|)+( *:?-+:? *)?$/;

/** Show text in an element; parts that are as they were stay, and with them selections. */
export function render(element, text) {
  const blocks = split(text.split("\n"));
  blocks.forEach((lines, index) => {
    const source = lines.join("\n");
    const shown = element.children[index];
    if (shown?.source === source) return;
    const node = block(lines);
    node.source = source;
    if (shown) shown.replaceWith(node);
    else element.append(node);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

/** Cut lines into blocks: arrays of lines. */
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const end = blockEnd(lines, at);
    blocks.push(lines.slice(at, end));
    at = end;
  }
  return blocks;
}

function blockEnd(lines, at) {
  const fence = lines[at].match(FENCE);
  if (fence) return fenceEnd(lines, at, fence[1]);
  if (HEADING.test(lines[at]) || RULE.test(lines[at])) return at + 1;
  if (QUOTE.test(lines[at])) return endOf(lines, at, (line) => line.trim() !== "");
  if (ITEM.test(lines[at])) return listEnd(lines, at);
  if (isTable(lines, at)) return endOf(lines, at, (line) => line.includes("|"));
  return endOf(lines, at, (line, index) => line.trim() !== "" && (index === at || !interrupts(lines, index)));
}

function endOf(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end], end)) end++;
  return Math.max(end, at + 1);
}

function fenceEnd(lines, at, mark) {
  const closing = (line) => line.trim().startsWith(mark) && !line.trim().slice(mark.length).replaceAll(mark[0], "");
  for (let end = at + 1; end < lines.length; end++) if (closing(lines[end])) return end + 1;
  return lines.length;
}

function listEnd(lines, at) {
  const ordered = /\d/.test(lines[at].match(ITEM)[2]);
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (!line.trim()) {
      const next = lines[end + 1] ?? "";
      if (!/^ {2,}\S/.test(next) && !(ITEM.test(next) && /^ *\d/.test(next) === ordered)) return end;
    } else if (!line.startsWith(" ")) {
      const item = line.match(ITEM);
      if (item ? /\d/.test(item[2]) !== ordered || RULE.test(line) : interrupts(lines, end)) return end;
    }
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

function block(lines) {
  const fence = lines[0].match(FENCE);
  if (fence) return code(lines, fence);
  const heading = lines[0].match(HEADING);
  // The page has its own h1 and h2.
  if (heading) return make(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2]));
  if (RULE.test(lines[0])) return make("hr");
  if (QUOTE.test(lines[0])) {
    return make("blockquote", {}, ...split(lines.map((line) => line.replace(QUOTE, ""))).map(block));
  }
  if (ITEM.test(lines[0])) return list(lines);
  if (isTable(lines, 0)) return table(lines);
  return make("p", {}, ...inline(lines.map((line) => line.trimStart()).join("\n")));
}

function code(lines, fence) {
  const language = fence[2].trim().split(/\s/)[0];
  const closed = lines.length > 1 && fenceEnd(lines, 0, fence[1]) === lines.length && FENCE.test(lines.at(-1));
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const bar = make("div", { class: "bar" }, make("span", { text: language }), copyButton(t, () => text));
  return make("div", { class: "code" }, bar, make("pre", { tabindex: 0 }, make("code", {}, ...highlight(text, language))));
}

function list(lines) {
  const [, , mark] = lines[0].match(ITEM);
  const element = make(/\d/.test(mark) ? "ol" : "ul", { start: /\d/.test(mark) ? parseInt(mark) : undefined });
  const indent = lines[0].match(ITEM)[1].length;
  const items = [];
  for (const line of lines) {
    const item = line.match(ITEM);
    if (item && item[1].length <= indent + 1) items.push([line.slice(item[0].length)]);
    else items.at(-1).push(line);
  }
  for (const [first, ...rest] of items) {
    const deep = Math.min(...rest.filter((line) => line.trim()).map((line) => line.search(/\S/)), 9);
    const blocks = split([first, ...rest.map((line) => line.slice(Math.min(deep, line.search(/\S|$/))))]);
    const nodes = blocks.flatMap((each, index) => {
      const node = block(each);
      return index === 0 && node.tagName === "P" ? [...node.childNodes] : [node];
    });
    element.append(make("li", {}, ...nodes));
  }
  return element;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const sides = cells(lines[1]).map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "middle" : "end") : undefined));
  const row = (line, kind) =>
    make("tr", {}, ...cells(line).map((cell, index) => make(kind, { class: sides[index] }, ...inline(cell))));
  const body = make("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
  return make("div", { class: "table", tabindex: 0 }, make("table", {}, make("thead", {}, row(lines[0], "th")), body));
}

const INLINE = new RegExp(
  [
    "(?<escape>\\\\[!-/:-@[-`{-~])",
    "(?<ticks>`+)(?<code>[^]*?[^`])\\k<ticks>(?!`)",
    "(?<image>!?)\\[(?<label>[^\\]]*)\\]\\((?<target>[^\\s()]*(?:\\([^\\s()]*\\)[^\\s()]*)*)(?: +\"[^\"]*\")?\\)",
    "<?(?<url>https?://[^\\s<>]*[^\\s<>.,:;!?'\")\\]*])>?",
    "(?<![\\w*])\\*\\*\\*(?=\\S)(?<both>[^]*?\\S)\\*\\*\\*(?!\\*)",
    "\\*\\*(?=\\S)(?<strong>[^]*?\\S)\\*\\*(?!\\*)",
    "(?<!\\w)__(?=\\S)(?<strong2>[^]*?\\S)__(?!\\w)",
    "(?<!\\*)\\*(?=[^\\s*])(?<em>[^*]*?[^\\s*])\\*(?!\\*)",
    "(?<!\\w)_(?=[^\\s_])(?<em2>[^_]*?[^\\s_])_(?!\\w)",
    "~~(?=\\S)(?<del>[^]*?\\S)~~",
    "(?<break> {2,}\\n|\\n)",
  ].join("|"),
);

/** The nodes of a piece of running text. */
function inline(text) {
  const nodes = [];
  for (let rest = text; rest; ) {
    const match = rest.match(INLINE);
    if (!match) {
      nodes.push(rest);
      break;
    }
    if (match.index) nodes.push(rest.slice(0, match.index));
    nodes.push(span(match[0], match.groups));
    rest = rest.slice(match.index + match[0].length);
  }
  return nodes;
}

function span(all, found) {
  if (found.escape) return found.escape[1];
  if (found.code) return make("code", { text: found.code.replace(/^ (.*) $/s, "$1") });
  if (found.target !== undefined) return link(found.target, found.label || found.target, all);
  if (found.url) return link(found.url, found.url, all);
  if (found.both) return make("strong", {}, make("em", {}, ...inline(found.both)));
  if (found.strong ?? found.strong2) return make("strong", {}, ...inline(found.strong ?? found.strong2));
  if (found.em ?? found.em2) return make("em", {}, ...inline(found.em ?? found.em2));
  if (found.del) return make("del", {}, ...inline(found.del));
  return make("br");
}

function link(target, label, all) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return all;
  const content = label === target ? [label] : inline(label);
  return make("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, ...content);
}
