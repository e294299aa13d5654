// The collection's summary, asked for every second while the page is seen: what all views show of "now".

import { get, sleep } from "./api.js";

const EVERY_MS = 1000;
const HIDDEN_MS = 15_000;
const KEPT = 180; // samples, three minutes of them
const WINDOW_S = 4; // over which a rate is measured

const listeners = new Set();
export const pulse = {
  summary: null,
  connection: "wait", // wait, live, away (the writer), lost (the API), empty (no store yet)
  problem: null,
  rate: null, // items a second; null: not known yet
  times: [], // seconds since 1970, one a sample
  rates: [],
};
let samples = []; // {s, items}

// Calls `listener` now, if there is something to tell, and after each look; until `signal` aborts.
export function onPulse(listener, signal) {
  listeners.add(listener);
  signal?.addEventListener("abort", () => listeners.delete(listener), { once: true });
  if (pulse.connection !== "wait") listener(pulse);
}

export async function beat() {
  for (;;) {
    await look();
    for (const listener of [...listeners]) listener(pulse);
    await Promise.race([sleep(document.hidden ? HIDDEN_MS : EVERY_MS), shown()]);
  }
}

async function look() {
  try {
    pulse.summary = await get("v1/summary");
    pulse.problem = null;
    pulse.connection = pulse.summary.writer ? "live" : "away";
    measure(pulse.summary);
  } catch (error) {
    pulse.problem = error;
    pulse.connection = error.rest?.type?.endsWith("not-ready") ? "empty" : "lost"; // not: busy
    samples = [];
    pulse.rate = null;
  }
}

// What the writer has taken, updates and deletes too, where it says so; else how the collection grows.
function measure(summary) {
  const now = performance.now() / 1000;
  const taken = summary.writer?.records ?? summary.items;
  if (samples.length && taken < samples.at(-1).taken) samples = [];
  samples.push({ s: now, taken });
  while (samples.length > 2 && samples[1].s <= now - WINDOW_S) samples.shift();
  const first = samples[0];
  pulse.rate = now - first.s >= 0.5 ? (taken - first.taken) / (now - first.s) : null;
  if (pulse.rate === null) return;
  pulse.times.push(Date.now() / 1000);
  pulse.rates.push(pulse.rate);
  if (pulse.times.length > KEPT) {
    pulse.times.shift();
    pulse.rates.shift();
  }
}

function shown() {
  return new Promise((resolve) => {
    if (!document.hidden) return;
    document.addEventListener("visibilitychange", resolve, { once: true });
  });
}
