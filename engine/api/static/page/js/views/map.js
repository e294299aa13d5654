// The map alone, as large as the window.

import { el, skeleton } from "../dom.js";
import { count } from "../format.js";
import { keepMap } from "./live.js";

export function map(root, parameters, signal) {
  const holder = el("div", { class: "holder large" }, skeleton("map"));
  const told = el("p", { class: "muted" }, "Near each other: alike. Area: items. A ring: changed in the newest version.");
  root.append(el("div", { class: "head" }, el("h1", {}, "Map")), told, el("section", { class: "panel map-panel", "aria-label": "Map of the clusters" }, holder));
  keepMap(holder, signal, ({ clusters, version, total }) => {
    const part = total > clusters.length ? `The ${count(clusters.length)} largest of ${count(total)} clusters` : `All ${count(total)} clusters`;
    told.textContent = `${part}, version ${count(version)}. Near each other: alike. Area: items. A ring: changed in the newest version.`;
  });
}
