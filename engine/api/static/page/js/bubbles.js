// The map: a disc for each cluster, as a link. One stop for the Tab key; arrows go from disc to disc.

import { clusterPath, el, safeImage, svg } from "./dom.js";
import { count, plural, share } from "./format.js";
import { picture } from "./faces.js";

const LABEL_MIN = 0.06; // radius from which a disc without a picture carries its number
const COUNT_MIN = 0.085; // radius from which a disc carries its size

const spoken = ({ cluster, title, size }) => `Cluster ${cluster}${title ? `, ${title}` : ""}, ${plural(size, "item")}`;

function label({ cluster, title, radius }) {
  const named = title && radius > 1.8 * LABEL_MIN;
  return el("span", { class: named ? "name" : "name number", "aria-hidden": "true" }, named ? title : `#${cluster}`);
}

export class Bubbles {
  constructor() {
    this.lines = svg("svg", { class: "lines", "aria-hidden": "true", viewBox: "0 0 100 100", preserveAspectRatio: "none" });
    this.tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.field = el("div", { class: "field", role: "group", "aria-label": "Clusters by likeness; arrow keys go from one to the next" }, this.lines);
    this.node = el("div", { class: "map" }, this.field, this.tip);
    this.discs = new Map(); // cluster -> {row, link}
    this.current = null;
    this.field.addEventListener("keydown", (event) => this.#walk(event));
    for (const [on, off] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
      this.field.addEventListener(on, (event) => this.#point(event.target.closest(".disc")));
      this.field.addEventListener(off, () => this.#point(null));
    }
  }

  // Discs that stay move to their new places; others come and go.
  show({ version, clusters }) {
    const seen = new Set(clusters.map((row) => row.cluster));
    for (const [cluster, { link }] of this.discs) {
      if (seen.has(cluster)) continue;
      this.discs.delete(cluster);
      link.classList.add("gone");
      link.tabIndex = -1;
      setTimeout(() => link.remove(), 600);
    }
    for (const row of clusters) {
      const known = this.discs.get(row.cluster);
      const link = known?.link ?? el("a", { class: "disc", href: clusterPath(row.cluster), tabindex: -1 });
      this.#dress(link, row, known?.row, version);
      this.discs.set(row.cluster, { row, link });
      if (!known) this.field.append(link);
    }
    if (!this.discs.has(this.current)) this.#choose(clusters[0]?.cluster ?? null);
  }

  #dress(link, row, before, version) {
    const style = { "--x": (row.x + 1) / 2, "--y": (1 - row.y) / 2, "--r": row.radius };
    for (const [name, value] of Object.entries(style)) link.style.setProperty(name, value);
    link.dataset.cluster = row.cluster;
    link.classList.toggle("fresh", row.changed === version && version > 1);
    link.classList.toggle("born", row.born === version && version > 1);
    if (before && before.peak === row.peak && before.image === row.image && (before.radius >= COUNT_MIN) === (row.radius >= COUNT_MIN)) {
      link.querySelector(".hidden").textContent = spoken(row);
      const size = link.querySelector(".size");
      if (size) size.textContent = count(row.size);
      return;
    }
    const source = safeImage(row.image);
    link.replaceChildren(...[
      source ? picture(source, "", "fill") : row.radius >= LABEL_MIN && label(row),
      el("span", { class: "hidden" }, spoken(row)),
      row.radius >= COUNT_MIN && el("span", { class: "size", "aria-hidden": "true" }, count(row.size)),
    ].filter(Boolean));
  }

  #choose(cluster) {
    const before = this.discs.get(this.current);
    if (before) before.link.tabIndex = -1;
    this.current = cluster;
    const now = this.discs.get(cluster);
    if (now) now.link.tabIndex = 0;
  }

  // To the nearest disc in the arrow's direction, sideways distance counting double.
  #walk(event) {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const from = this.discs.get(this.current)?.row;
    if (!direction || !from) return;
    event.preventDefault();
    const [dx, dy] = direction;
    let best = null;
    for (const { row } of this.discs.values()) {
      const ahead = (row.x - from.x) * dx + (row.y - from.y) * dy;
      const aside = Math.abs((row.x - from.x) * dy) + Math.abs((row.y - from.y) * dx);
      if (row !== from && ahead > 1e-6 && (!best || ahead + 2 * aside < best.cost)) best = { row, cost: ahead + 2 * aside };
    }
    if (!best) return;
    this.#choose(best.row.cluster);
    this.discs.get(best.row.cluster).link.focus();
  }

  // What a disc is, and lines to those it is most like.
  #point(link) {
    this.lines.replaceChildren();
    const found = link && this.discs.get(Number(link.dataset.cluster));
    this.tip.hidden = !found;
    if (!found) return;
    const { row } = found;
    const near = row.near.filter((other) => this.discs.has(other.cluster));
    for (const { cluster } of near) {
      const to = this.discs.get(cluster).row;
      this.lines.append(svg("line", {
        x1: 50 * (row.x + 1), y1: 50 * (1 - row.y), x2: 50 * (to.x + 1), y2: 50 * (1 - to.y), "vector-effect": "non-scaling-stroke",
      }));
    }
    this.tip.replaceChildren(
      el("b", {}, row.title ?? `Cluster ${row.cluster}`),
      el("span", {}, `#${row.cluster} · ${plural(row.size, "item")}`),
      near.length ? el("span", { class: "muted" }, `Most like ${near.map((other) => `#${other.cluster} (${share(other.similarity)})`).join(", ")}`) : "",
    );
    this.tip.style.setProperty("--x", (row.x + 1) / 2);
    this.tip.style.setProperty("--y", (1 - row.y) / 2);
    this.tip.style.setProperty("--r", row.radius);
    this.tip.classList.toggle("below", row.y > 0.3);
    this.tip.classList.toggle("leftward", row.x > 0.2);
    this.tip.classList.toggle("rightward", row.x < -0.2);
  }
}
