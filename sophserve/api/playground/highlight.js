// Colours for code in most languages: comments, texts, numbers and common keywords.

import { make } from "./dom.js";

const WORDS = new Set(
  ("abstract and as assert async await auto begin bool break case catch char class const constexpr continue def default "
    + "defer del do double elif else end enum except export extends extern final finally float fn for foreach from func "
    + "function global go goto if impl implements import in int interface is lambda let long loop match mod mut namespace "
    + "new None nil nonlocal not null operator or override package pass private protected pub public raise return self "
    + "short signed sizeof static struct super switch template then this throw throws trait True true False false try "
    + "type typedef typename undefined union unsafe unsigned until use using var virtual void where while with yield "
    + "SELECT FROM WHERE INSERT INTO UPDATE DELETE CREATE TABLE JOIN LEFT GROUP ORDER BY LIMIT AND OR NOT NULL AS ON").split(" "),
);
const HASH = /^(py|python|sh|bash|zsh|shell|console|yaml|yml|toml|ruby|rb|perl|r|make|makefile|dockerfile|cmake|ini|)$/i;
const PLAIN = /^(text|txt|plain|markdown|md|diff|log|output)$/i;

/** The nodes of a piece of code. */
export function highlight(text, language) {
  if (PLAIN.test(language)) return [text];
  const comment = HASH.test(language) ? "(?<=^|\\s)#[^\\n]*" : /^(sql|lua|haskell|hs)$/i.test(language) ? "--[^\\n]*" : "//[^\\n]*|/\\*[^]*?(?:\\*/|$)|<!--[^]*?(?:-->|$)";
  const strings = '"""[^]*?(?:"""|$)|"(?:\\\\.|[^"\\\\\\n])*"?|(?<!\\w)\'(?:\\\\.|[^\'\\\\\\n])*\'|`(?:\\\\.|[^`\\\\])*`';
  const pattern = new RegExp(
    `(?<comment>${comment})|(?<string>${strings})|(?<number>\\b\\d[\\w.]*)|(?<word>[A-Za-z_]\\w*)`, "gm",
  );
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    const { comment, string, number, word } = match.groups;
    const called = word && text[match.index + word.length] === "(";
    const kind = comment ? "comment" : string ? "string" : number ? "number" : WORDS.has(word) ? "word" : called && "name";
    if (!kind) continue;
    nodes.push(text.slice(end, match.index), make("span", { class: `code-${kind}`, text: match[0] }));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}
