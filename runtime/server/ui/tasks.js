/**
 * What each task asks of the server and how its answer is shown: `ask` gets {texts, query} and returns {rows, facts},
 * `show` makes elements of it, `compare` says in a sentence how two models differ.
 */

import { added, post } from "./api.js";
import { bar, count, el, marked, number, scrolling } from "./dom.js";
import { cosines, short, similarityTable, vectorMap } from "./vectors.js";

const MOST_LABELS = 10;
const MOST_SHOWN = 100; // rows of a file
const MOST_VECTORS = 100;
const HUES = 6;

/** Requests of at most so many texts, one after the other. */
async function inParts(texts, { limits, signal, progress }, one) {
  const rows = [];
  let facts = null;
  for (let at = 0; at < texts.length; at += limits.max_batch) {
    const part = await one(texts.slice(at, at + limits.max_batch), signal);
    rows.push(...part.found);
    facts = added(facts, part.facts);
    progress(rows.length, texts.length);
  }
  return { rows, facts };
}

/** KServe's route, which asks a model of any task by its name: the data of each output. */
async function infer(model, texts, signal) {
  const inputs = [{ name: "text", datatype: "BYTES", shape: [texts.length], data: texts }];
  const { body, facts } = await post(`v2/models/${encodeURIComponent(model)}/infer`, { inputs }, signal);
  return { outputs: Object.fromEntries(body.outputs.map(({ name, data, shape }) => [name, { data, shape }])), facts };
}

const most = (rows) => Math.max(...rows.map(({ score }) => Math.abs(score)), 1);

const headed = (...names) => el("thead", {}, el("tr", {}, ...names));
const column = (name) => el("th", { scope: "col" }, name);
const figures = (name) => el("th.figure", { scope: "col" }, name);

function scored(rows, name = ({ label }) => label, long = false) {
  const scale = most(rows);
  const items = rows.map((row, index) => {
    const part = el("span.part", {}, name(row));
    return el(`li${index ? "" : ".best"}`, {}, part, bar(row.score / scale), el("span.figure", {}, number(row.score)));
  });
  return el(`ol.scores${long ? ".long" : ""}`, {}, ...items);
}

const classification = {
  title: "Text classification",
  text: "Text",
  hint: "One text. A file may hold many.",
  example: { text: "The plot drags and the ending is silly, but I loved every minute of the acting." },
  async ask(model, { texts }, how) {
    const { rows, facts } = await inParts(texts, how, async (input, signal) => {
      const { body, facts } = await post("v1/classify", { model, input }, signal);
      return { found: body.data, facts };
    });
    return { rows, facts: { ...facts, tokens: rows.reduce((sum, { tokens }) => sum + tokens, 0) } };
  },
  show({ texts }, rows, open) {
    if (rows.length > 1) return [labelCounts(rows), labelTable(texts, rows, open)];
    const [{ label, labels, scores }] = rows;
    const rest = scores.length - MOST_LABELS;
    return [
      el("p.answer", {}, labels.length ? labels.join(", ") : `no label; the nearest is ${label}`),
      scored(scores.slice(0, MOST_LABELS)),
      rest > 0 && el("p.hint", {}, `and ${count(rest, "more label")}`),
    ];
  },
  say: (input, rows) => (rows.length > 1 ? count(rows.length, "text") : `${rows[0].label}, ${number(rows[0].score)}`),
  compare({ texts }, one, two) {
    const other = texts.map((_, i) => i).filter((i) => one[i].label !== two[i].label);
    const same = texts.length - other.length;
    const of = (row) => Object.fromEntries(row.scores.map(({ label, score }) => [label, score]));
    const apart = one.map((row, i) => {
      const others = of(two[i]);
      return Math.max(...row.scores.map(({ label, score }) => Math.abs(score - (others[label] ?? 0))));
    });
    const largest = `Scores differ by at most ${number(Math.max(...apart), 4)}.`;
    if (texts.length > 1) {
      const said = `The same label for ${same} of ${texts.length} texts. ${largest}`;
      return other.length ? [said, differing(texts, other, one, two)] : said;
    }
    return same ? `Both say ${one[0].label}. ${largest}` : `${one[0].label} against ${two[0].label}. ${largest}`;
  },
  explains: ({ texts }) => (texts.length === 1 ? { title: "Why this label?", parts: texts, input: texts } : null),
};

