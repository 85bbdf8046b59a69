// Small helpers: elements without markup in text, sizes and times for people, requests.

import { tr } from "./words.js";

export const find = (id) => document.getElementById(id);

/** An element; text of strangers is never read as markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  set(made, attributes);
  made.append(...children);
  return made;
}

/** An element of SVG. */
export function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  set(made, attributes);
  made.append(...children);
  return made;
}

function set(made, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
}

/** Replace the text of an element, only if it is another. */
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** A list of facts: [name, value, long]; those without a value are left out. */
export function facts(target, pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const key = JSON.stringify(shown);
  if (target.dataset.shown === key) return;
  target.dataset.shown = key;
  target.replaceChildren(...shown.map(([name, value, long]) =>
    element("div", { class: long ? "long" : null }, element("dt", {}, name), element("dd", {}, value))));
}

/** Keep the rows of a table in step with items: `key` tells which is which, `fill` writes one. */
export function rows(body, items, key, make, fill) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  let before = null;
  for (const item of items) {
    const name = String(key(item));
    let row = old.get(name);
    if (row === undefined) {
      row = make(item);
      row.dataset.key = name;
    }
    old.delete(name);
    const place = before === null ? body.firstChild : before.nextSibling;
    if (row !== place) body.insertBefore(row, place);
    fill(row, item);
    before = row;
  }
  for (const row of old.values()) row.remove();
}

export function size(bytes) {
  let unit = "bytes";
  for (const next of ["kB", "MB", "GB"]) {
    if (bytes < 1000) break;
    bytes /= 1000;
    unit = next;
  }
  return unit === "bytes" ? tr("{count} bytes", { count: bytes }) : `${bytes.toFixed(1)} ${unit}`;
}

export const rate = (bytes) => (bytes ? `${size(bytes)}/s` : "–");

export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

export const date = (seconds) => new Date(1000 * seconds).toISOString().slice(0, 10);

/** `@key/label` with the first characters of the key. */
export function short(name) {
  const found = /^(@[a-z2-7]{4})[a-z2-7]{48}(\/.*)$/.exec(name);
  return found ? `${found[1]}…${found[2]}` : name;
}

export function say(text, bad = false) {
  const message = find("message");
  message.className = bad ? "bad" : "";
  message.textContent = text;
}

/** Ask for facts; an error is said, and gives null. */
export async function ask(path, body) {
  try {
    const options = body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    };
    const answer = await fetch(path, options);
    const told = await answer.json();
    if (answer.ok) return told;
    say(told.hint ? `${told.error}: ${told.hint}` : told.error, true);
  } catch {
    say(tr("p2pcloopd does not answer"), true);
  }
  return null;
}

/** Press one of the buttons that start a job. */
export async function act(fields) {
  if ((await ask("act", fields)) !== null) say(tr("started: {command}", { command: fields.do }));
}
