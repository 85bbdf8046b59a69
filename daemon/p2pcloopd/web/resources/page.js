// The page: the state that arrives as events, and the parts that show it.

import { act, element, facts, find, rate, rows, say, short, size, write } from "./dom.js";
import { describe, showGuest, updateGuest } from "./guest.js";
import { showImage, updateImage } from "./image.js";
import { tr } from "./words.js";

const MOST = 100; // rows of images that are shown at first: a browser takes a second for 500

let every = false;
const state = { images: {}, guests: [], peers: [], jobs: [], pinned: [] };
let events = null;

function connect() {
  events?.close();
  events = new EventSource("events");
  events.addEventListener("state", (event) => {
    Object.assign(state, JSON.parse(event.data));
    show(Object.keys(state));
    say("");
  });
  events.addEventListener("change", (event) => {
    const { images = {}, gone = [], ...others } = JSON.parse(event.data);
    Object.assign(state, others);
    Object.assign(state.images, images);
    for (const name of gone) delete state.images[name];
    show([...Object.keys(others), ...(Object.keys(images).length || gone.length ? ["images"] : [])]);
  });
  events.addEventListener("error", () => say(tr("no connection to p2pcloopd: it is tried anew"), true));
}

// A page in a tab that is not seen asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) events?.close();
  else connect();
});

const parts = { node: showNode, traffic: showTraffic, images: showImages, guests: showGuests,
  peers: showPeers, jobs: showJobs, pinned: () => updateImage(state) };

function show(keys) {
  for (const key of keys) parts[key]?.();
}

function showNode() {
  const node = state.node;
  const where = node.listen.length ? tr("peers reach it at {addresses}", { addresses: node.listen.join(", ") }) : tr("no peer reaches it");
  write(find("node"), tr("{home}, process {pid}, since {since}; {where}",
    { home: node.home, pid: node.pid, since: new Date(1000 * node.since).toLocaleString(), where }));
  const told = [...node.warnings, ...node.mirrors.filter((m) => m.error).map((m) => `${m.base}: ${m.error}`)];
  find("warnings").replaceChildren(...told.map((text) => element("li", { class: "bad" }, text)));
}

function showTraffic() {
  const t = state.traffic;
  facts(find("traffic"), [[tr("Down"), rate(t.down)], [tr("Up"), rate(t.up)], [tr("Peers"), String(t.peers)],
    [tr("Received"), size(t.received)], [tr("Sent"), size(t.sent)]]);
}

function showImages() {
  const wanted = find("filter").value.toLowerCase();
  const names = Object.keys(state.images).filter((name) => name.toLowerCase().includes(wanted));
  const most = every ? names.length : MOST;
  rows(find("images"), names.sort().slice(0, most), (name) => name, makeImage, fillImage);
  find("more").hidden = names.length <= most;
  write(find("more"), tr("Show all {count} images", { count: names.length }));
  updateImage(state);
}

function makeImage(name) {
  const open = element("button", { class: "link", title: name, onclick: () => openImage(name) }, short(name));
  const bar = element("progress", { "aria-label": tr("{name}, here", { name: short(name) }) });
  return element("tr", {}, element("td", { class: "name" }, open, " ", element("span", { class: "quiet" })),
    element("td", {}, bar, " ", element("span")), element("td"), element("td"), element("td"));
}

function fillImage(row, name) {
  const image = state.images[name];
  const [named, here, down, up, peers] = row.children;
  write(named.lastChild, image.trouble ? `v${image.version}, ${image.trouble}` : `v${image.version}`);
  const [bar, , told] = here.childNodes;
  const most = Math.max(1, image.size);
  if (bar.max !== most) bar.max = most;
  if (bar.value !== image.here) bar.value = image.here;
  const percent = Math.floor((100 * image.here) / most);
  write(told, image.size ? tr("{percent} % of {whole}", { percent, whole: size(image.size) }) : size(image.here));
  write(down, rate(image.down));
  write(up, rate(image.up));
  write(peers, String(image.peers));
}

function openImage(name) {
  showGuest(null, state);
  showImage(name, state);
}

function showGuests() {
  const make = (guest) => {
    const open = element("button", { class: "link", onclick: () => { showImage(null, state); showGuest(guest.name, state); } }, guest.name);
    return element("tr", {}, element("td", {}, open), element("td", { class: "name" }), element("td", { class: "name" }), element("td"));
  };
  const overlays = [...new Set(state.guests.map((guest) => guest.overlay).filter(Boolean))];
  find("all-overlays").replaceChildren(...overlays.map((path) => element("option", { value: path })));
  rows(find("guests"), state.guests, (guest) => guest.name, make, (row, guest) => {
    const [, image, told, fetched] = row.children;
    write(image, short(guest.image) + (guest.version ? ` v${guest.version}` : ""));
    write(told, describe(guest));
    write(fetched, guest.fetched === null ? "–" : size(guest.fetched));
  });
  updateGuest(state);
}

function showPeers() {
  const make = () => element("tr", {}, element("td", { class: "name" }), ...[1, 2, 3, 4].map(() => element("td")));
  rows(find("peers"), state.peers, (peer) => peer.address, make, (row, peer) => {
    const [address, received, sent, down, up] = row.children;
    write(address, peer.connected ? peer.address : tr("{address} (gone)", { address: peer.address }));
    write(received, size(peer.received));
    write(sent, size(peer.sent));
    write(down, rate(peer.down));
    write(up, rate(peer.up));
  });
}

function showJobs() {
  find("no-jobs").hidden = state.jobs.length > 0;
  const make = (job) => element("li", {}, element("h3", {}, element("code", {}, job.what)), element("p"), element("pre", { tabindex: "0", "aria-label": tr("output of {command}", { command: job.what }) }));
  rows(find("jobs"), state.jobs, (job) => job.id, make, (row, job) => {
    const [, told, said] = row.children;
    told.className = job.code ? "bad" : "";
    write(told, job.code === null ? tr("runs") : job.code ? tr("failed, exit code {code}", { code: job.code }) : tr("done"));
    write(said, job.said.trim());
    said.hidden = !job.said.trim();
  });
}

find("more").addEventListener("click", () => {
  every = true;
  showImages();
});
find("filter").addEventListener("input", showImages);
for (const id of ["fetch-link", "publish"]) {
  find(id).addEventListener("submit", (event) => {
    event.preventDefault();
    act({ do: id, ...Object.fromEntries(new FormData(event.target)) });
    event.target.reset();
  });
}
if (!document.hidden) connect();
