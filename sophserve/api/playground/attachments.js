// The pictures of the message that is being written: chosen, dropped or pasted, and taken away again.

import { byId, make } from "./dom.js";
import { number, t } from "./language.js";
import { tell } from "./notice.js";
import { TYPES, encodedSize, readPicture, thumbnail } from "./pictures.js";

export class Attachments {
  /** status: of the server, which says what it takes; sent(): the pictures that go with the message because they are
   *  in the conversation. */
  constructor(status, sent, onchange) {
    Object.assign(this, { status, sent, onchange });
    this.drafts = new Map(); // by the names of drafts; they last as long as the page
    this.pictures = [];
    this.added = Promise.resolve();
    byId("picture").accept = TYPES.join();
    byId("attach").addEventListener("click", () => byId("picture").click());
    byId("picture").addEventListener("change", () => {
      this.add([...byId("picture").files]);
      byId("picture").value = "";
    });
    addEventListener("paste", (event) => this.paste(event));
    addEventListener("dragover", (event) => this.drag(event));
    addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || mark(false));
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      mark(false);
      this.add([...event.dataTransfer.files]);
    });
  }

  /** Go on with the draft of that name. */
  open(draft) {
    if (!this.drafts.has(draft)) this.drafts.set(draft, []);
    this.pictures = this.drafts.get(draft);
    this.show();
  }

  /** Give the pictures away, once the last one is read. */
  take() {
    const taken = this.pictures.splice(0);
    this.show();
    return taken;
  }

  /** Add files, or tell why not. */
  add(files) {
    const { pictures } = this;
    if (files.length && !this.status.sees) tell(t("blind", { model: this.status.model }), { error: true });
    else for (const file of files) this.added = this.added.then(() => this.addOne(pictures, file));
    byId("input").focus();
  }

  async addOne(pictures, file) {
    const wrong = TYPES.includes(file.type) ? this.tooMuch(pictures, file) : t("no_picture", { file: file.name });
    if (wrong) return tell(wrong, { error: true });
    try {
      pictures.push(await readPicture(file));
    } catch (error) {
      return tell(t("broken_picture", { file: file.name, why: error.message }), { error: true });
    }
    byId("said").textContent = t("attached", { file: file.name });
    this.show();
    this.onchange();
  }

  /** Why a file is more than the server takes; empty if it is not. */
  tooMuch(pictures, file) {
    const { image_bytes: most = Infinity, images: count = Infinity, request_bytes: room = Infinity } = this.status.limits;
    const others = [...this.sent(), ...pictures];
    if (others.length >= count) return t("many_pictures", { file: file.name, n: others.length + 1, most: count });
    const told = (name, size, limit) => t(name, { file: file.name, n: megabytes(size), most: megabytes(limit) });
    if (file.size > most) return told("large_picture", file.size, most);
    const size = encodedSize([...others, { file }]);
    return size > room ? told("large_request", size, room) : "";
  }

  show() {
    byId("pictures").hidden = !this.pictures.length;
    byId("pictures").replaceChildren(...this.pictures.map((picture) => {
      const label = t("detach", { file: picture.name });
      const onclick = () => this.remove(picture);
      const button = make("button", { type: "button", text: "×", "aria-label": label, title: label, onclick });
      return make("li", {}, thumbnail(picture), button);
    }));
  }

  remove(picture) {
    const place = this.pictures.indexOf(picture);
    this.pictures.splice(place, 1);
    byId("said").textContent = t("detached", { file: picture.name });
    this.show();
    const buttons = byId("pictures").querySelectorAll("button");
    (buttons[Math.min(place, buttons.length - 1)] ?? byId("input")).focus();
    this.onchange();
  }

  paste(event) {
    const { files, types } = event.clipboardData;
    const elsewhere = event.target.closest?.("input, textarea") ?? byId("input");
    // What is copied from a document is its text, though there is a picture of it as well.
    if (!files.length || elsewhere !== byId("input") || (types.includes("text/plain") && types.includes("text/html"))) return;
    event.preventDefault();
    this.add([...files]);
  }

  drag(event) {
    if (!hasFiles(event)) return;
    event.preventDefault(); // else the browser would leave the page to show the file
    event.dataTransfer.dropEffect = this.status.sees ? "copy" : "none";
    mark(this.status.sees);
  }
}

function hasFiles({ dataTransfer }) {
  return dataTransfer.types.includes("Files");
}

function mark(dropping) {
  byId("composer").classList.toggle("dropping", dropping);
}

function megabytes(bytes) {
  return number(bytes / 1e6, bytes < 1e5 ? 4 : 2);
}
