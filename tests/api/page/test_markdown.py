"""What the playground makes of Markdown and mathematics: rendered by the page's own modules, in the browser."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

RENDER = """
const [texts, growing, done] = arguments;
import("/playground/markdown.js").then(({ render }) => done(texts.map((text) => {
  const element = document.createElement("div");
  render(element, text, growing);
  for (const each of element.querySelectorAll("annotation")) each.remove();
  return element.innerHTML;
})));
"""


@pytest.fixture
async def rendered(served: Any, open_page: Any) -> Any:
    """`await rendered(*texts, growing=False)`: their HTML, without what is of no interest."""
    page = await open_page(served)

    async def render(*texts: str, growing: bool = False) -> list[str]:
        found = await asyncio.to_thread(page.driver.execute_async_script, RENDER, list(texts), growing)
        return [re.sub(r' (xmlns|target|rel|tabindex)="[^"]*"', "", text) for text in found]

    return render


def pieces(html: str) -> str:
    """HTML without attributes."""
    return re.sub(r"<(\w+) [^>]*>", r"<\1>", html)


FORMULAS = {
    r"\(a^2\)": "<msup><mi>a</mi><mn>2</mn></msup>",
    r"$x_{i+1}$": "<msub><mi>x</mi><mrow><mi>i</mi><mo>+</mo><mn>1</mn></mrow></msub>",
    r"$$\int_0^1 x^2\,dx$$": "<mrow><msubsup><mo>∫</mo><mn>0</mn><mn>1</mn></msubsup><msup><mi>x</mi><mn>2</mn></msup>"
    "<mspace></mspace><mi>d</mi><mi>x</mi></mrow>",
    r"\[\frac{a}{b}\]": "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>",
    r"$\frac12$": "<mfrac><mn>1</mn><mn>2</mn></mfrac>",
    r"$\sqrt[3]{x}$": "<mroot><mrow><mi>x</mi></mrow><mn>3</mn></mroot>",
    r"$\sum_{i}^n$": "<munderover><mo>∑</mo><mrow><mi>i</mi></mrow><mi>n</mi></munderover>",
    r"$\alpha\le\Omega$": "<mrow><mi>α</mi><mo>≤</mo><mi>Ω</mi></mrow>",
    r"$f'$": "<msup><mi>f</mi><mo>′</mo></msup>",
    r"$\left(x\right]$": "<mrow><mo>(</mo><mi>x</mi><mo>]</mo></mrow>",
    r"$\begin{pmatrix}1&2\\3&4\end{pmatrix}$": "<mrow><mo>(</mo><mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>2</mn></mtd>"
    "</mtr><mtr><mtd><mn>3</mn></mtd><mtd><mn>4</mn></mtd></mtr></mtable><mo>)</mo></mrow>",
    r"$\mathbb{R}^n$": "<msup><mrow><mi>ℝ</mi></mrow><mi>n</mi></msup>",
    r"$\hat{x}$": "<mover><mrow><mi>x</mi></mrow><mo>^</mo></mover>",
    r"$\text{if } x$": "<mrow><mtext>if&nbsp;</mtext><mi>x</mi></mrow>",
    r"$\sin x$": "<mrow><mrow><mi>sin</mi><mo>\u2061</mo></mrow><mi>x</mi></mrow>",
    r"$3.14$": "<mn>3.14</mn>",
    r"$x \not= y$": "<mrow><mi>x</mi><mo>≠</mo><mi>y</mi></mrow>",
}


async def test_formulas(rendered: Any) -> None:
    shown = await rendered(*FORMULAS)
    for (source, expected), html in zip(FORMULAS.items(), shown, strict=True):
        assert pieces(html) == f"<p><math><semantics>{expected}</semantics></math></p>", source
    assert 'display="block"' in shown[2] and 'display="block"' not in shown[0]


LATEX = [
    r"\begin{cases} x^2 & \text{if } x \ge 0 \\ -x & \text{otherwise} \end{cases}",
    r"\begin{aligned} a &= b + c \\[4pt] &= d \end{aligned}",
    r"\begin{bmatrix} a & b \\ \vdots & \ddots \end{bmatrix}^{-1}",
    r"\begin{array}{l|c} 1 & 2 \\ \hline 3 & 4 \end{array}",
    r"\lim_{n \to \infty} \left(1 + \frac{1}{n}\right)^n = e",
    r"\underbrace{a + b}_{\text{two}} \overline{z} \vec{v} \dot{x} \ddot{x} \widehat{xyz}",
    r"\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right) V",
    r"\mathcal{L} = \mathbb{E}_{x \sim p}[\log p_\theta(x)] - \mathrm{KL}(q \,\|\, p)",
    r"\oint_{\partial S} \mathbf{F} \cdot d\mathbf{r} = \iint_S (\nabla \times \mathbf{F}) \cdot d\mathbf{S}",
    r"\binom{n}{k} = \frac{n!}{k!(n-k)!} \quad \forall n \in \mathbb{N}",
    r"\boxed{42} \implies \bigl( a \bmod b \bigr) \pmod{n}",
    r"x \xrightarrow[n]{f} y, \quad \overset{!}{=} \stackrel{d}{\to} \underset{x}{\operatorname{argmax}}",
    r"\Big\{ \tfrac{1}{2} \Big| \dfrac{a}{b} \Big\}",
    r"\color{red} a + \textcolor{blue}{b} \hspace{1em} \phantom{x} \tag{1}",
    r"{n \over k} {\rm d}x \displaystyle\sum_i x_i",
    "a &= b \\\\\n&= c",
]


async def test_what_is_known_of_tex(rendered: Any) -> None:
    for source, html in zip(LATEX, await rendered(*(f"$${source}$$" for source in LATEX)), strict=True):
        assert html.startswith('<p><math display="block">') and "\\" not in html, source


async def test_what_is_not_known_is_shown_as_written(rendered: Any) -> None:
    sources = [
        r"$\unknown{x}$", r"\(\frac{a\)", r"$x^$", r"\[\left( x\]", r"$\begin{foo}x\end{foo}$", r"$a}b$",
        r"$\href{javascript:fail()}{x}$", "$" + "{" * 90 + "}" * 90 + "$", r"$\text{\input{x}}$",
    ]  # fmt: skip
    for source, html in zip(sources, await rendered(*sources), strict=True):
        assert html == f'<p><code class="tex">{source}</code></p>'


async def test_nothing_is_markdown_within_mathematics(rendered: Any) -> None:
    texts = [
        r"inline \(a^2+b^2\) and $$\int_0^1 x^2\,dx$$",
        "$a*b*c$ and **$x_1$ and $x_2$** and $a_b$ c_d",
        "so\n$$\n- b\n+ c\n\nd\n$$\nend",
        "1. first:\n\\[\n1. b\n\\]\n2. second",
        "> $$\n> x\n> $$",
        "| $a_1$ | b |\n|---|---|\n| \\(c*d*e\\) | f |",
        r"[a $b_c$](https://example.com/$x_y$)",
        "\\begin{align}\na &= b \\\\\n- c &= d\n\\end{align}",
        "`$a$` and `\\(b\\)`",
        "```\n$$x$$\n```",
    ]
    shown = await rendered(*texts)
    assert [html.count("<math") for html in shown] == [2, 4, 1, 1, 1, 2, 1, 1, 0, 0]
    assert not any(f"<{tag}" in html for html in shown for tag in ("em", "ul", "h3"))
    assert shown[1].count("<strong>") == 1 and shown[3].count("<li>") == 2
    assert shown[0].startswith("<p>inline <math") and "</math> and <math" in shown[0]
    assert 'href="https://example.com/$x_y$"' in shown[6]


async def test_money_is_no_mathematics(rendered: Any) -> None:
    texts = ["$5 and $6", "from $5-$6 to US$7", "$ a $", r"\$x\$", "$a $ b$", "costs $5, `$x` and $y", "$$", "$"]
    plain = [
        "$5 and $6",
        "from $5-$6 to US$7",
        "$ a $",
        "$x$",
        "$a $ b$",
        "costs $5, <code>$x</code> and $y",
        "$$",
        "$",
    ]
    assert await rendered(*texts) == [f"<p>{text}</p>" for text in plain]


async def test_a_formula_that_grows_is_never_shown_wrongly(rendered: Any) -> None:
    for text in (
        r"So \(a_1*b_2*c\) is",
        "So $$\na_1*b\n- c_2*d\n$$",
        "So $a_1*b*c_2$ is",
        "So \\[ \\frac{a}{b} \\] is",
    ):
        parts = [text[:end] for end in range(1, len(text) + 1)]
        for part, html in zip(parts, await rendered(*parts, growing=True), strict=True):
            assert not re.search("<(em|ul|li|br)", html), part
            if "<math" not in html:
                assert re.sub("<[^>]*>", "", html).strip() in (part.strip(), part.strip().removesuffix("\\")), part
    # At the end it is plain text again, if it was none.
    assert await rendered("cash $x and *more*") == ["<p>cash $x and <em>more</em></p>"]


async def test_task_lists(rendered: Any) -> None:
    [html, plain, inner] = await rendered(
        "- [ ] open\n- [x] *done*\n- [X]\n- other", "[ ] none\n\n- [a] none", "- [ ] a\n  - [x] b\n\n    c"
    )
    assert pieces(html).startswith("<ul><li><input>open</li><li><input><em>done</em></li><li>[X]</li><li>other</li>")
    assert re.findall(r'<input type="checkbox" disabled="" (.*?)aria', html) == ["", 'checked="" ']
    assert "<input" not in plain and inner.count("<input") == 2


async def test_links_stay_harmless(rendered: Any) -> None:
    texts = [
        "[a](javascript:fail())", "[a](JaVaScRiPt:fail())", "[a](&#106;avascript:fail())", r"[a](\javascript:fail())",
        "<javascript:fail()>", "[a](data:text/html,x)", "[a]( javascript:fail())", "[a](<javascript:fail()>)",
        "![a](javascript:fail())", "[a](vbscript:x)", "<script>fail()</script>", "<img src=x onerror=fail()>",
        "[$x$](javascript:fail())", "[a](java&#10;script:fail())", "[a](//example.com)",
    ]  # fmt: skip
    for text, html in zip(texts, await rendered(*texts), strict=True):
        assert not re.search("<(a|img|script|b)[ >]", html), text


# Of the examples in the specification of GitHub Flavored Markdown: the kinds that answers consist of.
EXAMPLES = {
    r"\*not emphasized*": "<p>*not emphasized*</p>",
    "foo\\\nbar": "<p>foo<br>bar</p>",
    "&copy; &amp; &#35; &nope;": "<p>© &amp; # &amp;nope;</p>",
    "`` foo ` bar ``": "<p><code>foo ` bar</code></p>",
    "`foo\nbar`": "<p><code>foo bar</code></p>",
    "*foo`*`": "<p>*foo<code>*</code></p>",
    "**a `**` b**": "<p><strong>a <code>**</code> b</strong></p>",
    "a * foo bar*": "<p>a * foo bar*</p>",
    "foo*bar*": "<p>foo<em>bar</em></p>",
    "snake_case_name": "<p>snake_case_name</p>",
    "*foo **bar** baz*": "<p><em>foo <strong>bar</strong> baz</em></p>",
    "**foo *bar* baz**": "<p><strong>foo <em>bar</em> baz</strong></p>",
    "***foo***": "<p><em><strong>foo</strong></em></p>",
    "~~Hi~~ and ~this~ but ~~~not~~~ this": "<p><del>Hi</del> and <del>this</del> but ~~~not~~~ this</p>",
    "[link](</my uri>)": "<p>[link](&lt;/my uri&gt;)</p>",
    '[link](https://a.b "title")': '<p><a href="https://a.b">link</a></p>',
    "[link [foo]](https://a.b)": '<p><a href="https://a.b">link [foo]</a></p>',
    "https://a.b/c_d_e.": '<p><a href="https://a.b/c_d_e">https://a.b/c_d_e</a>.</p>',
    "- a\n- b\n\n  c\n- d": "<ul><li>a</li><li>b<p>c</p></li><li>d</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "> a\n> - b\n> - c": "<blockquote><p>a</p><ul><li>b</li><li>c</li></ul></blockquote>",
    "| a | b \\| c |\n|---|:-:|\n| d | `e \\| f` |": "<div><table><thead><tr><th>a</th><th>b | c</th></tr></thead>"
    "<tbody><tr><td>d</td><td><code>e | f</code></td></tr></tbody></table></div>",
    "# a #\n***\nb": "<h3>a</h3><hr><p>b</p>",
    "a\n===\nb\n---": "<h3>a</h3><h4>b</h4>",
    "    code\n\n    more\n\nend": "<div><div><span></span><button>Copy</button></div><pre><code>code\n\nmore"
    "</code></pre></div>"
    "<p>end</p>",
}


async def test_examples_of_the_specification(rendered: Any) -> None:
    shown = await rendered(*EXAMPLES)
    for (source, expected), html in zip(EXAMPLES.items(), shown, strict=True):
        kept = re.sub(r' (class|type)="[^"]*"', "", html)
        assert kept == expected, source


async def test_what_a_model_that_repeats_itself_writes(rendered: Any) -> None:
    """Nothing is nested without end, and all is drawn before the browser gives up on the script."""
    repeated = [
        "> ",
        "- ",
        "1. ",
        "**a ",
        "a** ",
        "*a _b ",
        "[",
        "[a](",
        "\\(",
        "\\[a",
        "$$a ",
        "$a ",
        "`a``b",
        "~~a ~b",
        "<a>",
    ]
    texts = [text * 2000 for text in repeated] + ["**a " * 1000 + "b** " * 1000, "$$" + "\\frac{a}{" * 1000 + "$$"]
    for text, html in zip(texts, await rendered(*texts), strict=True):
        depth = deepest = 0
        for tag in re.findall("<(/?)(?:p|li|ul|ol|blockquote|strong|em|del)[ >]", html):
            depth += -1 if tag else 1
            deepest = max(deepest, depth)
        assert deepest < 70, text[:20]
    for text, html in zip(texts, await rendered(*texts, growing=True), strict=True):
        assert html, text[:20]


MATHEMATICS = r"""The quadratic \(ax^2+bx+c=0\) has the roots

