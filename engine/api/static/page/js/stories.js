// Merges, splits, births and ends of clusters: the newest from the log, then as they happen.

import { follow, get, query } from "./api.js";
import { clusterLink, clusterLinks, el, svg } from "./dom.js";
import { count, plural } from "./format.js";

const KEPT = 400;
const PAGES = 5; // read at most for that
const WANTED = 40; // stories to begin with
const REACH = [1, 8, 64, 512, 4096]; // versions looked back over for them

const ICONS = {
  merge: "M4 5c5 0 5 7 10 7h6M4 19c5 0 5-7 10-7M17 8l4 4-4 4",
  split: "M3 12h6c5 0 5-7 10-7M9 12c5 0 5 7 10 7M17 2l4 3-4 3M17 16l4 3-4 3",
  emerge: "M12 4v16M4 12h16",
  vanish: "M6 6l12 12M18 6 6 18",
  grow: "M4 18 12 8l8 10",
  shrink: "M4 7l8 10 8-10",
};
export const KINDS = Object.keys(ICONS);

const listeners = new Set();
export const feed = { stories: [], ready: false, following: false, problem: null }; // newest first

export function onStories(listener, signal) {
  listeners.add(listener);
  signal?.addEventListener("abort", () => listeners.delete(listener), { once: true });
  listener(feed, []);
}

export async function listen() {
  const signal = new AbortController().signal;
  for (let cursor = null; ; ) {
    try {
      cursor ??= await begin(signal);
      feed.ready = true;
      tell([]);
      const path = query("v1/changes", { kind: "clusters" });
      for await (const event of follow(path, cursor, signal, (on) => { feed.following = on; tell([]); })) {
        cursor = event.cursor;
        if (event.data.event) add([event.data]);
      }
    } catch (error) {
      feed.problem = error;
      tell([]);
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
    }
  }
}

// Reads the end of the log, farther back while there is little in it; returns where it stopped.
async function begin(signal) {
  const { version, changes_from: oldest, cursor } = await get("v1/summary", signal);
  let found = { events: [], place: cursor };
  for (const reach of REACH) {
    const first = Math.max(version - reach, oldest - 1, 0);
    const page = await read(`${first}-999999999`, signal);
    if (page.more && reach > REACH[0]) break; // so far back there is too much
    found = page.more ? { ...page, place: cursor } : page;
    if (page.more || page.events.length >= WANTED || first < oldest) break;
  }
  feed.stories = [];
  add(found.events.slice(-KEPT));
  return found.place;
}

// All behind a place and where that ends, unless it is more than a few pages.
async function read(place, signal) {
  const events = [];
  let more = true;
  for (let page = 0; more && page < PAGES; page++) {
    const found = await get(query("v1/changes", { after: place, kind: "clusters", limit: KEPT }), signal);
    events.push(...found.changes);
    ({ cursor: place, more } = found);
  }
  return { events, place, more };
}

function add(events) {
  const fresh = events.toReversed();
  feed.stories = [...fresh, ...feed.stories].slice(0, KEPT);
  feed.problem = null;
  tell(fresh);
}

function tell(fresh) {
  for (const listener of [...listeners]) listener(feed, fresh);
}

// A story as a list entry: a sign, a sentence with links, the version.
export function storyNode(story) {
  const icon = svg("svg", { viewBox: "0 0 24 24", width: 18, height: 18, "aria-hidden": "true" },
    svg("path", { d: ICONS[story.event] ?? ICONS.grow }));
  return el("li", { class: "story", data: { kind: story.event, id: story["event-id"] } },
    el("span", { class: "sign" }, icon),
    el("span", { class: "words" }, ...sentence(story)),
    el("span", { class: "muted version" }, el("span", { class: "hidden" }, "version "), `v${story.version}`));
}

function sentence({ event, cluster, size, from, into }) {
  const itself = clusterLink(cluster);
  const sources = from.filter((id) => id !== cluster);
  const targets = into.filter((id) => id !== cluster);
  switch (event) {
    case "merge": return [itself, " took in ", ...(sources.length ? clusterLinks(sources) : ["others"]), `, now ${plural(size, "item")}`];
    case "split": return [itself, " split", ...(targets.length ? [" into ", ...clusterLinks(into)] : [""]), size ? `, ${plural(size, "item")} stay` : ""];
    case "emerge": return [itself, ` emerged with ${plural(size, "item")}`, ...(sources.length ? [" from ", ...clusterLinks(sources)] : [])];
    case "vanish": return [itself, " ended", ...(targets.length ? [", its items went to ", ...clusterLinks(targets)] : [""])];
    case "grow": return [itself, ` grew to ${plural(size, "item")}`];
    case "shrink": return [itself, ` shrank to ${plural(size, "item")}`];
    default: return [itself, ` ${event}, ${count(size)}`];
  }
}
