// The pieces of MathML that formulas are built of.

import { makeIn } from "./dom.js";

/** Thrown for what is not known, or no mathematics. */
export class Unknown extends Error {}

/** An element of MathML. */
export function m(name, attributes, ...children) {
  return makeIn("http://www.w3.org/1998/Math/MathML", name, attributes, ...children);
}

/** Several nodes as one. */
export function row(nodes) {
  return nodes.length === 1 ? nodes[0] : m("mrow", {}, ...nodes);
}

/** An empty width. */
export function space(em) {
  return m("mspace", { width: `${em}em` });
}

/** A parenthesis or the like, as high as a letter. */
export function fence(mark, attributes = {}) {
  return m("mo", { stretchy: "false", ...attributes }, mark);
}

/** An operator with limits below and above it, where there is room. */
export function limits(mark) {
  const element = m("mo", { movablelimits: "true", lspace: "0.1667em", rspace: "0.1667em" }, mark);
  element.limits = true;
  return element;
}

/** One thing over another; without: without the line, as binomials have it. */
export function fraction(above, below, without) {
  if (!without) return m("mfrac", {}, above, below);
  return m("mrow", {}, m("mo", {}, "("), m("mfrac", { linethickness: "0" }, above, below), m("mo", {}, ")"));
}
