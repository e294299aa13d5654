import { el } from "./dom.js";
export function explanation(found) { return [el("pre", { tabindex: 0 }, JSON.stringify(found, null, 1))]; }