$$x_{1,2}=\frac{-b\pm\sqrt{b^2-4ac}}{2a}$$

and with $\alpha_i \ge 0$, \(\sum_{i=1}^n \alpha_i = 1\):

\[
\begin{aligned}
f\left(\sum_{i=1}^{n} \alpha_i x_i\right) &\le \sum_{i=1}^{n} \alpha_i f(x_i) \\
\int_0^1 x^2\,dx &= \lim_{n\to\infty} \frac{1}{n}\sum_{k=1}^{n}\left(\frac{k}{n}\right)^2 = \boxed{\tfrac13}
\end{aligned}
\]

$$A = \begin{pmatrix} 1 & 0 \\ 0 & \hat\lambda \end{pmatrix}, \quad |x| = \begin{cases} x & \text{if } x \ge 0 \\ -x & \text{otherwise}\end{cases}$$

It costs $5 and not $6. Unknown: $\unknown{x}$.

- [x] **derive** the roots
- [ ] check $n=2$
  - [ ] by hand
"""  # noqa: E501


async def test_how_it_looks(served: Any, open_page: Any) -> None:
    served.engine.text = MATHEMATICS
    page = await open_page(served, language="zh-CN")
    await page.until("document.querySelector('#state').className === 'state ready'")
    await page.type("推导求根公式", "\ue007")
    await page.until("document.querySelector('.answer .numbers')?.textContent")
    assert await page.run("return document.querySelectorAll('.answer math').length") == 7
    assert await page.run("return document.querySelectorAll('.answer .task').length") == 3
    heights = await page.run("return [...document.querySelectorAll('math')].map(each => each.clientHeight)")
    assert all(height > 10 for height in heights)
    for colors, width in (("light", 1360), ("dark", 1360), ("light", 360)):
        await page.look(colors, width)
        await page.run("document.querySelector('#scroll').scrollTop = 0")
        await page.shot(f"mathematics-{colors}-{width}")
        await page.assert_readable()
        assert await page.run("return document.documentElement.scrollWidth") == width
    # What is copied holds the sources.
    copied = """
    const range = document.createRange();
    range.selectNodeContents(document.querySelector('.answer > .text'));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.activeElement.blur();
    const event = new ClipboardEvent('copy', { clipboardData: new DataTransfer(), bubbles: true, cancelable: true });
    document.querySelector('.answer > .text > p').dispatchEvent(event);
    return event.clipboardData.getData('text/plain');"""
    text = await page.run(copied)
    assert "The quadratic $ax^2+bx+c=0$ has the roots" in text and r"$$x_{1,2}=\frac{-b\pm\sqrt{b^2-4ac}}{2a}$$" in text
