// Emphasis, as the CommonMark specification finds it: runs of * and _ that open and close, and ~ for what is crossed out.

import { make } from "./dom.js";

const DEEPEST = 20;
const CJK = /[\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/;

/** Nodes of a list of nodes and texts; nodes(text) makes those of a text without emphasis. */
export function emphasize(items, nodes) {
  const found = items.flatMap((item, index) => {
    if (typeof item !== "string") return [{ nodes: [item] }];
    const [before, after] = [items[index - 1], items[index + 1]].map((each) => (each === undefined || each.tagName === "BR" ? " " : "x"));
    return delimited(item, before, after, nodes);
  });
  pair(found);
  return found.flatMap(plain);
}

function plain({ nodes, mark, count }) {
  return nodes ?? (count ? [mark.repeat(count)] : []);
}

/** Cut a text at its runs of marks; before and after are the characters around it. */
function delimited(text, before, after, nodes) {
  return text.split(/(\*+|_+|~+)/).flatMap((part, index, parts) => {
    if (index % 2 === 0) return part ? [{ nodes: nodes(part) }] : [];
    const last = [...(parts[index - 1] || parts[index - 2] || before)].at(-1);
    const next = [...(parts[index + 1] || parts[index + 2] || after)][0];
    return [run(part, last, next)];
  });
}

function run(text, before, after) {
  const [mark, count] = [text[0], text.length];
  const [space, point] = [/[\s\u00a0]/, /[\p{P}\p{S}]/u];
  // Text without spaces between words, as Chinese is, emphasizes what begins or ends with a quotation mark, too.
  const left = !space.test(after) && (!point.test(after) || space.test(before) || point.test(before) || CJK.test(before));
  const right = !space.test(before) && (!point.test(before) || space.test(after) || point.test(after) || CJK.test(after));
  if (mark === "~" && count > 2) return { nodes: [text] };
  const word = mark === "_";
  return {
    mark, count, length: count,
    opens: left && (!word || !right || point.test(before)),
    closes: right && (!word || !left || point.test(after)),
  };
}

function fits(opener, closer) {
  if (!opener.count || !opener.opens || opener.mark !== closer.mark) return false;
  if (closer.mark === "~") return opener.count === closer.count;
  const both = (opener.closes || closer.opens) && (opener.length + closer.length) % 3 === 0;
  return !both || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

/** Put what stands between an opening and a closing run into an element, the inner pairs first. */
function pair(items) {
  const bottoms = {}; // for each kind of closing run: where no opening one for it lies before
  for (let at = 0; at < items.length; at++) {
    const closer = items[at];
    if (!closer.closes || !closer.count) continue;
    const kind = `${closer.mark}${closer.opens}${closer.mark === "~" ? closer.count : closer.length % 3}`;
    let start = at - 1;
    while (start >= (bottoms[kind] ?? 0) && !fits(items[start], closer)) start--;
    if (start < (bottoms[kind] ?? 0)) {
      bottoms[kind] = at;
      continue;
    }
    const opener = items[start];
    const used = opener.count >= 2 && closer.count >= 2 ? 2 : 1;
    const name = closer.mark === "~" ? "del" : used === 2 ? "strong" : "em";
    const within = items.slice(start + 1, at);
    const depth = 1 + within.reduce((most, each) => Math.max(most, each.depth ?? 0), 0);
    const inner = within.flatMap(plain);
    items.splice(start + 1, at - start - 1, { depth, nodes: depth < DEEPEST ? [make(name, {}, ...inner)] : inner });
    for (const each of Object.keys(bottoms)) bottoms[each] = Math.min(bottoms[each], start + 1);
    opener.count -= used;
    closer.count -= used;
    at = start + (closer.count ? 1 : 2); // a run that is not used up closes something else, too
  }
}
