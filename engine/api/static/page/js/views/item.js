// One item: what it is, its path through the hierarchy, and why it is there.

import { get } from "../api.js";
import { clusterLink, el, failure, skeleton } from "../dom.js";
import { count, plural, when } from "../format.js";
import { faceOf, picture } from "../faces.js";
import { explanation } from "../explanation.js";

export function item(root, [key], signal) {
  const title = el("h1", {}, key);
  root.append(title, skeleton("card", 1));
  const show = async () => {
    const address = `v1/items/${encodeURIComponent(key)}`;
    try {
      const found = await get(address, signal);
      const why = el("div", { class: "why" }, skeleton("line", 6));
      root.replaceChildren(head(found), path(found, signal), el("section", { class: "panel", "aria-labelledby": "why-title" },
        el("div", { class: "head" }, el("h2", { id: "why-title" }, "Why it is there")), why));
      document.title = `${root.querySelector("h1").textContent} · Shoal`;
      explain(why, address, signal);
    } catch (error) {
      if (signal.aborted) return;
      root.replaceChildren(title, failure(error, error.status === 404 ? null : show));
    }
  };
  show();
}

function head({ key, payload, time, updated }) {
  const { title, image, text, link } = faceOf(key, payload);
  return el("header", { class: "cluster-head" },
    el("div", { class: "face" }, image && picture(image, "", "large")),
    el("div", {},
      el("h1", {}, title),
      title !== key && el("p", { class: "muted" }, "Key ", el("code", {}, key)),
      text && el("p", { class: "text" }, text),
      link && el("p", {}, el("a", { href: link, rel: "noopener noreferrer nofollow", target: "_blank", class: "out" }, link)),
      el("p", { class: "muted" }, `${when(time)} · vector of version ${count(updated)}`),
      payload !== null && typeof payload === "object" && details(payload)));
}

// The whole payload, as it came.
function details(payload) {
  const text = JSON.stringify(payload, (_, value) => (typeof value === "string" && value.length > 300 ? `${value.slice(0, 300)}…` : value), 2);
  return el("details", {}, el("summary", {}, "Payload"), el("pre", { tabindex: 0 }, text));
}

// From the finest tree up to the final cluster.
function path({ path: ids }, signal) {
  const steps = ids.toReversed().map((cluster, i) => {
    const size = el("span", { class: "muted" });
    get(`v1/clusters/${cluster}`, signal).then((found) => { size.textContent = plural(found.size, "item"); }, () => {});
    const role = i === ids.length - 1 ? "final" : i === 0 ? "finest" : "between";
    return el("li", { class: role }, el("span", { class: "muted" }, role), clusterLink(cluster), size);
  });
  return el("section", { class: "panel", "aria-labelledby": "path-title" },
    el("div", { class: "head" }, el("h2", { id: "path-title" }, "Path")), el("ol", { class: "path" }, ...steps));
}

async function explain(node, address, signal) {
  try {
    node.replaceChildren(...explanation(await get(`${address}/explain`, signal), signal));
  } catch (error) {
    if (!signal.aborted) node.replaceChildren(failure(error, () => explain(node, address, signal)));
  }
}
