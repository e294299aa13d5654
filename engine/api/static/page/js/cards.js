// A cluster as a card: a sheet of its members, its name, size and growth.

import { get, query } from "./api.js";
import { clusterPath, el, skeleton } from "./dom.js";
import { plural, signed } from "./format.js";
import { faceOf, tile } from "./faces.js";

const MEMBERS = 8;

// Members are asked for when the card comes near the window. `update(row)` writes new figures.
export function clusterCard(row, signal) {
  const size = el("b", {});
  const growth = el("span", { class: "growth" });
  const name = el("span", { class: "name" }, row.peak ?? "");
  const sheet = el("div", { class: "sheet", "aria-hidden": "true" }, skeleton("tile", MEMBERS));
  const node = el("article", { class: "card cluster-card" }, sheet,
    el("div", { class: "card-words" },
      el("h3", {}, el("a", { href: clusterPath(row.cluster), class: "stretched" }, `Cluster ${row.cluster}`)),
      el("p", { class: "muted name-line" }, name),
      el("p", { class: "figures" }, size, growth)));
  node.update = (now) => {
    size.textContent = plural(now.size, "item");
    growth.textContent = now.growth ? signed(now.growth) : "";
    growth.title = now.growth ? `${signed(now.growth)} members lately` : "";
    growth.dataset.sign = Math.sign(now.growth ?? 0);
  };
  node.update(row);
  const near = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    near.disconnect();
    fill(row, sheet, name, signal);
  }, { rootMargin: "300px" });
  near.observe(node);
  signal.addEventListener("abort", () => near.disconnect(), { once: true });
  return node;
}

async function fill(row, sheet, name, signal) {
  try {
    const { items } = await get(query(`v1/clusters/${row.cluster}/items`, { limit: MEMBERS }), signal);
    const faces = items.map(({ key, payload }) => faceOf(key, payload));
    const peak = faces[Math.max(0, items.findIndex(({ key }) => key === row.peak))];
    if (peak) name.textContent = peak.title;
    if (faces.some((face) => face.image)) sheet.replaceChildren(...items.map(({ key, payload }) => tile(key, payload)));
    else {
      sheet.classList.add("spoken");
      sheet.replaceChildren(...faces.slice(0, 4).map((face) => el("p", {}, face.title)));
    }
  } catch {
    sheet.replaceChildren(); // it may just have ended; the card's link tells where it went
  }
}
