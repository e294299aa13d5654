// Nodes from data. Data becomes text nodes and checked attributes, never markup.

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  set(node, properties);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// `on`: listeners by event; `data`: data attributes; `style`: custom properties; the rest are attributes.
function set(node, { on = {}, data = {}, style = {}, ...attributes }) {
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  for (const [name, value] of Object.entries(data)) node.dataset[name] = value;
  for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
}

// A link of a payload: http and https only, so that no script hides behind it.
export function safeLink(value) {
  return typeof value === "string" && /^https?:\/\//i.test(value) && URL.canParse(value) ? value : null;
}

// A picture of a payload: http, https, or bitmap data. SVG data stays out: it may carry what we cannot see.
export function safeImage(value) {
  if (typeof value !== "string") return null;
  return /^data:image\/(png|jpe?g|gif|webp|avif|bmp)[;,]/i.test(value) ? value : safeLink(value);
}

export const clusterPath = (cluster) => `#/clusters/${cluster}`;
export const itemPath = (key) => `#/items/${encodeURIComponent(key)}`;

export function clusterLink(cluster, ...words) {
  return el("a", { href: clusterPath(cluster), class: "cluster-link" }, ...(words.length ? words : [`#${cluster}`]));
}

// Several as a sentence would have them: #1, #2 and #3.
export function clusterLinks(clusters, most = 5) {
  const shown = clusters.slice(0, most).map((cluster) => clusterLink(cluster));
  const rest = clusters.length - shown.length;
  if (rest > 0) shown.push(`${rest} more`);
  return shown.flatMap((link, i) => (i === 0 ? [link] : [i === shown.length - 1 ? " and " : ", ", link]));
}

// Tells a screen reader's user, and everybody else's eyes, that something is coming.
export const skeleton = (kind, count = 1) =>
  el("div", { class: `skeleton ${kind}`, "aria-hidden": "true" }, ...Array.from({ length: count }, () => el("i")));

export const empty = (title, ...words) => el("div", { class: "empty" }, el("h2", {}, title), el("p", {}, ...words));

export function failure(error, retry) {
  const again = retry && el("button", { type: "button", on: { click: retry } }, "Try again");
  return el("div", { class: "empty failed", role: "alert" },
    el("h2", {}, error.title ?? "That did not work"), el("p", {}, error.message), error.advice && el("p", { class: "muted" }, error.advice), again);
}
