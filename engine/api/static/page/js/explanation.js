// Why an item is where it is: level by level the links it follows, and the best one that it did not.

import { get } from "./api.js";
import { clusterLink, el, itemPath } from "./dom.js";
import { count, plural, share } from "./format.js";
import { blank, faceOf, picture } from "./faces.js";

const SHOWN = 9; // nodes of a chain; the last one always is
const NOT_FOLLOWED = { "below-tau": "not probable enough", "lower-density": "less dense" };
const VERDICTS = { parent: "followed", "less-probable": "another is more probable", ...NOT_FOLLOWED };

export function explanation(found, signal) {
  const faces = new Faces(signal);
  return [
    el("p", {}, ...summary(found)),
    ...found.levels.map((level, i) => levelNode(level, i, faces)),
    el("details", { class: "rule" }, el("summary", {}, "How to read this"), el("p", { class: "muted" },
      `An item links to the neighbour it most probably belongs with, among those that lie in a denser region, if that probability `,
      `exceeds the level's τ. Links lead uphill to a peak; all that reach one peak are a cluster. The peaks are the next level's items.`)),
  ];
}

function summary({ levels, cluster }) {
  const last = levels.at(-1);
  const links = levels.reduce((sum, level) => sum + level.chain_links, 0);
  if (links === 0 && last.size > 1) return ["It is the peak of ", clusterLink(cluster), ": others lead to it, and it links to nothing."];
  if (links === 0) return ["It links to nothing, so it stands for itself: ", clusterLink(cluster), "."];
  return [`It reaches the peak of `, clusterLink(cluster), ", ", itemLink(last.chain.at(-1).key), `, by ${plural(links, "link")} over ${plural(levels.length, "level")}.`];
}

function levelNode(level, i, faces) {
  const what = level.level === 0 ? "items" : `groups, each by its peak`;
  return el("section", { class: "level" },
    el("h3", {}, `Level ${level.level}`, el("span", { class: "muted" }, ` ${what}, τ = ${share(level.tau)}`)),
    level.chain_links ? chain(level, faces) : el("p", { class: "peak-line" }, faces.of(level.key), el("span", {}, itemLink(level.key),
      ` is a peak here: ${level.neighbors.length ? "it follows no link" : "it has no neighbours"}.`)),
    level.refused && refused(level, level.tau),
    level.neighbors.length > 0 && el("details", {}, el("summary", {}, plural(level.neighbors.length, "neighbour")), table(level)));
}

// Node by node, each arrow with its probability.
function chain({ chain: nodes, chain_links: links }, faces) {
  const first = nodes.length > SHOWN ? nodes.slice(0, SHOWN - 1) : nodes.slice(0, -1);
  const skipped = links - first.length;
  const steps = first.map((node) => el("li", {}, nodeOf(node, faces), arrow(node.linkage)));
  if (skipped > 0) steps.push(el("li", { class: "skipped muted" }, `${count(skipped)} more`, arrow(null)));
  return el("ol", { class: "chain", tabindex: 0, role: "list", "aria-label": "Links to the peak" }, ...steps, el("li", { class: "peak" }, nodeOf(nodes.at(-1), faces)));
}

function nodeOf({ key, size, density }, faces) {
  return el("div", { class: "node" }, faces.of(key), itemLink(key),
    el("span", { class: "muted" }, `density ${density.toFixed(3)}`), size > 1 && el("span", { class: "muted" }, plural(size, "item")));
}

const arrow = (linkage) => el("span", { class: "arrow" }, el("span", {}, linkage === null ? "" : `p ${share(linkage)}`), el("i", { "aria-hidden": "true" }));

function refused({ refused: other, density }, tau) {
  const reason = other.verdict === "below-tau"
    ? `p ${share(other.linkage)} does not exceed τ = ${share(tau)}`
    : `links lead uphill only, and it is less dense (${other.density.toFixed(3)}, not above ${density.toFixed(3)})`;
  const p = other.verdict === "below-tau" ? "" : ` at p ${share(other.linkage)}`;
  return el("p", { class: "refused-line" }, el("b", {}, "Not followed: "), itemLink(other.key), ` of `, clusterLink(other.cluster), `${p}, for ${reason}.`);
}

function table({ neighbors }) {
  const head = ["Neighbour", "Cluster", "Similarity", "Probability", "Density", ""];
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Neighbours" }, el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((name) => el(name ? "th" : "td", name ? { scope: "col" } : {}, name)))),
    el("tbody", {}, ...neighbors.map((row) => el("tr", { class: row.verdict === "parent" ? "followed" : "" },
      el("th", { scope: "row" }, itemLink(row.key)),
      el("td", {}, clusterLink(row.cluster)),
      el("td", {}, row.similarity.toFixed(3)),
      el("td", {}, meter(row.linkage), share(row.linkage)),
      el("td", {}, row.density.toFixed(3)),
      el("td", {}, VERDICTS[row.verdict] ?? row.verdict))))));
}

const meter = (p) => el("span", { class: "meter", "aria-hidden": "true", style: { "--p": p } });
const itemLink = (key) => el("a", { href: itemPath(key) }, key);

// Pictures of the items that are named, each asked for once.
class Faces {
  constructor(signal) {
    this.signal = signal;
    this.known = new Map();
  }

  of(key) {
    const place = blank(key, "small");
    if (!this.known.has(key)) this.known.set(key, get(`v1/items/${encodeURIComponent(key)}`, this.signal).catch(() => null));
    this.known.get(key).then((found) => {
      const { image } = faceOf(key, found?.payload);
      if (image) place.replaceWith(picture(image, "", "small"));
    });
    return place;
  }
}
