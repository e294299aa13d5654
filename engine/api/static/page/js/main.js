// What is the same in every view: the header's state, search, the key that is asked for; and the way by address.

import { el, failure, itemPath } from "./dom.js";
import { ago, count } from "./format.js";
import { beat, onPulse } from "./pulse.js";
import { listen } from "./stories.js";
import { live } from "./views/live.js";

const ROUTES = [
  { pattern: /^#?\/?$/, view: "live", load: async () => live },
  { pattern: /^#\/clusters(?:\/by\/(size|growth|newest))?$/, view: "clusters", load: async () => (await import("./views/clusters.js")).clusters },
  { pattern: /^#\/clusters\/at\/(\d{1,2}|\+[1-8])(?:\/of\/(\d{1,18}))?$/, view: "clusters", load: async () => (await import("./views/levels.js")).levels },
  { pattern: /^#\/clusters\/(\d{1,18})$/, view: "clusters", load: async () => (await import("./views/cluster.js")).cluster },
  { pattern: /^#\/items\/(.+)$/, view: "item", load: async () => (await import("./views/item.js")).item },
  { pattern: /^#\/map$/, view: "map", load: async () => (await import("./views/map.js")).map },
  { pattern: /^#\/changes(?:\/of\/([a-z]+))?$/, view: "changes", load: async () => (await import("./views/changes.js")).changes },
];

const main = document.getElementById("main");
let leaving = new AbortController();
let first = true;

async function open() {
  leaving.abort();
  const mine = new AbortController();
  leaving = mine;
  const route = routeOf(location.hash);
  mark(route?.view);
  try {
    const show = route ? await route.load() : nowhere;
    if (mine.signal.aborted) return;
    const root = el("div", { class: "view", data: { view: route?.view ?? "nowhere" } });
    main.replaceChildren(root);
    show(root, route?.parameters, mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) main.replaceChildren(failure(error, open));
  }
  const heading = main.querySelector("h1");
  document.title = heading && route?.view !== "live" ? `${heading.textContent} · Shoal` : "Shoal";
  if (!first) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true }); // a screen reader goes on from here
  }
  first = false;
}

function routeOf(hash) {
  const route = ROUTES.find(({ pattern }) => pattern.test(hash));
  try {
    return route && { ...route, parameters: route.pattern.exec(hash).slice(1).map((part) => part && decodeURIComponent(part)) };
  } catch {
    return undefined; // an address that was cut off, as in #/items/%f
  }
}

function nowhere(root) {
  root.append(el("h1", {}, "There is no such view"), el("p", {}, el("a", { href: "#/" }, "To what is live")));
}

function mark(view) {
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

const WORDS = { wait: "Connecting", live: "Live", away: "Writer away", lost: "No connection", empty: "No data yet" };

let shownVersion = null;

// Once for each version that comes: an animation without end keeps a core busy.
function flash(state) {
  for (const animation of state.querySelector(".dot").getAnimations()) animation.play();
}

function showState({ connection, summary, problem }) {
  const paused = connection === "live" && summary.writer.state === "paused";
  const state = document.getElementById("state");
  const words = document.getElementById("state-words");
  state.dataset.state = paused ? "away" : connection;
  const told = paused ? "Paused" : WORDS[connection];
  if (words.textContent !== told) words.textContent = told;
  const notice = document.getElementById("notice");
  const warning = warn(connection, summary, problem, paused);
  if (notice.textContent !== warning) notice.textContent = warning;
  notice.hidden = !warning;
  if (!summary) return;
  if (summary.version !== shownVersion) flash(state);
  shownVersion = summary.version;
  document.getElementById("collection").textContent = summary.collection;
  document.getElementById("version").textContent = `${summary.collection} · version ${count(summary.version)}`;
}

function warn(connection, summary, problem, paused) {
  if (connection === "away") {
    const age = summary.version ? `, ${ago((Date.now() - summary.time) / 1000)}` : "";
    return `The writer does not run, so nothing new comes in. All answers are of version ${count(summary.version)}${age}.`;
  }
  if (connection === "lost") return `${problem.message} Trying again every second.`;
  return paused ? `The writer has paused: ${summary.writer.reason}.` : "";
}

function search(event) {
  event.preventDefault();
  const field = document.getElementById("query");
  const wanted = field.value.trim();
  if (!wanted) return;
  location.hash = /^#\d{1,18}$/.test(wanted) ? `#/clusters/${wanted.slice(1)}` : itemPath(wanted);
  field.blur();
}

document.getElementById("search").addEventListener("submit", search);
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the view's
  main.focus();
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.target.closest("input, textarea, dialog")) {
    event.preventDefault();
    document.getElementById("query").focus();
  }
});
addEventListener("hashchange", open);
onPulse(showState);
open();
beat();
listen();
