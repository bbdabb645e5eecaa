// Pictures: {name, file}, the file a Blob that holds what is sent.

import { make } from "./dom.js";

const LARGEST = 480; // pixels of a side of a picture that is scaled down to be shown

export const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

const shown = new WeakMap(); // what was scaled down already, by file

/** A picture from a file of the reader, as the file is now. Throws what the browser throws if it cannot be read or is
 *  no picture. */
export async function readPicture(file) {
  const copy = new Blob([await file.arrayBuffer()], { type: file.type });
  await scaled(copy);
  return { name: file.name, file: copy };
}

/** An element that shows a picture in small. */
export function thumbnail({ name, file }) {
  const canvas = make("canvas", { role: "img", "aria-label": name, title: name, width: 1, height: 1 });
  const draw = ({ bitmap, width, height }) => {
    Object.assign(canvas, { width: bitmap.width, height: bitmap.height, title: `${name} · ${width} × ${height}` });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
  };
  scaled(file).then(draw, () => canvas.replaceWith(make("span", { text: name })));
  return canvas;
}

function scaled(file) {
  if (!shown.has(file)) shown.set(file, scaleDown(file));
  return shown.get(file);
}

async function scaleDown(file) {
  const whole = await createImageBitmap(file);
  const { width, height } = whole;
  const scale = Math.min(1, LARGEST / width, LARGEST / height);
  const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const bitmap = await createImageBitmap(whole, { resizeWidth, resizeHeight, resizeQuality: "high" });
  whole.close();
  return { bitmap, width, height };
}

/** A file as a data URL. Throws what the browser throws if it cannot be read. */
export function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** The file that a data URL holds; null for one that holds no picture. */
export function fileOf(url) {
  const [, type, text] = /^data:(image\/[\w.+-]+);base64,([\w+/]+=*)$/.exec(url) ?? [];
  if (!type) return null;
  try {
    return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type });
  } catch {
    return null;
  }
}

/** How many bytes files have as data URLs. */
export function encodedSize(pictures) {
  return pictures.reduce((sum, { file }) => sum + 4 * Math.ceil(file.size / 3) + 100, 0);
}
