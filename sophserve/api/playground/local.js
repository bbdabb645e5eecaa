// Small things that the browser keeps. A browser may forbid that: then they are kept until the page is left.

const forgotten = new Map();

/** localStorage ("local", until it is cleared) or sessionStorage ("session", until the tab is closed). */
export function load(name, area = "local") {
  try {
    return (area === "local" ? localStorage : sessionStorage).getItem(name) ?? forgotten.get(name) ?? null;
  } catch {
    return forgotten.get(name) ?? null;
  }
}

/** Keep a text; null forgets it. */
export function save(name, value, area = "local") {
  forgotten.delete(name);
  try {
    const storage = area === "local" ? localStorage : sessionStorage;
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, value);
  } catch {
    if (value !== null) forgotten.set(name, value);
  }
}
