/** Why a label: /v1/explain, as a marked text and a list of the strongest parts. */

import { post } from "./api.js";
import { bar, count, el, marked, number, options, signed, styled } from "./dom.js";

const LISTED = 5;
const METHODS = [
  { value: "occlusion", text: "Occlusion" },
  { value: "shapley", text: "Shapley values" },
  { value: "integrated-gradients", text: "Integrated gradients", gradients: true },
  { value: "gradient-x-input", text: "Gradient × input", gradients: true },
];
const UNITS = [
  { value: "word", text: "Words" },
  { value: "sentence", text: "Sentences" },
  { value: "token", text: "Tokens" },
];

/** Fills the choices for these models; methods that none of their engines has cannot be chosen. */
export function offerMethods(selects, models) {
  const gradients = models.some((model) => model.engine === "torch");
  const methods = METHODS.map((method) => ({
    ...method,
    text: method.gradients && !gradients ? `${method.text} (torch engine only)` : method.text,
    disabled: Boolean(method.gradients && !gradients),
  }));
  const keep = (select, choices) => {
    const chosen = choices.find(({ value, disabled }) => value === select.value && !disabled) ?? choices[0];
    options(select, choices, chosen.value);
  };
  keep(selects.method, methods);
  keep(selects.unit, UNITS);
  const labels = models[0].labels.map((label) => ({ value: label }));
  keep(selects.label, [{ value: "", text: "The answer's own" }, ...labels]);
}

export async function explained(model, input, asked, signal) {
  const { method, unit, label } = asked;
  const { body, facts } = await post("v1/explain", { model, input, method, unit, label: label || null }, signal);
  return { found: body.data[0], facts };
}

/** `parts`: the text, or both of a pair. */
export function showExplanation(name, parts, found, facts) {
  const largest = Math.max(...found.attributions.map(({ score }) => Math.abs(score))) || 1;
  const mark = ({ score }, text) =>
    styled(el(`mark.${score < 0 ? "against" : "for"}`, { title: signed(score) }, text), {
      strength: (Math.abs(score) / largest).toFixed(3),
    });
  const texts = parts.map((text, part) =>
    marked(text, found.attributions.filter((each) => (each.part ?? 0) === part), mark)
  );
  const ranked = [...found.attributions].sort((a, b) => b.score - a.score);
  const lists = [
    ["for", `For ${found.label}`, ranked.filter(({ score }) => score > 0).slice(0, LISTED)],
    ["against", `Against ${found.label}`, ranked.filter(({ score }) => score < 0).slice(-LISTED).reverse()],
  ];
  const sum = signed(found.value - found.base_value - found.residual);
  return el(
    "article.explained",
    { "aria-label": `Explanation by ${name}` },
    el("h4", {}, name, " ", el("small", {}, `${found.label} ${number(found.score)}`)),
    ...texts,
    el("div.pair", {}, ...lists.map(([kind, title, rows]) => strongest(kind, title, rows, largest))),
    el(
      "p.hint",
      {},
      `Log-odds ${signed(found.value)}, with nothing of the text ${signed(found.base_value)}; the parts add up to ` +
        `${sum}. ${count(found.runs, "run")} in ${number(facts.timing.total, 0)} ms on ${found.engine}.`
    )
  );
}

function strongest(kind, title, rows, largest) {
  const items = rows.map(({ text, score }) =>
    el("li", {}, el("span.part", {}, text), bar(Math.abs(score) / largest, kind), el("span.figure", {}, signed(score)))
  );
  const list = items.length ? el("ol.strong", {}, ...items) : el("p.hint", {}, "Nothing.");
  return el("div", {}, el("h5", {}, title), list);
}
