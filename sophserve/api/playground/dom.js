// Elements, made without ever reading text as HTML.

/** An element of HTML with properties (class, text, attributes, on…) and children. */
export function make(name, properties, ...children) {
  return makeIn("http://www.w3.org/1999/xhtml", name, properties, ...children);
}

/** An element of another namespace. */
export function makeIn(namespace, name, properties = {}, ...children) {
  const element = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Make a textarea as high as its text. */
export function fitTo(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
}

/** A button that copies what text() gives, and says so for a moment. */
export function copyButton(t, text) {
  const button = make("button", { class: "quiet", text: t("copy"), type: "button" });
  button.addEventListener("click", async () => {
    await copy(text());
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = t("copy")), 1500);
  });
  return button;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain HTTP from another machine there is no clipboard object.
  const area = make("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