function labelCounts(rows) {
  const counts = new Map();
  for (const { label } of rows) counts.set(label, (counts.get(label) ?? 0) + 1);
  const ranked = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MOST_LABELS);
  const items = ranked.map(([label, n]) =>
    el("li", {}, el("span.part", {}, label), bar(n / rows.length), el("span.figure", {}, String(n)))
  );
  return el("ol.scores", {}, ...items);
}

function differing(texts, places, one, two) {
  const rows = places.slice(0, MOST_SHOWN).map((i) =>
    el("tr", {}, el("td", {}, short(texts[i], 90)), el("td", {}, one[i].label), el("td", {}, two[i].label))
  );
  const head = headed(column("Text"), column("First"), column("Second"));
  return scrolling("Texts with another label", el("table", {}, head, el("tbody", {}, ...rows)));
}

function labelTable(texts, rows, open) {
  const shown = rows.slice(0, MOST_SHOWN).map(({ label, score }, i) => {
    const ask = { type: "button", title: texts[i], onclick: () => open(texts[i]) };
    const text = el("td", {}, el("button.link", ask, short(texts[i], 90)));
    return el("tr", {}, el("td.figure", {}, `${i + 1}`), text, el("td", {}, label), el("td.figure", {}, number(score)));
  });
  const part = rows.length > shown.length ? `, the first ${shown.length} of ${rows.length}` : "";
  const caption = el("caption", {}, `Texts and their labels${part}`);
  const head = headed(figures("#"), column("Text"), column("Label"), figures("Score"));
  return scrolling("Texts and their labels", el("table", {}, caption, head, el("tbody", {}, ...shown)));
}

const tagging = {
  title: "Token classification",
  text: "Text",
  hint: "One text. A file may hold many.",
  example: { text: "Marie Curie moved from Warsaw to Paris in 1891 and studied at the Sorbonne." },
  ask: (model, { texts }, how) =>
    inParts(texts, how, async (input, signal) => {
      const { outputs, facts } = await infer(model, input, signal);
      return { found: outputs.entities.data.map((each) => JSON.parse(each)), facts };
    }),
  show({ texts }, rows) {
    const labels = [...new Set(rows.flat().map(({ label }) => label))].sort();
    const hue = (label) => `e${labels.indexOf(label) % HUES}`;
    const mark = ({ label, score }, text) =>
      el(`mark.entity.${hue(label)}`, { title: number(score) }, text, el("b", {}, label));
    return [
      ...rows.slice(0, MOST_SHOWN).map((entities, i) => marked(texts[i], entities, mark)),
      labels.length === 0 && el("p.hint", {}, "No entities."),
      rows.length === 1 && labels.length > 0 && entityTable(rows[0]),
    ];
  },
  say: (input, rows) => count(rows.flat().length, "entity", "entities"),
  compare(input, one, two) {
    const key = (i, { label, start, end }) => `${i} ${label} ${start} ${end}`;
    const [first, second] = [one, two].map((rows) => rows.flatMap((row, i) => row.map((each) => key(i, each))));
    const both = first.filter((each) => second.includes(each)).length;
    const alone = `${first.length - both} only in the first, ${second.length - both} only in the second.`;
    return `${count(both, "entity", "entities")} in both, ${alone}`;
  },
};

function entityTable(entities) {
  const head = headed(column("Entity"), column("Label"), figures("Characters"), figures("Score"));
  const rows = entities.map(({ text, label, start, end, score }) => {
    const last = [`${start}–${end}`, number(score)].map((figure) => el("td.figure", {}, figure));
    return el("tr", {}, el("td", {}, text), el("td", {}, label), ...last);
  });
  const table = el("table", {}, el("caption", {}, "Entities"), head, el("tbody", {}, ...rows));
  return scrolling("Entities", table);
}

const masks = {
  title: "Fill mask",
  text: "Text",
  hint: "Write the model's mask token, mostly [MASK] or <mask>, where a word is missing.",
  example: { text: "The capital of France is [MASK]." },
  ask: (model, { texts }, how) =>
    inParts(texts, how, async (input, signal) => {
      const { outputs, facts } = await infer(model, input, signal);
      return { found: outputs.masks.data.map((each) => JSON.parse(each)), facts };
    }),
  show({ texts }, rows) {
    return rows.slice(0, MOST_SHOWN).flatMap((found, i) => [
      rows.length > 1 && el("h4", {}, short(texts[i])),
      ...found.map((candidates) => scored(candidates.map(([label, score]) => ({ label, score })))),
      found.length === 0 && el("p.hint", {}, "The text has no mask."),
    ]);
  },
  say: (input, rows) => count(rows.flat().length, "mask"),
  compare(input, one, two) {
    const first = (rows) => rows.flat().map((candidates) => candidates[0]?.[0]);
    const others = first(two);
    const same = first(one).filter((token, i) => token === others[i]).length;
    return `The same first candidate for ${same} of ${count(others.length, "mask")}.`;
  },
};

