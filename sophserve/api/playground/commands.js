// TeX's commands that take arguments, or show nothing.

import { Unknown, fence, fraction, limits, m, row, space } from "./mathml.js";

function inDisplay(displaystyle, node) {
  return m("mstyle", { displaystyle, ...(displaystyle === "false" && { scriptlevel: "0" }) }, node);
}

/** Text within mathematics, which may hold mathematics again. */
function words(parser, attributes = {}) {
  const parts = parser.raw().split(/(?<!\\)\$((?:\\.|[^$\\])*)\$/);
  return row(parts.map((part, index) => {
    if (index % 2) return parser.inner(part);
    if (/\\[^%_&{}$# ]|(?<!\\)[${}]/.test(part)) throw new Unknown(part);
    return m("mtext", attributes, part.replace(/\\(.)/g, "$1").replace(/~|^\s+|\s+$/g, "\u00a0"));
  }));
}

function width(parser) {
  const star = parser.take("*");
  const given = /^\{?\s*(-?[\d.]+)\s*(em|ex|mu|pt|px|cm|mm|in)\s*\}?/.exec(parser.source.slice(parser.at));
  if (!given) throw new Unknown(star ? "*" : "width");
  parser.at += given[0].length;
  return space(Number(given[1]) * { em: 1, ex: 0.45, mu: 1 / 18, pt: 0.1, px: 0.07, cm: 2.8, mm: 0.28, in: 7.2 }[given[2]]);
}

/** An arrow as long as what stands above and below it. */
function arrow(mark) {
  return (parser) => {
    const below = parser.optional();
    const pad = (node) => m("mrow", {}, space(0.4), node, space(0.4));
    const above = pad(parser.argument());
    const line = m("mo", { stretchy: "true" }, mark);
    return below ? m("munderover", {}, line, pad(below), above) : m("mover", {}, line, above);
  };
}

function over(parser) {
  const mark = parser.argument();
  return m("mover", {}, parser.argument(), mark);
}

const group = (parser) => parser.argument();
const nothing = () => null;
const literal = (_, name) => m("mi", { mathvariant: "normal" }, name);
const ignored = (parser) => {
  parser.raw();
  return null;
};
const text = (parser) => words(parser);

/** What a command shows, read by the parser from behind its name; null for nothing. */
export const COMMANDS = {
  frac: (parser) => fraction(parser.argument(), parser.argument()),
  dfrac: (parser) => inDisplay("true", COMMANDS.frac(parser)),
  cfrac: (parser) => inDisplay("true", COMMANDS.frac(parser)),
  tfrac: (parser) => inDisplay("false", COMMANDS.frac(parser)),
  binom: (parser) => fraction(parser.argument(), parser.argument(), true),
  dbinom: (parser) => inDisplay("true", COMMANDS.binom(parser)),
  tbinom: (parser) => inDisplay("false", COMMANDS.binom(parser)),
  sqrt(parser) {
    const degree = parser.optional();
    return degree ? m("mroot", {}, parser.argument(), degree) : m("msqrt", {}, parser.argument());
  },
  left: (parser) => parser.fenced(),
  begin: (parser) => parser.environment(),
  text, textrm: text, textnormal: text, mbox: text, hbox: text, textup: text,
  textbf: (parser) => words(parser, { class: "bold" }),
  textit: (parser) => words(parser, { class: "italic" }),
  emph: (parser) => words(parser, { class: "italic" }),
  texttt: (parser) => words(parser, { class: "typed" }),
  textsf: text,
  operatorname(parser) {
    const star = parser.take("*");
    const name = parser.raw().replace(/\\[,; ]/g, " ");
    if (/[\\{}$^_&]/.test(name)) throw new Unknown(name);
    return star ? limits(name) : m("mrow", {}, m("mi", { mathvariant: "normal" }, name), m("mo", {}, "\u2061"));
  },
  mathop(parser) {
    const found = m("mrow", {}, parser.argument());
    found.limits = true;
    return found;
  },
  mathrel: group, mathbin: group, mathord: group, mathopen: group, mathclose: group, mathpunct: group, mathinner: group,
  overset: over, stackrel: over,
  underset(parser) {
    const mark = parser.argument();
    const base = parser.argument();
    return m("munder", {}, base.limits ? m("mrow", {}, base) : base, mark);
  },
  substack(parser) {
    parser.expect("{");
    const found = parser.table("substack", [], parser.nodes());
    parser.expect("}");
    return found;
  },
  xrightarrow: arrow("→"), xleftarrow: arrow("←"), xRightarrow: arrow("⇒"), xLeftarrow: arrow("⇐"), xleftrightarrow: arrow("↔"),
  xmapsto: arrow("↦"),
  pmod: (parser) => m("mrow", {}, space(1), fence("("), m("mi", {}, "mod"), space(0.33), parser.argument(), fence(")")),
  mod: (parser) => m("mrow", {}, space(1), m("mi", {}, "mod"), space(0.33), parser.argument()),
  not(parser) {
    const base = parser.argument();
    if (base.childElementCount || base.textContent.length !== 1) throw new Unknown("not");
    base.textContent = `${base.textContent}\u0338`.normalize("NFC");
    return base;
  },
  boxed: (parser) => m("mrow", { class: "boxed" }, parser.argument()),
  fbox: (parser) => m("mrow", { class: "boxed" }, words(parser)),
  cancel: (parser) => m("mrow", { class: "cancel" }, parser.argument()),
  phantom: (parser) => m("mphantom", {}, parser.argument()),
  hphantom: (parser) => m("mpadded", { height: "0", depth: "0" }, m("mphantom", {}, parser.argument())),
  vphantom: (parser) => m("mpadded", { width: "0" }, m("mphantom", {}, parser.argument())),
  textcolor: (parser) => m("mstyle", { mathcolor: parser.color() }, parser.argument()),
  tag(parser) {
    const star = parser.take("*");
    return m("mrow", {}, space(2), fence(star ? "" : "("), words(parser), fence(star ? "" : ")"));
  },
  hspace: width, mspace: width, hskip: width, kern: width, mkern: width, mskip: width,
  colon: () => m("mo", { lspace: "0" }, ":"),
  "{": () => fence("{"), "}": () => fence("}"), "|": () => fence("‖"),
  "%": literal, "#": literal, "$": literal, "&": literal, "_": literal,
  label: ignored, nonumber: nothing, notag: nothing, hline: nothing, limits: nothing, allowbreak: nothing, "/": nothing,
  displaylimits: nothing, strut: nothing, mathstrut: nothing,
};
