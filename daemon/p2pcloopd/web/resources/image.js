// One image: facts, buttons and its chunk map.

import { act, ask, date, drawn, element, facts, find, short, size } from "./dom.js";
import { tr } from "./words.js";

const MAP_MILLISECONDS = 5000; // between two looks at a map that changes
let shown = null; // its name
let told = null; // its facts
let drawnOf = null; // what of it was here when its map was drawn
let drawnAt = 0;
let timer = 0;

export async function showImage(name, state) {
  shown = name;
  told = drawnOf = null;
  clearTimeout(timer);
  timer = 0;
  find("image-part").hidden = name === null;
  if (name === null) return;
  find("image-title").textContent = tr("Image {name}", { name: short(name) });
  find("map").replaceChildren("…");
  find("image-title").focus();
  told = await ask(`image?name=${encodeURIComponent(name)}`);
  if (told === null || shown !== name) return;
  find("overlays").replaceChildren(...told.overlays.map((path) => element("option", { value: path })));
  find("boot").hidden = told.withdrawn || told.state;
  updateImage(state);
}

export function updateImage(state) {
  const image = state.images[shown];
  if (told === null || image === undefined) return;
  const pinned = state.pinned.includes(told.manifest);
  facts(find("image-facts"), [
    [tr("Version"), tr("{version} of {date}", { version: told.version, date: date(told.created) })],
    [tr("Here"), tr("{part} of {whole}", { part: size(image.here), whole: size(image.size) })],
    [tr("Device"), size(told.size)], [tr("Layers"), String(told.layers)],
    [tr("Publisher"), told.ours ? tr("you") : tr("others")], [tr("Profile"), told.profile ?? tr("none")],
    [tr("Kept"), pinned ? tr("pinned") : null], [tr("Private"), told.private ? tr("yes") : null],
    [tr("Message"), told.message, true], [tr("Name"), told.name, true], [tr("Link"), told.link, true],
  ]);
  buttons(image, pinned);
  drawIfChanged(image);
}

function buttons(image, pinned) {
  const whole = image.whole || told.withdrawn; // of a withdrawal there is nothing to fetch
  const wanted = JSON.stringify([shown, pinned, whole]);
  const place = find("image-buttons");
  if (place.dataset.shown === wanted) return;
  place.dataset.shown = wanted;
  const press = (what) => () => act({ do: what, ref: told.name });
  place.replaceChildren(
    ...(whole ? [] : [element("button", { onclick: press("fetch") }, tr("Fetch all of it"))]),
    element("button", { onclick: press(pinned ? "unpin" : "pin") }, pinned ? tr("Unpin") : tr("Pin")),
    element("button", { onclick: () => showImage(null) }, tr("Close")),
  );
}

function drawIfChanged(image) {
  const now = Date.now();
  if (drawnOf === image.here || timer) return;
  const wait = drawnOf === null ? 0 : Math.max(0, drawnAt + MAP_MILLISECONDS - now);
  const name = shown;
  timer = setTimeout(async () => {
    timer = 0;
    if (shown !== name) return;
    drawnOf = image.here;
    drawnAt = Date.now();
    const map = await ask(`map?name=${encodeURIComponent(name)}`);
    if (shown !== name || map === null) return;
    find("map").replaceChildren(...(map.why ? [map.why] : map.panels.map((panel) => figure(panel, map))));
  }, wait);
}

/** A panel; its legend says in words what its colours do. */
function figure(panel, map) {
  const marks = panel.marks.filter(([, , path]) => path);
  const picture = drawn("svg", { viewBox: `0 0 ${map.width} ${map.height}`, role: "img", "aria-label": panel.told, "shape-rendering": "crispEdges" },
    ...marks.map(([kind, , path]) => drawn("path", { class: kind, d: path })));
  return element("figure", {}, element("figcaption", {}, panel.title), picture, legend(panel));
}

/** A line for each mark; the marks of a ramp stand together before the label of its end. */
function legend(panel) {
  const lines = [];
  let before = [];
  for (const [kind, label] of panel.marks) {
    if (!label && !kind.startsWith("order-")) continue; // another panel explains it
    before.push(drawn("svg", { viewBox: "0 0 9 9", "aria-hidden": "true" }, drawn("rect", { class: kind, width: 9, height: 9 })));
    if (!label) continue;
    lines.push(element("li", {}, ...before, ` ${label}`));
    before = [];
  }
  return element("ul", { class: "legend" }, ...lines);
}

find("boot").addEventListener("submit", (event) => {
  event.preventDefault();
  act({ do: "boot", ref: told.name, ...Object.fromEntries(new FormData(event.target)) });
});
