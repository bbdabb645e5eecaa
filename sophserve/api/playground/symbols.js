// What TeX's commands stand for.

const table = (text) => new Map(text.trim().split(/\s+/).map((entry) => entry.split(":")));

/** Letters: shown as identifiers, italic where TeX has them so. */
export const LETTERS = table(`
  alpha:α beta:β gamma:γ delta:δ epsilon:ϵ varepsilon:ε zeta:ζ eta:η theta:θ vartheta:ϑ iota:ι kappa:κ varkappa:ϰ
  lambda:λ mu:μ nu:ν xi:ξ omicron:ο pi:π varpi:ϖ rho:ρ varrho:ϱ sigma:σ varsigma:ς tau:τ upsilon:υ phi:ϕ varphi:φ
  chi:χ psi:ψ omega:ω digamma:ϝ ell:ℓ imath:ı jmath:ȷ hbar:ℏ hslash:ℏ wp:℘ partial:∂ eth:ð
`);
export const UPRIGHT = table(`
  Gamma:Γ Delta:Δ Theta:Θ Lambda:Λ Xi:Ξ Pi:Π Sigma:Σ Upsilon:Υ Phi:Φ Psi:Ψ Omega:Ω infty:∞ nabla:∇ emptyset:∅
  varnothing:∅ aleph:ℵ beth:ℶ gimel:ℷ Re:ℜ Im:ℑ top:⊤ bot:⊥ angle:∠ measuredangle:∡ degree:° prime:′ dots:…
  ldots:… cdots:⋯ vdots:⋮ ddots:⋱ dotsc:… dotsb:⋯ dotsm:⋯ dotso:… exists:∃ nexists:∄ forall:∀ complement:∁
  triangle:△ square:□ Box:□ blacksquare:■ diamond:⋄ Diamond:◊ bigstar:★ star:⋆ checkmark:✓ clubsuit:♣ diamondsuit:♢
  heartsuit:♡ spadesuit:♠ sharp:♯ flat:♭ natural:♮ S:§ P:¶ pounds:£ yen:¥ euro:€ dag:† ddag:‡ copyright:© surd:√
  backslash:\\ mho:℧ Finv:Ⅎ hearts:♡
`);

/** Operators and relations. */
export const OPERATORS = table(`
  pm:± mp:∓ times:× div:÷ cdot:⋅ ast:∗ circ:∘ bullet:∙ oplus:⊕ ominus:⊖ otimes:⊗ oslash:⊘ odot:⊙ dagger:†
  ddagger:‡ wedge:∧ land:∧ vee:∨ lor:∨ cap:∩ cup:∪ sqcap:⊓ sqcup:⊔ uplus:⊎ amalg:⨿ setminus:∖ smallsetminus:∖ wr:≀
  neg:¬ lnot:¬ And:& bmod:mod
  le:≤ leq:≤ leqslant:⩽ ge:≥ geq:≥ geqslant:⩾ ne:≠ neq:≠ ll:≪ gg:≫ lll:⋘ ggg:⋙ equiv:≡ sim:∼ simeq:≃ approx:≈
  cong:≅ asymp:≍ doteq:≐ propto:∝ varpropto:∝ prec:≺ succ:≻ preceq:⪯ succeq:⪰ lesssim:≲ gtrsim:≳ approxeq:≊
  subset:⊂ supset:⊃ subseteq:⊆ supseteq:⊇ subsetneq:⊊ supsetneq:⊋ nsubseteq:⊈ sqsubseteq:⊑ sqsupseteq:⊒ in:∈
  notin:∉ ni:∋ owns:∋ mid:∣ nmid:∤ parallel:∥ nparallel:∦ perp:⟂ models:⊨ vdash:⊢ dashv:⊣ vDash:⊨ Vdash:⊩
  bowtie:⋈ smile:⌣ frown:⌢ coloneqq:≔ coloneq:≔ triangleq:≜ eqcirc:≖ lt:< gt:> therefore:∴ because:∵
  to:→ rightarrow:→ gets:← leftarrow:← leftrightarrow:↔ Rightarrow:⇒ Leftarrow:⇐ Leftrightarrow:⇔ iff:⟺ implies:⟹
  impliedby:⟸ longrightarrow:⟶ longleftarrow:⟵ longleftrightarrow:⟷ Longrightarrow:⟹ Longleftarrow:⟸
  Longleftrightarrow:⟺ mapsto:↦ longmapsto:⟼ hookrightarrow:↪ hookleftarrow:↩ uparrow:↑ downarrow:↓ updownarrow:↕
  Uparrow:⇑ Downarrow:⇓ Updownarrow:⇕ nearrow:↗ searrow:↘ swarrow:↙ nwarrow:↖ rightharpoonup:⇀ rightharpoondown:⇁
  leftharpoonup:↼ leftharpoondown:↽ rightleftharpoons:⇌ leftrightharpoons:⇋ rightleftarrows:⇄ twoheadrightarrow:↠
  rightsquigarrow:⇝ leadsto:⇝ nrightarrow:↛ nRightarrow:⇏ nleftarrow:↚ triangleleft:◁ triangleright:▷ unlhd:⊴
  trianglelefteq:⊴ trianglerighteq:⊵ ltimes:⋉ rtimes:⋊ multimap:⊸ Vert:‖ vert:|
`);

