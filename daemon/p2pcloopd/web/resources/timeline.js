// A boot's timeline: when reads waited, and beside it the link and the processors.

import { ask, drawn, element, size } from "./dom.js";
import { tr } from "./words.js";

const WIDTH = 640;
const LANE = 40; // units that a lane is high

/** Draw the timeline of a guest into a place; nothing where nothing had to come for it. */
export async function drawTimeline(place, guest) {
  place.dataset.guest = guest;
  const told = await ask(`timeline?guest=${encodeURIComponent(guest)}`);
  if (told === null || place.dataset.guest !== guest) return; // another one is shown by now
  if (!told.spans.length && !told.waits.length) {
    place.replaceChildren();
    return;
  }
  const ends = [...told.spans, ...told.waits].map(([begin, seconds]) => begin + seconds);
  const end = Math.max(told.boot_seconds ?? 0, ...ends);
  const fastest = Math.max(1, ...told.spans.map(([, seconds, came]) => came / Math.max(seconds, 0.05)));
  const summary = tr("{count} reads waited, for {waited} s in all; {came} came, at {fastest}/s at most",
    { count: told.count, waited: told.waited.toFixed(1), came: size(told.came), fastest: size(fastest) });
  place.replaceChildren(
    element("h3", {}, tr("Timeline of its boot")),
    element("p", {}, `${summary}.`),
    picture(told, end, fastest, summary),
    longest(told.waits),
  );
}

function picture(told, end, fastest, summary) {
  const x = (seconds) => (WIDTH * Math.max(0, seconds)) / end;
  const box = (kind, begin, seconds, low, part) => {
    const high = Math.max(0.5, (LANE - 6) * Math.min(1, part));
    return drawn("rect", { class: kind, x: x(begin).toFixed(2), y: (low - high).toFixed(2),
      width: Math.max(0.7, x(seconds)).toFixed(2), height: high.toFixed(2) });
  };
  const parts = [
    ...told.waits.map(([begin, seconds]) => box("wait", begin, seconds, LANE, 1)),
    ...told.spans.map(([begin, seconds, came]) => box("link", begin, seconds, 2 * LANE, came / Math.max(seconds, 0.05) / fastest)),
    ...told.spans.map(([begin, seconds, , busy]) => box("busy", begin, seconds, 3 * LANE, busy)),
    ...[1, 2, 3].map((lane) => drawn("line", { class: "axis", x1: 0, x2: WIDTH, y1: lane * LANE, y2: lane * LANE })),
  ];
  if (told.boot_seconds) {
    const at = x(told.boot_seconds);
    parts.push(drawn("line", { class: "prompt", x1: at, x2: at, y1: 0, y2: 3 * LANE }));
  }
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${3 * LANE + 1}`, role: "img", class: "timeline",
    preserveAspectRatio: "none", "aria-label": summary }, ...parts);
  const key = (kind, text) => element("li", {}, drawn("svg", { viewBox: "0 0 9 9", "aria-hidden": "true", class: "timeline-key" },
    drawn("rect", { class: kind, width: 9, height: 9 })), ` ${text}`);
  return element("figure", {}, svg, element("p", { class: "ends quiet" }, element("span", {}, "0 s"), element("span", {}, `${end.toFixed(1)} s`)),
    element("ul", { class: "legend" }, key("wait", tr("a read waits")), key("link", tr("what comes, at most {fastest}/s", { fastest: size(fastest) })),
      key("busy", tr("processors of this machine in use")),
      ...(told.boot_seconds ? [key("prompt", tr("prompt, after {seconds} s", { seconds: told.boot_seconds.toFixed(1) }))] : [])));
}

function longest(waits) {
  const rows = waits.slice(0, 10).map(([begin, seconds, length]) => element("tr", {},
    ...[`${begin.toFixed(2)} s`, `${seconds.toFixed(2)} s`, size(length)].map((text) => element("td", {}, text))));
  const head = [tr("From"), tr("For"), tr("Until these bytes came")].map((text) => element("th", { scope: "col" }, text));
  return element("details", {}, element("summary", {}, tr("The longest waits")),
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
}
