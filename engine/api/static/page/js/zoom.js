// From the finest level to the widest themes, as links. Final clusters are the level where names and events are.

import { get } from "./api.js";
import { el } from "./dom.js";

const THEMES = ["Themes", "Wider themes"];

export const levelPath = (level) => (level === null ? "#/clusters" : `#/clusters/at/${level}`);

// [{level, label}], finest first; the final clusters' level is null.
export async function levelsOf(signal) {
  const { levels, coarser } = await get("v1/levels", signal);
  const finer = levels.slice(0, -1).map(({ level }) => ({ level: String(level), label: level === 0 ? "Finest" : `Level ${level}` }));
  const themes = coarser.map(({ level }, i) => ({ level, label: THEMES[i] ?? `Themes ${level}` }));
  return [...finer, { level: null, label: "Clusters" }, ...themes];
}

// Fills itself; without other levels, or without an answer, it stays out of the way.
export function zoom(current, signal) {
  const node = el("nav", { class: "tabs zoom", "aria-label": "Zoom, from the finest groups to the widest", hidden: true });
  levelsOf(signal).then((levels) => {
    node.append(...levels.map(({ level, label }) =>
      el("a", { href: levelPath(level), "aria-current": level === current ? "page" : null }, label)));
    node.hidden = levels.length < 2;
  }, () => {});
  return node;
}
