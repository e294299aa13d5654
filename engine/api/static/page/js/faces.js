// What an item looks like: title, picture, text and link of its payload, all of it untrusted.

import { el, itemPath, safeImage, safeLink } from "./dom.js";

const PIXELS = 64; // a smaller picture is shown pixel by pixel
const SPOKEN = ["title", "name", "headline", "label"];
const TOLD = ["text", "body", "description", "summary", "content"];
const LINKED = ["link", "url", "href"];

const first = (payload, names) => names.map((name) => payload[name]).find((value) => typeof value === "string" && value.trim());

// {title, image, text, link}, each null where the payload has none.
export function faceOf(key, payload) {
  if (typeof payload === "string") return { title: key, image: null, text: payload, link: null };
  const known = payload && typeof payload === "object" && !Array.isArray(payload) ? payload : {};
  return {
    title: first(known, SPOKEN) ?? key,
    image: safeImage(known.image) ?? safeImage(known.thumbnail),
    text: first(known, TOLD) ?? null,
    link: LINKED.map((name) => safeLink(known[name])).find(Boolean) ?? null,
  };
}

export function picture(source, alt, kind = "") {
  const image = el("img", { src: source, alt, class: `picture ${kind}`, loading: kind === "fill" ? "eager" : "lazy", decoding: "async", referrerpolicy: "no-referrer" });
  const crisp = () => {
    if (!image.naturalWidth || image.naturalWidth > PIXELS) return;
    image.classList.add("pixels");
    if (kind === "fill" && source.startsWith("data:")) image.style.backgroundColor = cornerOf(image);
  };
  image.addEventListener("load", crisp);
  image.addEventListener("error", () => image.replaceWith(blank(alt, kind)));
  crisp();
  return image;
}

// The colour in which a small picture goes on where it ends.
function cornerOf(image) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext("2d");
  brush.drawImage(image, 0, 0);
  const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data;
  return alpha < 255 ? "" : `rgb(${red} ${green} ${blue})`;
}

// In place of a picture: the first letter.
export function blank(title, kind = "") {
  return el("span", { class: `picture blank ${kind}`, "aria-hidden": "true" }, [...title.trim()][0]?.toUpperCase() ?? "·");
}

// A member as a card that leads to the item.
export function card(key, payload, note) {
  const { title, image, text, link } = faceOf(key, payload);
  return el("article", { class: "card" },
    image ? picture(image, "") : text ? null : blank(title),
    el("div", { class: "card-words" },
      el("h3", {}, el("a", { href: itemPath(key), class: "stretched" }, title)),
      title !== key && el("p", { class: "key muted" }, key),
      text && el("p", { class: "text" }, text),
      note && el("p", { class: "muted" }, note),
      link && el("a", { href: link, rel: "noopener noreferrer nofollow", target: "_blank", class: "out" }, new URL(link).host, el("span", { class: "hidden" }, " (opens in a new tab)"))));
}

// A member as a small tile.
export function tile(key, payload) {
  const { title, image } = faceOf(key, payload);
  return image ? picture(image, "", "tile") : blank(title, "tile");
}
