/** The server's public JSON routes, and what their headers say: who answered, and where the time went. */

const KEPT = "nopad-key";

/** What went wrong, in the server's words. `status` 0: it did not answer. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEPT));
export const keepKey = (key) => (key ? sessionStorage.setItem(KEPT, key) : sessionStorage.removeItem(KEPT));

/** `path` is relative, so that the page also works below a prefix of a proxy. */
async function request(path, given) {
  const headers = { ...given.headers };
  const key = sessionStorage.getItem(KEPT);
  if (key) headers.authorization = `Bearer ${key}`;
  const started = performance.now();
  let answer;
  try {
    answer = await fetch(path, { ...given, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server does not answer.");
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) {
    const said = body?.error?.message ?? body?.error ?? `the server answered ${answer.status}`;
    throw new Problem(answer.status, String(said));
  }
  return { body, facts: factsOf(answer.headers, performance.now() - started) };
}

export const get = async (path) => (await request(path, {})).body;

export function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

function factsOf(headers, roundTrip) {
  const timing = { tokenize: 0, queue: 0, inference: 0, total: 0 };
  for (const part of (headers.get("server-timing") ?? "").split(",")) {
    const [name, duration] = part.trim().split(";dur=");
    if (name in timing) timing[name] = Number(duration) || 0;
  }
  return {
    engine: headers.get("x-nopad-engine"),
    precision: headers.get("x-nopad-precision"),
    used: Number(headers.get("x-compute-tokens") ?? 0),
    truncated: Number(headers.get("x-nopad-truncated") ?? 0),
    timing,
    roundTrip,
    requests: 1,
  };
}

/** The facts of several requests, one after the other. */
export function added(one, two) {
  if (!one) return two;
  const timing = Object.fromEntries(Object.keys(one.timing).map((name) => [name, one.timing[name] + two.timing[name]]));
  const sums = Object.fromEntries(
    ["used", "truncated", "roundTrip", "requests"].map((name) => [name, one[name] + two[name]])
  );
  return { ...two, ...sums, timing };
}

/** The served models: [{name, task, labels, engine, precision, ready, ...}]. */
export async function models() {
  const state = await get("health/state");
  return {
    status: state.status,
    limits: state.limits,
    models: Object.entries(state.models).map(([name, model]) => ({ name, ...model })),
  };
}
