// The live feed of what happens to clusters, all of it or one kind.

import { el, empty, failure, skeleton } from "../dom.js";
import { KINDS, onStories, storyNode } from "../stories.js";

const NAMES = { merge: "Merges", split: "Splits", emerge: "Births", vanish: "Ends", grow: "Growth", shrink: "Shrinking" };
const SHOWN = 200;

export function changes(root, [kind], signal) {
  const list = el("ol", { class: "stories long", "aria-label": "Newest first" }, el("li", {}, skeleton("line", 12)));
  const state = el("p", { class: "muted" }, "Reading the log");
  const kinds = el("nav", { class: "tabs", "aria-label": "Kind" },
    el("a", { href: "#/changes", "aria-current": kind ? null : "page" }, "All"),
    ...KINDS.map((name) => el("a", { href: `#/changes/of/${name}`, "aria-current": name === kind ? "page" : null }, NAMES[name])));
  root.append(el("div", { class: "head" }, el("h1", {}, "Changes"), kinds), state, el("section", { class: "panel", "aria-label": "Feed" }, list));

  const wanted = (story) => !kind || story.event === kind;
  let drawn = false;
  onStories((feed, fresh) => {
    if (!feed.ready) {
      if (feed.problem && feed.problem.status !== 503) list.replaceChildren(el("li", {}, failure(feed.problem)));
      return;
    }
    state.textContent = feed.following ? "New ones appear at the top as they happen." : "The stream is interrupted; it goes on where it stopped.";
    if (drawn && !fresh.length) return;
    if (drawn && list.querySelector(".story")) {
      const nodes = fresh.filter(wanted).map(storyNode);
      for (const node of nodes) node.classList.add("enter");
      list.prepend(...nodes);
      while (list.children.length > SHOWN) list.lastElementChild.remove();
    } else {
      const stories = feed.stories.filter(wanted).slice(0, SHOWN);
      list.replaceChildren(...(stories.length ? stories.map(storyNode)
        : [el("li", {}, empty("Nothing of this kind lately", "It will appear here when it happens."))]));
    }
    drawn = true;
  }, signal);
}
