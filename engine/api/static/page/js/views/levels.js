// The clusters of another level than the final one: finer groups, themes, or what one theme is made of.

import { get, query } from "../api.js";
import { clusterCard } from "../cards.js";
import { el, empty, failure, skeleton } from "../dom.js";
import { count, plural } from "../format.js";
import { onPulse } from "../pulse.js";
import { levelPath, zoom } from "../zoom.js";

const PAGE = 24;

export function levels(root, [level, theme], signal) {
  const themed = level.startsWith("+");
  const words = theme ? `Theme ${theme}` : themed ? "Themes" : "Finer groups";
  const told = el("p", { class: "muted" }, themed && !theme ? "Clusters that belong together in a wider sense." : "");
  const grid = el("div", { class: "grid" }, skeleton("card", 8));
  const more = el("button", { type: "button", class: "more", hidden: true }, "Show more");
  const fresh = el("button", { type: "button", class: "fresh-note", hidden: true }, "There is a new version: show it");
  root.append(el("div", { class: "head" }, el("h1", {}, words)), zoom(level, signal), told, fresh, grid, more);

  let page = null; // the one shown last
  const next = theme ? partsOf(level, theme, signal) : async (cursor) => get(query("v1/clusters", { level, limit: PAGE, cursor }), signal);
  const load = async (cursor) => {
    more.disabled = true;
    try {
      page = await next(cursor);
      if (cursor === null) {
        grid.replaceChildren();
        fresh.hidden = true;
      }
      grid.append(...page.clusters.map((row) => cardOf(row, page.level ?? level, signal)));
      if (page.told) told.textContent = page.told;
      if (!grid.children.length) grid.append(empty("No clusters yet", "They appear as soon as items come in."));
      more.hidden = page.cursor === null;
    } catch (error) {
      if (signal.aborted) return;
      more.hidden = true;
      const failed = failure(error, () => { failed.remove(); load(cursor); });
      if (cursor === null) grid.replaceChildren();
      grid.after(failed);
    }
    more.disabled = false;
  };
  more.addEventListener("click", () => load(page.cursor));
  fresh.addEventListener("click", () => load(null));
  onPulse(({ summary }) => { if (summary && page && summary.version > page.version) fresh.hidden = false; }, signal);
  load(null);
}

// Pages of a theme's clusters or narrower themes, the largest first.
function partsOf(level, theme, signal) {
  const below = level === "+1" ? null : `+${level.slice(1) - 1}`;
  return async (cursor) => {
    const found = await get(query(`v1/clusters/${theme}`, { level }), signal);
    const from = cursor ?? 0;
    const wanted = found.children.slice(from, from + PAGE);
    const clusters = await Promise.all(wanted.map((part) => get(query(`v1/clusters/${part}`, { level: below }), signal)));
    return {
      version: found.version, level: below ?? "", clusters,
      cursor: from + PAGE < found.children.length ? from + PAGE : null,
      told: `${plural(found.size, "item")} in ${plural(found.clusters, "cluster")}`,
    };
  };
}

// A theme shows the members of its largest cluster, and leads to what it is made of.
function cardOf(row, level, signal) {
  if (!level.startsWith("+")) return clusterCard(row, signal);
  const shown = { ...row, growth: null, cluster: row.largest[0] };
  const card = clusterCard(shown, signal);
  const link = card.querySelector("a.stretched");
  link.href = `${levelPath(level)}/of/${row.cluster}`;
  link.textContent = `Theme ${row.cluster}`;
  card.querySelector(".figures").append(el("span", { class: "muted" }, row.clusters === 1 ? "one cluster" : `${count(row.clusters)} clusters`));
  return card;
}
