// What in running text is no Markdown: mathematics, code, escaped characters.

import { make } from "./dom.js";
import { toMath } from "./tex.js";

const FIRST = 0xe000; // a private area of Unicode, whose characters stand for the pieces
const MOST = 0xf8ff - FIRST;
const ENVIRONMENTS = "(?:equation|align|alignat|gather|multline|eqnarray)\\*?";
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…", ndash: "–",
  mdash: "—", times: "×", rarr: "→", larr: "←", le: "≤", ge: "≥", ne: "≠", deg: "°", micro: "µ", middot: "·", euro: "€",
};
const OPENED = new RegExp(`\\$\\$|\\\\\\[|\\\\begin\\{(${ENVIRONMENTS})\\}`);
const CLOSED = new RegExp(
  `\\\\\\\\|(\`+)[^\`]*\\1|\\$\\$.*?\\$\\$|\\\\\\[.*?\\\\\\]|\\\\begin\\{(${ENVIRONMENTS})\\}.*?\\\\end\\{\\2\\}`, "g",
);

/** What ends the displayed formula that a line leaves open; undefined if it leaves none. */
export function openFormula(line) {
  const found = line.replace(CLOSED, "").match(OPENED);
  if (!found) return undefined;
  return found[1] ? `\\end{${found[1]}}` : { "$$": "$$", "\\[": "\\]" }[found[0]];
}

