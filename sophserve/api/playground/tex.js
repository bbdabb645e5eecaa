// TeX's mathematics as MathML. What this does not know is not shown by halves: toMath() then gives null.

import { COMMANDS } from "./commands.js";
import { Unknown, fence, fraction, limits, m, row, space } from "./mathml.js";
import {
  ACCENTS, BELOW, FENCES, FUNCTIONS, INTEGRALS, LARGE, LETTERS, LIMITS, OPERATORS, SPACES, STYLES, UPRIGHT, WIDE, styled,
} from "./symbols.js";

const DEEPEST = 50;
const LONGEST = 20_000;
const ROW_ENDS = ["}", "&", "\\\\", "\\cr", "\\right", "\\middle", "\\end"];
const BIG = new Map(["big", "Big", "bigg", "Bigg"].flatMap((name, index) =>
  ["", "l", "r", "m"].map((side) => [name + side, [1.2, 1.8, 2.4, 3][index]])));
const MATRICES = {
  matrix: "", smallmatrix: "", pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", cases: "{", dcases: "{",
  rcases: " }", array: "", aligned: "", align: "", alignedat: "", alignat: "", split: "", eqnarray: "", gathered: "", gather: "",
  equation: "", multline: "", subarray: "",
};
const ALIGNED = /^(aligned|align|alignedat|alignat|split|eqnarray)$/;
const DISPLAYED = /^(aligned|align|alignedat|alignat|split|eqnarray|gathered|gather|equation|multline|dcases)$/;
const CELL = { c: "middle", l: "start", r: "end" };

/** A <math> element for a piece of TeX (without its delimiters), or null. */
export function toMath(source, block) {
  if (source.length > LONGEST) return null;
  try {
    const parser = new Parser(source);
    const shown = parser.lines();
    if (parser.peek() !== null) return null;
    const annotation = m("annotation", { encoding: "application/x-tex" }, source);
    return m("math", block ? { display: "block" } : {}, m("semantics", {}, shown, annotation));
  } catch (error) {
    if (error instanceof Unknown) return null;
    throw error;
  }
}

/** Reads from left to right; `style` is the alphabet in which letters are shown. */
class Parser {
  constructor(source) {
    this.source = source;
    this.at = 0;
    this.depth = 0;
    this.style = "";
  }

  /** The next token, or null: a command with its backslash, or one character. Spaces are none. */
  peek() {
    while (/\s/.test(this.source[this.at] ?? "")) this.at++;
    if (this.at >= this.source.length) return null;
    const command = /^\\(?:[a-zA-Z]+|[^])/u.exec(this.source.slice(this.at, this.at + 40));
    return command ? command[0] : String.fromCodePoint(this.source.codePointAt(this.at));
  }

  next() {
    const token = this.peek();
    if (token === null) throw new Unknown("the end");
    this.at += token.length;
    return token;
  }

  take(token) {
    if (this.peek() !== token) return false;
    this.at += token.length;
    return true;
  }

  expect(token) {
    if (!this.take(token)) throw new Unknown(token);
  }

  /** All of it; lines and columns without an environment are aligned. */
  lines() {
    const first = this.nodes();
    if (this.peek() !== "\\\\" && this.peek() !== "&") return row(first);
    return this.table("aligned", [], first);
  }

  /** Nodes up to what ends a row. */
  nodes(end) {
    const nodes = [];
    for (let token = this.peek(); token !== null && token !== end && !ROW_ENDS.includes(token); token = this.peek()) {
      if (token === "\\over" || token === "\\choose") {
        this.next();
        return [fraction(row(nodes), row(this.nodes(end)), token === "\\choose")];
      }
      const rest = this.switched(token, end);
      if (rest) return [...nodes, rest];
      nodes.push(...this.scripted());
    }
    return nodes;
  }

  /** What follows a command that changes the rest of its group. */
  switched(token, end) {
    const display = { "\\displaystyle": "true", "\\textstyle": "false", "\\scriptstyle": "false" }[token];
    if (display) {
      this.next();
      return m("mstyle", { displaystyle: display, ...(token === "\\scriptstyle" && { scriptlevel: "1" }) }, ...this.nodes(end));
    }
    if (token === "\\color") {
      this.next();
      return m("mstyle", { mathcolor: this.color() }, ...this.nodes(end));
    }
    if (["\\rm", "\\bf", "\\cal"].includes(token)) {
      this.next();
      return this.inStyle(STYLES.get(token.slice(1)), () => row(this.nodes(end)));
    }
    return null;
  }

  /** A formula within this one. */
  inner(source) {
    const inner = new Parser(source);
    inner.depth = this.depth + 1;
    const found = row(inner.nodes());
    if (inner.peek() !== null) throw new Unknown(source);
    return found;
  }

  inStyle(style, read) {
    const before = this.style;
    this.style = style;
    const found = read();
    this.style = before;
    return found;
  }

  /** One thing with what stands above and below it. */
  scripted() {
    const base = "^_'".includes(this.peek()) ? m("mrow", {}) : this.atom();
    if (!base) return [];
    let [below, above, primes, beside] = [null, null, "", !base.limits];
    for (;;) {
      if (this.take("\\limits")) beside = false;
      else if (this.take("\\nolimits")) beside = true;
      else if (this.take("'")) primes += "′";
      else if (!below && this.take("_")) below = this.argument();
      else if (!above && this.take("^")) above = this.argument();
      else break;
    }
    if (primes) above = above ? m("mrow", {}, m("mo", {}, primes), above) : m("mo", {}, primes);
    if (!below && !above) return [base];
    if (!beside && base.limits !== true) base.setAttribute("movablelimits", "false");
    const name = beside ? ["msub", "msup", "msubsup"] : ["munder", "mover", "munderover"];
    return [m(name[below && above ? 2 : above ? 1 : 0], {}, base, ...[below, above].filter(Boolean))];
  }

  /** What a command applies to: a group, or one token. */
  argument() {
    if (/\d/.test(this.peek() ?? "")) return m("mn", {}, this.letter(this.next()));
    const found = this.atom();
    if (!found) throw new Unknown("nothing");
    return found;
  }

  optional() {
    if (!this.take("[")) return null;
    const found = row(this.nodes("]"));
    this.expect("]");
    return found;
  }

  group() {
    const nodes = this.nodes();
    this.expect("}");
    return m("mrow", {}, ...nodes);
  }

  /** The text of a group as it is written. */
  raw() {
    this.expect("{");
    const start = this.at;
    for (let depth = 1; depth; this.at++) {
      const character = this.source[this.at];
      if (character === undefined) throw new Unknown("}");
      if (character === "\\") this.at++;
      else depth += { "{": 1, "}": -1 }[character] ?? 0;
    }
    return this.source.slice(start, this.at - 1);
  }

  color() {
    const name = this.raw().trim();
    if (!/^#?\w+$/.test(name)) throw new Unknown(name);
    return name;
  }

  /** One thing; null for a command that shows nothing. */
  atom() {
    if (++this.depth > DEEPEST) throw new Unknown("depth");
    const token = this.next();
    const found = token === "{" ? this.group() : token[0] === "\\" ? this.command(token.slice(1)) : this.character(token);
    this.depth--;
    return found;
  }

  letter(character) {
    return this.style ? styled(character, this.style) : character;
  }

  character(token) {
    if (/\d/.test(token)) {
      const [, rest] = /^(\d*(?:\.\d+)?)/.exec(this.source.slice(this.at, this.at + 40));
      this.at += rest.length;
      return m("mn", {}, [...token + rest].map((each) => this.letter(each)).join(""));
    }
    if (/[a-zA-Z\u0370-\u03ff]/.test(token)) return this.identifier(token);
    if ("}&^_#$".includes(token)) throw new Unknown(token);
    if (token === "~") return space(0.25);
    if ("()[]|".includes(token)) return fence(token, token === "|" ? { lspace: "0", rspace: "0" } : {});
    if (token === "/") return m("mo", { lspace: "0", rspace: "0" }, token);
    if (token === ",") return m("mo", { separator: "true", lspace: "0" }, token);
    if (/[!-@[-`{-~\u2190-\u22ff]/.test(token)) return m("mo", {}, { "-": "−", "*": "∗" }[token] ?? token);
    return m("mtext", {}, token);
  }

  identifier(letter) {
    if (this.style === null) return m("mi", { mathvariant: "normal" }, letter);
    return m("mi", {}, this.letter(letter));
  }

  command(name) {
    if (LETTERS.has(name)) return this.identifier(LETTERS.get(name));
    if (UPRIGHT.has(name)) return m("mi", { mathvariant: "normal" }, this.letter(UPRIGHT.get(name)));
    if (OPERATORS.has(name)) return m("mo", /arrow|to|mapsto/.test(name) ? { stretchy: "false" } : {}, OPERATORS.get(name));
    if (LARGE.has(name)) return limits(LARGE.get(name));
    if (INTEGRALS.has(name)) return m("mo", {}, INTEGRALS.get(name));
    if (FENCES.has(name)) return fence(FENCES.get(name));
    if (FUNCTIONS.has(name)) return m("mrow", {}, m("mi", {}, name), m("mo", {}, "\u2061"));
    if (LIMITS.has(name)) return limits(LIMITS.get(name));
    if (SPACES.has(name)) return space(SPACES.get(name));
    if (ACCENTS.has(name)) return m("mover", { accent: "true" }, this.argument(), fence(ACCENTS.get(name)));
    if (WIDE.has(name)) return this.stretched("mover", WIDE.get(name), name);
    if (BELOW.has(name)) return this.stretched("munder", BELOW.get(name), name);
    if (BIG.has(name)) return fence(this.delimiter(), { stretchy: "true", minsize: `${BIG.get(name)}em`, maxsize: `${BIG.get(name)}em` });
    if (STYLES.has(name) && name !== "operatorname") return this.inStyle(STYLES.get(name), () => this.argument());
    if (Object.hasOwn(COMMANDS, name)) return COMMANDS[name](this, name);
    throw new Unknown(name);
  }

  /** Something with a mark as wide as it above or below; braces take a note as their limit. */
  stretched(element, mark, name) {
    const found = m(element, {}, this.argument(), m("mo", { stretchy: "true" }, mark));
    if (/brace|bracket|paren/.test(name)) found.limits = true;
    return found;
  }

  delimiter() {
    const token = this.next();
    if (token === ".") return "";
    if (token === "\\|") return "‖";
    const name = token.slice(1);
    const mark = token.length === 1 ? { "<": "⟨", ">": "⟩" }[token] ?? token
      : /^\\[{}]$/.test(token) ? name : FENCES.get(name) ?? (/arrow|vert/i.test(name) ? OPERATORS.get(name) : undefined);
    if (!mark || !/^[()[\]{}|/‖⟨⟩⌈⌉⌊⌋⟮⟯⌜⌝⌞⌟↑↓↕⇑⇓⇕]$/u.test(mark)) throw new Unknown(token);
    return mark;
  }

  fenced() {
    const side = (form) => {
      const mark = this.delimiter();
      return mark ? [m("mo", { fence: "true", stretchy: "true", form }, mark)] : [];
    };
    const nodes = [...side("prefix"), ...this.nodes()];
    while (this.take("\\middle")) nodes.push(...side("infix"), ...this.nodes());
    this.expect("\\right");
    return m("mrow", {}, ...nodes, ...side("postfix"));
  }

  /** The rest of an environment, behind its name. */
  environment() {
    const name = this.raw();
    const kind = name.replace(/\*$/, "");
    if (!Object.hasOwn(MATRICES, kind)) throw new Unknown(name);
    let columns = [];
    if (["array", "alignedat", "alignat", "subarray"].includes(kind)) {
      const given = this.raw();
      if (kind === "array") columns = [...given.replace(/[|\s]/g, "")].map((letter) => CELL[letter]);
      if (columns.includes(undefined)) throw new Unknown(given);
    } else if (kind === "aligned" || kind === "gathered") this.optional();
    if (/cases$/.test(kind)) columns = ["start", "start"];
    const found = this.table(kind, columns, this.nodes());
    this.expect("\\end");
    if (this.raw() !== name) throw new Unknown(name);
    const [left, right] = MATRICES[kind];
    const side = (mark, form) => (mark?.trim() ? [m("mo", { fence: "true", stretchy: "true", form }, mark)] : []);
    return m("mrow", {}, ...side(left, "prefix"), found, ...side(right, "postfix"));
  }

  /** Rows of cells; the first cell's nodes are read already. */
  table(kind, columns, first) {
    const rows = [[first]];
    for (;;) {
      if (this.take("&")) rows.at(-1).push(this.nodes());
      else if (this.take("\\\\") || this.take("\\cr")) {
        if (this.source[this.at] === "[") this.optional();
        rows.push([this.nodes()]);
      } else break;
    }
    if (rows.length > 1 && rows.at(-1).length === 1 && !rows.at(-1)[0].length) rows.pop();
    const side = (index) => columns[index] ?? (ALIGNED.test(kind) ? (index % 2 ? "start" : "end") : "middle");
    const shown = rows.map((cells) => m("mtr", {}, ...cells.map((nodes, index) => m("mtd", { class: side(index) }, ...nodes))));
    const display = DISPLAYED.test(kind) ? { displaystyle: "true" } : {};
    return m("mtable", { class: ALIGNED.test(kind) ? "aligned" : kind, ...display }, ...shown);
  }
}
