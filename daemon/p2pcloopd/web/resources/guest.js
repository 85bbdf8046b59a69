// One guest: facts, buttons and its console.

import { act, ask, duration, element, facts, find, short, size } from "./dom.js";
import { drawTimeline } from "./timeline.js";
import { tr } from "./words.js";

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
  find("guest-title").textContent = tr("Guest {name}", { name });
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

const ENDINGS = { poweroff: tr("shut down"), reboot: tr("shut down"), panic: tr("panic"),
  crash: tr("crash"), killed: tr("killed"), done: tr("done"), suspended: tr("suspended"),
  moved: tr("moved"), failed: tr("failed"), lost: tr("lost"), damaged: tr("damaged") };

/** The state of a guest, in words. */
export function describe(guest) {
  if (guest.state === "running") {
    return guest.waiting ? tr("waits: {reason}", { reason: guest.waiting }) : tr("running");
  }
  if (guest.state === "ended") {
    const how = `${ENDINGS[guest.reason] ?? guest.reason} (${guest.exit_code})`;
    return guest.error ? `${how}: ${guest.error}` : how;
  }
  return guest.error ?? ENDINGS[guest.state] ?? guest.state;
}

export function updateGuest(state) {
  const guest = state.guests.find((each) => each.name === shown);
  if (guest === undefined) return;
  const runs = guest.state === "running";
  const image = short(guest.image);
  facts(find("guest-facts"), [
    [tr("State"), describe(guest), true],
    [tr("Image"), guest.version ? tr("{name}, version {version}", { name: image, version: guest.version }) : image, true],
    [tr("Uptime"), runs ? duration(Date.now() / 1000 - guest.started) : null],
    [tr("Waits for"), guest.waiting ? duration(Date.now() / 1000 - guest.waiting_since) : null],
    [tr("Booted in"), guest.boot_seconds === null ? null : `${guest.boot_seconds.toFixed(1)} s`],
    [tr("Fetched"), guest.fetched === null ? null : size(guest.fetched)],
    [tr("Memory"), size(guest.memory)], [tr("Network"), guest.network === "none" ? tr("none") : guest.network], [tr("Overlay"), guest.overlay, true],
    [tr("Display"), guest.display && !guest.display_link ? `p2pcloop display ${guest.name}` : null, true],
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
    element("button", { onclick: press(runs ? "stop" : "start") }, runs ? tr("Shut down") : tr("Start again")),
    ...(runs && guest.display_link ? [element("a", { href: guest.display_link, target: "_blank", rel: "noreferrer" }, tr("Open its display"))] : []),
    element("button", { onclick: () => showGuest(null) }, tr("Close")),
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
