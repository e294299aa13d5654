// The HTTP API: JSON with problems as errors, the API key, and streams that resume.

const KEY = "shoal-key";
let asking = null;

export class Problem extends Error {
  constructor(status, { title, detail, do: advice, ...rest } = {}) {
    super(detail ?? "The daemon cannot be reached.");
    this.status = status;
    this.title = title ?? "No answer";
    this.advice = advice;
    this.rest = rest;
  }
}

// A daemon that is busy is asked again, twice; a missing key is asked of the reader of this page.
export async function get(path, signal, attempt = 0) {
  const answer = await send(path, { accept: "application/json" }, signal);
  if (answer.ok) return answer.json();
  const problem = await problemOf(answer);
  if (answer.status === 503 && attempt < 2) {
    await sleep(1000 * Number(answer.headers.get("retry-after") ?? 1), signal);
    return get(path, signal, attempt + 1);
  }
  throw problem;
}

// `path(cursor)` names the stream from an event on. Yields {cursor, data}; ends with `signal`, not before.
export async function* follow(path, cursor, signal, onState = () => {}) {
  for (let wait = 500; !signal.aborted; wait = Math.min(2 * wait, 15_000)) {
    try {
      const headers = { accept: "text/event-stream", ...(cursor && { "last-event-id": cursor }) };
      const answer = await send(path, headers, signal);
      if (!answer.ok) throw await problemOf(answer);
      onState(true);
      for await (const event of events(answer.body)) {
        wait = 500;
        cursor = event.id ?? cursor;
        if (event.data) yield { cursor, kind: event.event, data: JSON.parse(event.data) };
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 410) cursor = error.rest.cursor ?? null;
      else if (error.status && error.status < 500) throw error;
    }
    onState(false);
    await sleep(wait, signal).catch(() => {});
  }
}

export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

export const query = (path, parameters) => {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
};

async function send(path, headers, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let answer;
    try {
      answer = await fetch(path, {
        headers: { ...headers, ...(key && { authorization: `Bearer ${key}` }) },
        credentials: "omit", // else the browser puts up a prompt of its own
        signal,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Problem(0);
    }
    if (answer.status !== 401) return answer;
    if (sessionStorage.getItem(KEY) === key) await askForKey(key !== null);
  }
}

async function problemOf(answer) {
  const body = await answer.json().catch(() => ({}));
  return new Problem(answer.status, { detail: `The daemon answered with status ${answer.status}.`, title: "That did not work", ...body });
}

// One prompt, however many requests wait for it.
function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const field = document.getElementById("key-value");
    document.getElementById("key-refused").hidden = !refused;
    field.value = "";
    const done = () => {
      const key = field.value.trim();
      if (!/^[!-~]+$/.test(key)) { // a header holds no other characters
        document.getElementById("key-refused").hidden = !key;
        dialog.showModal();
        return;
      }
      dialog.removeEventListener("close", done);
      sessionStorage.setItem(KEY, key);
      asking = null;
      resolve();
    };
    dialog.addEventListener("close", done);
    dialog.showModal();
  });
  return asking;
}

// The events of a stream, as the HTML standard cuts them.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { data: "" };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data || event.id) yield event;
        event = { data: "" };
      } else if (!line.startsWith(":")) {
        const [, field, text] = /^([^:]*):? ?(.*)$/.exec(line);
        event[field] = field === "data" && event.data ? `${event.data}\n${text}` : text;
      }
    }
  }
}
