// One guest: facts, buttons and its console.

import { act, ask, duration, element, facts, find, short, size } from "./dom.js";
import { drawTimeline } from "./timeline.js";

const MOST = 200_000; // characters of a console that are kept
let shown = null;
let events = null;
let drawnOf = null; // what had come for it when its timeline was drawn

export function showGuest(name, state) {
  shown = name;
  events?.close();
  events = null;
  find("guest-part").hidden = name === null;
  if (name === null) return;
  find("guest-title").textContent = `Guest ${name}`;
  find("guest-title").focus();
  find("console").textContent = "";
  find("timeline").replaceChildren();
  drawnOf = null;
  follow(name);
  updateGuest(state);
}

function follow(name) {
  events = new EventSource(`console?guest=${encodeURIComponent(name)}`);
  const take = (event, ended) => {
    const place = find("console");
    const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 4;
    const { text } = JSON.parse(event.data);
    place.textContent = ended ? text : (place.textContent + text).slice(-MOST);
    if (atEnd) place.scrollTop = place.scrollHeight;
  };
  // A connection that is made anew begins anew.
  events.addEventListener("open", () => { find("console").textContent = ""; });
  events.addEventListener("text", (event) => take(event, false));
  events.addEventListener("ended", (event) => {
    take(event, true);
    events.close();
  });
}

// A page in a tab that is not seen asks for nothing.
document.addEventListener("visibilitychange", () => {
  events?.close();
  events = null;
  if (!document.hidden && shown !== null) follow(shown);
});

/** The state of a guest, in words. */
export function describe(guest) {
  if (guest.state === "running") {
    return guest.waiting ? `waits: ${guest.waiting}` : "running";
  }
  if (guest.state === "ended") {
    const how = ["poweroff", "reboot"].includes(guest.reason) ? "shut down" : guest.reason;
    return `${how} (${guest.exit_code})${guest.error ? `: ${guest.error}` : ""}`;
  }
  return guest.error ?? guest.state;
}

export function updateGuest(state) {
  const guest = state.guests.find((each) => each.name === shown);
  if (guest === undefined) return;
  const runs = guest.state === "running";
  facts(find("guest-facts"), [
    ["State", describe(guest), true],
    ["Image", short(guest.image) + (guest.version ? `, version ${guest.version}` : ""), true],
    ["Up", runs ? duration(Date.now() / 1000 - guest.started) : null],
    ["Waits for", guest.waiting ? duration(Date.now() / 1000 - guest.waiting_since) : null],
    ["Booted in", guest.boot_seconds === null ? null : `${guest.boot_seconds.toFixed(1)} s`],
    ["Fetched", guest.fetched === null ? null : size(guest.fetched)],
    ["Memory", size(guest.memory)], ["Network", guest.network], ["Overlay", guest.overlay, true],
    ["Display", guest.display && !guest.display_link ? `p2pcloop display ${guest.name}` : null, true],
  ]);
  find("type").hidden = !runs;
  const of = JSON.stringify([guest.fetched, guest.boot_seconds]);
  if (drawnOf !== of) {
    drawnOf = of;
    drawTimeline(find("timeline"), guest.name);
  }
  buttons(guest, runs);
}

function buttons(guest, runs) {
  const wanted = JSON.stringify([guest.name, runs, guest.display_link]);
  const place = find("guest-buttons");
  if (place.dataset.shown === wanted) return;
  place.dataset.shown = wanted;
  const press = (what) => () => act({ do: what, name: guest.name });
  place.replaceChildren(
    element("button", { onclick: press(runs ? "stop" : "start") }, runs ? "Shut down" : "Start again"),
    ...(runs && guest.display_link ? [element("a", { href: guest.display_link, target: "_blank", rel: "noreferrer" }, "Open its display")] : []),
    element("button", { onclick: () => showGuest(null) }, "Close"),
  );
}

const type = (text) => ask("type", { guest: shown, text });

find("type").addEventListener("submit", (event) => {
  event.preventDefault();
  const line = event.target.elements.text;
  type(`${line.value}\r`);
  line.value = "";
});
find("interrupt").addEventListener("click", () => type("\x03"));
