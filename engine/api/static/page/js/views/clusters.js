// All clusters as cards: by size, by growth, or the newest first; a page at a time.

import { get, query } from "../api.js";
import { clusterCard } from "../cards.js";
import { el, empty, failure, skeleton } from "../dom.js";
import { duration, plural } from "../format.js";
import { onPulse } from "../pulse.js";
import { zoom } from "../zoom.js";

const PAGE = 24;
const ORDERS = { size: "Largest", growth: "Growing", newest: "Newest" };

export function clusters(root, [order = "size"], signal) {
  const total = el("p", { class: "muted" });
  const grid = el("div", { class: "grid" }, skeleton("card", 8));
  const more = el("button", { type: "button", class: "more", hidden: true }, "Show more");
  const fresh = el("button", { type: "button", class: "fresh-note", hidden: true }, "There is a new version: show it");
  root.append(
    el("div", { class: "head" }, el("h1", {}, "Clusters"), tabs(order)), zoom(null, signal),
    total, fresh, grid, more);

  let cursor = null;
  let version = null;
  const load = async () => {
    more.disabled = true;
    try {
      const page = await get(query("v1/clusters", { order, limit: PAGE, cursor }), signal);
      if (cursor === null) {
        version = page.version;
        grid.replaceChildren();
        fresh.hidden = true;
      }
      grid.append(...page.clusters.map((row) => clusterCard(row, signal)));
      if (!grid.children.length) grid.append(nothing(order));
      total.textContent = order === "growth" ? windowOf(page.window) : total.textContent;
      cursor = page.cursor;
      more.hidden = cursor === null;
    } catch (error) {
      if (signal.aborted) return;
      more.hidden = true;
      const told = failure(error, () => { told.remove(); load(); });
      if (cursor === null) grid.replaceChildren();
      grid.after(told);
    }
    more.disabled = false;
  };
  more.addEventListener("click", load);
  fresh.addEventListener("click", () => { cursor = null; load(); });
  onPulse(({ summary }) => {
    if (!summary) return;
    if (order !== "growth") total.textContent = `${plural(summary.clusters, "cluster")} of ${plural(summary.items, "item")}`;
    if (version !== null && summary.version > version) fresh.hidden = false;
  }, signal);
  load();
}

function tabs(order) {
  return el("nav", { class: "tabs", "aria-label": "Order" }, ...Object.entries(ORDERS).map(([name, label]) =>
    el("a", { href: name === "size" ? "#/clusters" : `#/clusters/by/${name}`, "aria-current": name === order ? "page" : null }, label)));
}

const windowOf = ({ seconds }) => (seconds ? `Members gained less members lost over the last ${duration(seconds)} of input` : "");

function nothing(order) {
  return order === "growth"
    ? empty("Nothing has grown lately", "No cluster gained or lost members in the window that growth is counted over.")
    : empty("No clusters yet", "They appear as soon as items come in.");
}