const embeddings = {
  title: "Embeddings",
  text: "Texts, one a line",
  hint: `Two texts have a similarity, three a map; the first ${MOST_VECTORS} are taken.`,
  lines: true,
  most: MOST_VECTORS,
  example: {
    text: [
      "A cat sleeps on the sofa.",
      "A kitten naps on the couch.",
      "The stock market fell sharply today.",
      "Shares dropped after the bank raised rates.",
      "She plays the violin in an orchestra.",
    ].join("\n"),
  },
  ask: (model, { texts }, how) =>
    inParts(texts, how, async (input, signal) => {
      const { body, facts } = await post("v1/embeddings", { model, input }, signal);
      return { found: body.data.map(({ embedding }) => embedding), facts };
    }),
  show({ texts }, vectors) {
    if (vectors.length === 1) return [el("p.hint", {}, `${vectors[0].length} numbers. Add a line to compare it with.`)];
    return [similarityTable(texts, cosines(vectors)), vectors.length > 2 && vectorMap(texts, vectors)];
  },
  say: (input, vectors) => `${count(vectors.length, "vector")} of ${vectors[0].length} numbers`,
  compare(input, one, two) {
    const [a, b] = [cosines(one).flat(), cosines(two).flat()];
    return `Similarities differ by at most ${number(Math.max(...a.map((value, i) => Math.abs(value - b[i]))), 4)}.`;
  },
};

const tokenEmbeddings = {
  ...embeddings,
  title: "Token embeddings",
  hint: "A text is shown by the mean of its tokens' vectors.",
  ask: (model, { texts }, how) =>
    inParts(texts, how, async (input, signal) => {
      const { outputs, facts } = await infer(model, input, signal);
      const [size, flat] = [outputs.token_embedding.shape[1], outputs.token_embedding.data];
      let at = 0;
      const found = outputs.tokens.data.map((tokens) => {
        const mean = Array(size).fill(0);
        for (const end = at + tokens; at < end; at++) {
          for (let k = 0; k < size; k++) mean[k] += flat[at * size + k] / tokens;
        }
        return mean;
      });
      return { found, facts };
    }),
};

const reranking = {
  title: "Rerank",
  text: "Documents, one a line",
  hint: "They are put in order by their relevance to the query.",
  lines: true,
  query: true,
  example: {
    query: "how do cats sleep?",
    text: [
      "Cats sleep up to sixteen hours a day.",
      "The bank raised its rates on Monday.",
      "Most cats nap lightly, and wake at any sound.",
    ].join("\n"),
  },
  async ask(model, { texts, query }, how) {
    let before = 0;
    const { rows, facts } = await inParts(texts, how, async (documents, signal) => {
      const { body, facts } = await post("v1/rerank", { model, query, documents }, signal);
      const found = body.results.map(({ index, relevance_score: score }) => ({ index: index + before, score }));
      before += documents.length;
      return { found, facts };
    });
    return { rows: rows.sort((a, b) => b.score - a.score), facts };
  },
  show: ({ texts }, rows) => [scored(rows.slice(0, MOST_SHOWN), ({ index }) => texts[index], true)],
  say: ({ texts }, rows) => `${count(rows.length, "document")}, the best: ${short(texts[rows[0].index])}`,
  compare(input, one, two) {
    const same = one.filter(({ index }, place) => index === two[place].index).length;
    return same === one.length ? "Both have the same order." : `${same} of ${one.length} documents keep their place.`;
  },
  explains({ texts, query }, rows) {
    const parts = [query, texts[rows[0].index]];
    return { title: "Why this document?", parts, input: [parts], label: "relevance" };
  },
};

export const TASKS = {
  "text-classification": classification,
  "token-classification": tagging,
  "fill-mask": masks,
  embeddings,
  "token-embeddings": tokenEmbeddings,
  rerank: reranking,
};
