// One cluster: what it holds, what it is part of, its past, and where it went if it ended.

import { get, query } from "../api.js";
import { chart } from "../chart.js";
import { clusterLink, clusterLinks, el, failure, itemPath, skeleton } from "../dom.js";
import { count, plural, short, signed, when } from "../format.js";
import { card, faceOf, picture } from "../faces.js";
import { onPulse } from "../pulse.js";
import { storyNode } from "../stories.js";

const PAGE = 48;

export function cluster(root, [id], signal) {
  const title = el("h1", {}, `Cluster ${id}`);
  const facts = el("div", { class: "facts" }, skeleton("line", 2));
  const members = el("div", { class: "grid members" }, skeleton("card", 8));
  const more = el("button", { type: "button", class: "more", hidden: true }, "Show more");
  const past = el("div", { class: "past" });
  const face = el("div", { class: "face" });
  root.append(
    el("header", { class: "cluster-head" }, face, el("div", {}, title, facts)),
    past,
    el("section", { "aria-labelledby": "members-title" }, el("div", { class: "head" }, el("h2", { id: "members-title" }, "Members")), members, more));

  let version = 0;
  const describe = async () => {
    try {
      const found = await get(`v1/clusters/${id}`, signal);
      const first = version === 0;
      version = found.version;
      facts.replaceChildren(...factsOf(found));
      past.replaceChildren(...pastOf(found, signal));
      if (found.peak && first) showFace(found.peak);
      if (found.ended) {
        members.replaceChildren();
        members.parentElement.hidden = true;
      }
      return found;
    } catch (error) {
      if (signal.aborted) return null;
      if (version === 0) root.replaceChildren(title, failure(error, error.status === 404 ? null : () => location.reload()));
      return null;
    }
  };
  const showFace = async (peak) => {
    const found = await get(`v1/items/${encodeURIComponent(peak)}`, signal).catch(() => null);
    if (!found) return;
    const { image, title: name } = faceOf(peak, found.payload);
    face.replaceChildren(...(image ? [picture(image, "", "large")] : []));
    title.replaceChildren(`Cluster ${id}`, ...(name ? [el("small", { class: "muted" }, name)] : []));
  };

  let cursor = null;
  const load = async () => {
    more.disabled = true;
    try {
      const page = await get(query(`v1/clusters/${id}/items`, { limit: PAGE, cursor }), signal);
      if (cursor === null) members.replaceChildren();
      members.append(...page.items.map(({ key, payload, time }) => card(key, payload, when(time))));
      cursor = page.cursor;
      more.hidden = cursor === null;
    } catch (error) {
      if (signal.aborted || error.status === 404) return;
      more.hidden = true;
      const told = failure(error, () => { told.remove(); load(); });
      if (cursor === null) members.replaceChildren();
      members.after(told);
    }
    more.disabled = false;
  };
  more.addEventListener("click", load);
  describe().then((found) => found && !found.ended && load());
  onPulse(({ summary }) => { if (summary && version && summary.version > version) describe(); }, signal);
}

function factsOf(found) {
  const facts = [];
  const fact = (label, ...words) => facts.push(el("p", {}, el("span", { class: "muted" }, `${label} `), ...words));
  if (found.ended) {
    facts.push(el("p", { class: "ended" }, `This cluster ended in version ${count(found.ended)}. `,
      ...(found.into.length ? ["Its items went to ", ...clusterLinks(found.into), ". "] : ["Its items were deleted. "]),
      ...(found.now.length && String(found.now) !== String(found.into) ? ["By now they are in ", ...clusterLinks(found.now), "."] : [])));
    fact("Born in", `version ${count(found.born)}`);
    return facts;
  }
  const grown = found.growth ? el("b", { class: "growth", "data-sign": Math.sign(found.growth) }, ` ${signed(found.growth)} lately`) : null;
  facts.push(el("p", { class: "big" }, el("b", {}, count(found.size)), found.size === 1 ? " item" : " items", grown));
  if (found.peak) fact("Densest item", el("a", { href: itemPath(found.peak) }, found.peak));
  if (found.parent) fact("Part of", clusterLink(found.parent));
  if (found.children.length) fact(plural(found.children.length, "finer cluster"), ...clusterLinks(found.children, 8));
  fact("Born in", `version ${count(found.born)}`, el("span", { class: "muted" }, ", changed in "), `version ${count(found.changed)}`);
  fact("Levels", found.finest === found.coarsest ? String(found.finest) : `${found.finest} to ${found.coarsest}`);
  return facts;
}

// Sizes are told of at events; between them the line is level.
function pastOf(found, signal) {
  if (!found.history.length) return [];
  const own = found.history.filter((event) => event.cluster === found.cluster);
  const list = el("ol", { class: "stories" }, ...found.history.toReversed().map(storyNode));
  const parts = [el("section", { class: "panel", "aria-labelledby": "past-title" },
    el("div", { class: "head" }, el("h2", { id: "past-title" }, "History")), list)];
  if (own.length > 1) {
    const plot = chart(200, signal, { label: `Size by version, now ${found.size}`, format: short, stepped: true, axes: true, time: false });
    parts.unshift(el("section", { class: "panel", "aria-labelledby": "size-title" },
      el("div", { class: "head" }, el("h2", { id: "size-title" }, "Size by version")), plot.node));
    plot.show([...own.map((event) => event.version), found.version], [...own.map((event) => event.size), found.size]);
  }
  return parts;
}