/** Running text in which such pieces are one character each. growing: the text may go on. */
export class Spans {
  constructor(text, growing) {
    this.source = text;
    this.growing = growing;
    this.pieces = [];
    this.text = "";
    this.missing = new Set(); // closing marks that do not come any more
    for (let at = 0; at < text.length; ) {
      const piece = this.pieces.length < MOST ? this.pieceAt(at) : null;
      if (piece) {
        this.text += String.fromCharCode(FIRST + this.pieces.length);
        this.pieces.push(piece);
        at += piece.length;
      } else if (text[at] === "`") {
        const [run] = /^`+/.exec(text.slice(at));
        this.text += run;
        at += run.length;
      } else this.text += text[at++];
    }
  }

  /** {length, node() and text} of the piece that begins here, or null. */
  pieceAt(at) {
    const character = this.source[at];
    if (character === "\\") return this.backslash(at);
    if (character === "`") return this.code(at);
    if (character === "$") return this.dollar(at);
    if (character === "&") return this.entity(at);
    const code = character.charCodeAt(0);
    return code >= FIRST && code <= FIRST + MOST ? literal(character, 1) : null;
  }

  backslash(at) {
    const next = this.source[at + 1];
    if (next === "(" || next === "[") return this.formula(at, 2, next === "(" ? "\\)" : "\\]", next === "[") ?? literal(next, 2);
    if (next === "b") {
      const found = new RegExp(`^\\\\begin\\{(${ENVIRONMENTS})\\}`).exec(this.source.slice(at, at + 40));
      return found && this.formula(at, 0, `\\end{${found[1]}}`, true);
    }
    return next && /[!-/:-@[-`{-~]/.test(next) ? literal(next, 2) : null;
  }

  entity(at) {
    const found = /^&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|(\w+));/.exec(this.source.slice(at, at + 12));
    if (!found) return null;
    const [all, decimal, hex, name] = found;
    if (name) return Object.hasOwn(ENTITIES, name) ? literal(ENTITIES[name], all.length) : null;
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return literal(code > 0 && code < 0x110000 && !(code >= 0xd800 && code < 0xe000) ? String.fromCodePoint(code) : "\ufffd", all.length);
  }

  code(at) {
    if (this.source[at - 1] === "`") return null;
    const [mark] = /^`+/.exec(this.source.slice(at));
    if (this.missing.has(mark)) return null;
    for (let end = this.source.indexOf(mark, at + mark.length); end >= 0; end = this.source.indexOf(mark, end)) {
      const [run] = /^`+/.exec(this.source.slice(end));
      if (run.length === mark.length) {
        const text = this.source.slice(at + mark.length, end).replaceAll("\n", " ").replace(/^ (.*[^ ].*) $/, "$1");
        const source = this.source.slice(at, end + mark.length);
        return { length: source.length, text: source, node: () => make("code", { text }) };
      }
      end += run.length;
    }
    this.missing.add(mark);
    return null;
  }

  dollar(at) {
    const { source } = this;
    if (source[at + 1] === "$") return this.formula(at, 2, "$$", true) ?? literal("$$", 2);
    // As for amounts of money: what opens stands before a letter, what closes behind one and not before a digit.
    if (/[A-Za-z0-9]/.test(source[at - 1] ?? "") || !/\S/.test(source[at + 1] ?? "")) return null;
    for (let end = at + 1; end < source.length && source[end] !== "`"; end++) {
      if (source[end] === "\\") end++;
      else if (source[end] === "$") {
        const closes = /\S/.test(source[end - 1]) && !/[\d$]/.test(source[end + 1] ?? "");
        return closes ? formula(source.slice(at, end + 1), 1, 1, false) : null;
      }
    }
    const rest = source.slice(at);
    return this.growing && !/^\$\d|[\n`]/.test(rest) && rest.length < 300 ? pending(rest) : null;
  }

  /** What is written from `at` to a closing mark; `opening` is the length of the mark that it begins with. */
  formula(at, opening, closing, block) {
    const { source } = this;
    if (!this.missing.has(closing)) {
      for (let end = at + Math.max(opening, 1); end < source.length; end++) {
        if (source.startsWith(closing, end) && source.slice(at + opening, end).trim()) {
          const cut = opening ? closing.length : 0;
          return formula(source.slice(at, end + closing.length), opening, cut, block);
        }
        if (source[end] === "\\") end++;
      }
      this.missing.add(closing);
    }
    return this.growing ? pending(source.slice(at)) : null;
  }

  /** The nodes of a part of the text. */
  nodes(text) {
    const nodes = [];
    let plain = "";
    for (const character of text) {
      const piece = this.pieces[character.charCodeAt(0) - FIRST];
      if (piece?.node) nodes.push(plain, piece.node());
      else plain += piece ? piece.text : character;
      if (piece?.node) plain = "";
    }
    return [...nodes, plain].filter((node) => node !== "");
  }

  /** A part of the text as it was written, but for escapes. */
  restored(text) {
    return [...text].map((character) => this.pieces[character.charCodeAt(0) - FIRST]?.text ?? character).join("");
  }
}

function literal(text, length) {
  return { length, text };
}

function formula(source, opening, closing, block) {
  const node = () => toMath(source.slice(opening, source.length - closing), block) ?? make("code", { class: "tex", text: source });
  return { length: source.length, text: source, node };
}

/** A formula whose end has not come yet. */
function pending(source) {
  return { length: source.length, text: source, node: () => make("code", { class: "tex", text: source }) };
}

/** Let what is copied hold the sources of its formulas. */
export function copySources(root) {
  root.addEventListener("copy", (event) => {
    const selection = getSelection();
    if (!selection.rangeCount || document.activeElement?.matches("input, textarea")) return;
    const part = selection.getRangeAt(0).cloneContents();
    if (!part.querySelector("math")) return;
    for (const math of part.querySelectorAll("math")) {
      const source = math.querySelector("annotation")?.textContent ?? math.textContent;
      const mark = math.getAttribute("display") === "block" ? "$$" : "$";
      math.replaceWith(/^\\begin/.test(source) ? source : `${mark}${source}${mark}`);
    }
    const hidden = make("div", { class: "unseen" });
    hidden.style.whiteSpace = "pre-wrap";
    hidden.append(part);
    document.body.append(hidden);
    event.clipboardData.setData("text/plain", hidden.innerText);
    hidden.remove();
    event.preventDefault();
  });
}
