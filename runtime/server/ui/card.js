/** The card of a model's answer: its name, the answer, and what the server says of tokens and time. */

import { count, el, number, styled } from "./dom.js";

const STEPS = [
  ["tokenize", "Read"],
  ["queue", "Queue"],
  ["inference", "Run"],
  ["rest", "Rest"],
];

export function card(name, content, facts) {
  return el(
    "article.card.result",
    { "aria-label": `Answer of ${name}` },
    el("h3", {}, name, " ", el("small", {}, `${facts.engine} · ${facts.precision}`)),
    ...content.flat(),
    factsOf(facts)
  );
}

export function failed(name, error) {
  const said = el("p.problem", {}, error.message);
  return el("article.card.result", { "aria-label": `Answer of ${name}` }, el("h3", {}, name), said);
}

function factsOf(facts) {
  const { timing } = facts;
  const rest = Math.max(0, timing.total - timing.tokenize - timing.queue - timing.inference);
  const times = { ...timing, rest };
  const pieces = STEPS.map(([name]) => styled(el(`i.${name}`), { part: String(times[name] / (timing.total || 1)) }));
  const legend = STEPS.map(([name, title]) =>
    el("li", {}, el(`i.${name}`, { "aria-hidden": "true" }), `${title} `, el("b", {}, milliseconds(times[name])))
  );
  const read = facts.tokens === undefined ? count(facts.used, "token") : `${facts.tokens} in, ${facts.used} used`;
  const told = [
    ["Tokens", read],
    facts.truncated ? ["Cut to max length", count(facts.truncated, "text")] : null,
    ["On the server", milliseconds(timing.total) + (facts.requests > 1 ? ` in ${facts.requests} requests` : "")],
    ["Round trip", milliseconds(facts.roundTrip)],
  ]
    .filter(Boolean)
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  return el(
    "footer.facts",
    {},
    el("dl", {}, ...told),
    el("div.timing", { "aria-hidden": "true" }, ...pieces),
    el("ul.legend", { "aria-label": "Where the time went, of the mean text" }, ...legend)
  );
}

const milliseconds = (value) =>
  value < 1000 ? `${number(value, value < 10 ? 1 : 0)} ms` : `${number(value / 1000, value < 10_000 ? 2 : 1)} s`;
