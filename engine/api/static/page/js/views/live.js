// The first view: what comes in, the map, what happens, which clusters grow.

import { get, query, sleep } from "../api.js";
import { Bubbles } from "../bubbles.js";
import { chart } from "../chart.js";
import { clusterCard } from "../cards.js";
import { el, empty, failure, skeleton } from "../dom.js";
import { ago, count, duration, rate, short } from "../format.js";
import { onPulse } from "../pulse.js";
import { onStories, storyNode } from "../stories.js";

const STORIES = 14;
const GROWING = 6;
// What else happens is among the changes; an item by itself is no story here.
const isTold = ({ event, size }) => event === "merge" || event === "split" || (event === "emerge" && size > 1);
const MAP_MS = 2500;
const GROWING_MS = 5000;

export function live(root, parameters, signal) {
  root.append(
    el("h1", { class: "hidden" }, "Live"),
    numbers(signal),
    el("div", { class: "columns" },
      el("section", { class: "panel map-panel", "aria-labelledby": "map-title" },
        el("div", { class: "head" }, el("h2", { id: "map-title" }, "Clusters by likeness"), el("a", { href: "#/map" }, "Larger map")),
        mapOf(signal)),
      el("section", { class: "panel feed-panel", "aria-labelledby": "feed-title" },
        el("div", { class: "head" }, el("h2", { id: "feed-title" }, "Merges, splits, births"), el("a", { href: "#/changes" }, "All changes")),
        feedOf(signal))),
    growing(signal));
}

function numbers(signal) {
  const fields = {};
  const number = (name, label) => {
    fields[name] = el("dd", {}, "–");
    return el("div", { class: `number ${name}` }, el("dt", {}, label), fields[name]);
  };
  const pace = chart(56, signal, { label: "Items a second over the last three minutes", format: rate });
  const list = el("dl", { class: "numbers" },
    number("items", "Items"), number("clusters", "Clusters"), number("levels", "Levels"),
    number("version", "Version"), number("latest", "Latest change"), number("lag", "Waiting to be read"),
    number("latency", "A batch takes"));
  fields.rate = el("b", {}, "–");
  onPulse(({ summary, rate: now, times, rates }) => {
    if (!summary) return;
    write(fields.items, short(summary.items), count(summary.items));
    write(fields.clusters, short(summary.clusters), count(summary.clusters));
    write(fields.levels, count(summary.levels));
    write(fields.version, count(summary.version));
    write(fields.latest, summary.version ? ago((Date.now() - summary.time) / 1000) : "–");
    write(fields.lag, lagOf(summary.writer));
    write(fields.latency, summary.writer?.batch_s ? duration(summary.writer.batch_s) : "–");
    write(fields.rate, rate(now));
    pace.show(times, rates);
  }, signal);
  return el("section", { class: "panel strip", "aria-label": "Now" }, list,
    el("div", { class: "pace" }, el("p", {}, fields.rate, el("span", { class: "muted" }, " items a second")), pace.node));
}

function lagOf(writer) {
  if (!writer) return "–";
  const { lag_records: records, oldest_unread_s: age } = writer;
  if (!records) return "nothing";
  return age ? `${short(records)} · ${duration(age)}` : short(records);
}

function write(node, text, full) {
  if (node.textContent !== text) node.textContent = text;
  if (full && full !== text) node.title = full;
}

// Asked for again when there is a new version, now and then.
function mapOf(signal) {
  const holder = el("div", { class: "holder" }, skeleton("map"));
  keepMap(holder, signal);
  return holder;
}

export async function keepMap(holder, signal, onAnswer = () => {}) {
  const bubbles = new Bubbles();
  let shown = -1;
  let news = null;
  onPulse(({ summary }) => { if (summary && summary.version !== shown) news?.(); }, signal);
  while (!signal.aborted) {
    try {
      const answer = await get("v1/map", signal);
      shown = answer.version;
      if (answer.clusters.length === 0) holder.replaceChildren(nothing());
      else {
        if (!bubbles.node.isConnected) holder.replaceChildren(bubbles.node);
        bubbles.show(answer);
      }
      onAnswer(answer);
    } catch (error) {
      if (signal.aborted) return;
      if (!bubbles.node.isConnected) holder.replaceChildren(error.status === 503 ? nothing() : failure(error));
      shown = -1;
    }
    await sleep(MAP_MS, signal).catch(() => {});
    await new Promise((resolve) => { news = resolve; signal.addEventListener("abort", resolve, { once: true }); });
  }
}

const nothing = () => empty("Nothing here yet",
  "Clusters appear as soon as items come in. Feed the daemon's source, or start ", el("code", {}, "shoal demo"), " to see how it looks.");

function feedOf(signal) {
  const list = el("ol", { class: "stories", "aria-label": "Newest first" }, el("li", {}, skeleton("line", 8)));
  onStories((feed, fresh) => {
    if (!feed.ready) {
      if (feed.problem && !feed.stories.length && feed.problem.status !== 503) list.replaceChildren(el("li", {}, failure(feed.problem)));
      return;
    }
    const stories = feed.stories.filter(isTold);
    const news = fresh.filter(isTold);
    if (!stories.length) {
      list.replaceChildren(el("li", { class: "muted" }, "No cluster has been born, merged or split yet."));
      return;
    }
    const known = list.querySelector(".story");
    if (known && news.length && news.length < STORIES) {
      list.prepend(...news.map((story) => fade(storyNode(story))));
      while (list.children.length > STORIES) list.lastElementChild.remove();
    } else if (!known || news.length) list.replaceChildren(...stories.slice(0, STORIES).map(storyNode));
  }, signal);
  return list;
}

function fade(node) {
  node.classList.add("enter");
  return node;
}

function growing(signal) {
  const grid = el("div", { class: "grid" }, skeleton("card", GROWING));
  const title = el("h2", { id: "growing-title" }, "Growing fastest");
  const section = el("section", { class: "growing", "aria-labelledby": "growing-title" },
    el("div", { class: "head" }, title, el("a", { href: "#/clusters" }, "All clusters")), grid);
  refresh(grid, title, signal);
  return section;
}

async function refresh(grid, title, signal) {
  let told = "";
  while (!signal.aborted) {
    try {
      const { clusters: rows, order } = await fastest(signal);
      title.textContent = order === "growth" ? "Growing fastest" : "Largest";
      const now = rows.map((row) => `${row.cluster}:${row.peak}`).join();
      if (now !== told) grid.replaceChildren(...rows.map((row) => clusterCard(row, signal)));
      else rows.forEach((row, i) => grid.children[i]?.update(row));
      told = now;
      grid.parentElement.hidden = rows.length === 0;
    } catch (error) {
      if (signal.aborted) return;
      if (!told) grid.parentElement.hidden = true;
    }
    await sleep(GROWING_MS, signal).catch(() => {});
  }
}

// Where nothing grew lately, the largest.
async function fastest(signal) {
  for (const order of ["growth", "size"]) {
    const page = await get(query("v1/clusters", { order, limit: GROWING }), signal).catch((error) => {
      if (error.status === 503 && order === "growth") return { clusters: [] };
      throw error;
    });
    const clusters = order === "growth" ? page.clusters.filter((row) => row.growth > 0) : page.clusters;
    if (clusters.length) return { clusters, order };
  }
  return { clusters: [], order: "size" };
}