/** Operators whose limits stand below and above them where there is room. */
export const LARGE = table(`
  sum:∑ prod:∏ coprod:∐ bigcup:⋃ bigcap:⋂ bigsqcup:⨆ bigvee:⋁ bigwedge:⋀ bigoplus:⨁ bigotimes:⨂ bigodot:⨀ biguplus:⨄
`);

/** Those whose limits stand beside them. */
export const INTEGRALS = table("int:∫ iint:∬ iiint:∭ iiiint:⨌ oint:∮ oiint:∯ oiiint:∰");

/** Fences, behind \left, \right and \big as well. */
export const FENCES = table(`
  lbrace:{ rbrace:} langle:⟨ rangle:⟩ lceil:⌈ rceil:⌉ lfloor:⌊ rfloor:⌋ lvert:| rvert:| lVert:‖ rVert:‖ lbrack:[
  rbrack:] lgroup:⟮ rgroup:⟯ ulcorner:⌜ urcorner:⌝ llcorner:⌞ lrcorner:⌟
`);

/** Names of functions; those of the second list have limits below them. */
export const FUNCTIONS = new Set(
  ("sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth sech csch exp log ln lg dim ker hom arg deg "
    + "tg ctg arctg").split(" "),
);
export const LIMITS = new Map(
  "lim max min sup inf det gcd Pr argmax argmin".split(" ").map((name) => [name, name])
    .concat([["limsup", "lim sup"], ["liminf", "lim inf"], ["varlimsup", "lim sup"], ["injlim", "inj lim"], ["projlim", "proj lim"]]),
);

/** Accents over one thing; those of the second list are as wide as it. */
export const ACCENTS = table(`
  hat:^ check:ˇ tilde:~ acute:´ grave:\` dot:˙ ddot:¨ dddot:⃛ breve:˘ bar:¯ vec:→ mathring:˚
`);
export const WIDE = table(`
  widehat:^ widetilde:~ overline:¯ overrightarrow:→ overleftarrow:← overleftrightarrow:↔ overbrace:⏞ overbracket:⎴
  overparen:⏜
`);
export const BELOW = table("underline:_ underbrace:⏟ underbracket:⎵ underrightarrow:→ underleftarrow:← underparen:⏝");

/** Spaces, in em. */
export const SPACES = new Map([
  [",", 0.167], [":", 0.222], [">", 0.222], [";", 0.278], ["!", -0.167], [" ", 0.25], ["quad", 1], ["qquad", 2],
  ["enspace", 0.5], ["enskip", 0.5], ["thinspace", 0.167], ["medspace", 0.222], ["thickspace", 0.278],
  ["negthinspace", -0.167], ["space", 0.25], ["nobreakspace", 0.25],
]);

// Where Unicode's mathematical alphabets begin: capital and small letters, digits; and the letters that lie elsewhere.
const ALPHABETS = {
  bold: [0x1d400, 0x1d41a, 0x1d7ce, {}],
  bolditalic: [0x1d468, 0x1d482, 0x1d7ce, {}],
  bb: [0x1d538, 0x1d552, 0x1d7d8, { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" }],
  cal: [0x1d49c, 0x1d4b6, 0, { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" }],
  frak: [0x1d504, 0x1d51e, 0, { C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" }],
  sf: [0x1d5a0, 0x1d5ba, 0x1d7e2, {}],
  tt: [0x1d670, 0x1d68a, 0x1d7f6, {}],
};
const GREEK = { bold: [0x1d6a8, 0x1d6c2], bolditalic: [0x1d71c, 0x1d736] };

/** A letter or digit in an alphabet; itself where that has none. */
export function styled(letter, alphabet) {
  const code = letter.codePointAt(0);
  const [capital, small, digit, others] = ALPHABETS[alphabet];
  if (others[letter]) return others[letter];
  if (/[A-Z]/.test(letter)) return String.fromCodePoint(capital + code - 65);
  if (/[a-z]/.test(letter)) return String.fromCodePoint(small + code - 97);
  if (/\d/.test(letter) && digit) return String.fromCodePoint(digit + code - 48);
  const greek = GREEK[alphabet];
  if (greek && /[Α-Ω]/.test(letter)) return String.fromCodePoint(greek[0] + code - 0x391);
  if (greek && /[α-ω]/.test(letter)) return String.fromCodePoint(greek[1] + code - 0x3b1);
  return letter;
}

/** The commands that choose an alphabet; null: upright letters, which need none. */
export const STYLES = new Map(Object.entries({
  mathbf: "bold", bf: "bold", boldsymbol: "bolditalic", bm: "bolditalic", pmb: "bolditalic", mathbb: "bb", Bbb: "bb",
  mathcal: "cal", mathscr: "cal", cal: "cal", mathfrak: "frak", mathsf: "sf", mathtt: "tt", mathrm: null, rm: null,
  mathit: "", mathnormal: "", operatorname: null,
}));
