/** Embeddings as people see them: a table of cosine similarities, and a map by the two largest principal components. */

import { el, number, scrolling, styled, svg } from "./dom.js";

const MOST_IN_TABLE = 24;

export function cosines(vectors) {
  const sizes = vectors.map((vector) => Math.hypot(...vector) || 1);
  return vectors.map((one, i) =>
    vectors.map((two, j) => one.reduce((sum, value, k) => sum + value * two[k], 0) / (sizes[i] * sizes[j]))
  );
}

/**
 * The two largest principal components: {points: [[x, y]], shares: [x, y] of the variance}. By power iteration on the
 * matrix of inner products of the centred vectors, which is as small as there are texts.
 */
export function principal(vectors) {
  const n = vectors.length;
  const mean = vectors[0].map((_, k) => vectors.reduce((sum, vector) => sum + vector[k], 0) / n);
  const centred = vectors.map((vector) => vector.map((value, k) => value - mean[k]));
  const inner = centred.map((one) => centred.map((two) => one.reduce((sum, value, k) => sum + value * two[k], 0)));
  const total = inner.reduce((sum, row, i) => sum + row[i], 0) || 1;
  const components = [0, 1].map(() => {
    let axis = inner.map((_, i) => Math.sin(i + 1)); // any start, but the same each time
    let value = 0;
    for (let step = 0; step < 300; step++) {
      const next = inner.map((row) => row.reduce((sum, x, j) => sum + x * axis[j], 0));
      value = Math.hypot(...next);
      if (value < 1e-12 * total) return { value: 0, axis: axis.map(() => 0) };
      axis = next.map((x) => x / value);
    }
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) inner[i][j] -= value * axis[i] * axis[j];
    return { value, axis };
  });
  const points = vectors.map((_, i) => components.map(({ value, axis }) => axis[i] * Math.sqrt(value)));
  return { points, shares: components.map(({ value }) => value / total) };
}

export function similarityTable(texts, matrix) {
  const shown = Math.min(texts.length, MOST_IN_TABLE);
  const head = el("tr", {}, el("th", { scope: "col" }, "Text"));
  for (let j = 0; j < shown; j++) head.append(el("th", { scope: "col", "aria-label": `Text ${j + 1}` }, String(j + 1)));
  const rows = matrix.slice(0, shown).map((row, i) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", title: texts[i] }, el("b", {}, String(i + 1)), " ", short(texts[i])),
      ...row.slice(0, shown).map((value) => styled(el("td.heat", {}, number(value, 2)), { strength: heat(value) }))
    )
  );
  const caption = `Cosine similarity${shown < texts.length ? ` of the first ${shown} of ${texts.length} texts` : ""}`;
  const table = el("table.matrix", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, ...rows));
  return scrolling(caption, table);
}

export function vectorMap(texts, vectors) {
  const { points, shares } = principal(vectors);
  const reach = Math.max(...points.flat().map(Math.abs)) || 1;
  const wide = Math.max(280, Math.min(640, innerWidth - 60)); // so that its numbers stay readable on a phone
  const [high, edge] = [Math.round(wide * 0.6), 34];
  const x = (value) => wide / 2 + (value / reach) * (wide / 2 - edge);
  const y = (value) => high / 2 - (value / reach) * (high / 2 - edge);
  const percent = shares.map((share) => `${Math.round(share * 100)} %`);
  const axes = `across ${percent[0]} of the variance, up ${percent[1]}.`;
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": `Map of ${texts.length} texts, ${axes}` },
    svg("path", { class: "axes", d: `M0 ${high / 2}H${wide}M${wide / 2} 0V${high}` }),
    ...points.map(([across, up], i) =>
      svg(
        "g",
        { transform: `translate(${x(across).toFixed(1)} ${y(up).toFixed(1)})` },
        svg("title", {}, texts[i]),
        svg("circle", { r: 11 }),
        svg("text", { "text-anchor": "middle", dy: "0.35em" }, String(i + 1))
      )
    )
  );
  const legend = el("p.hint", {}, `Nearer means more alike. Principal components: ${axes}`);
  return el("figure.map", {}, picture, el("figcaption", {}, legend));
}

export const short = (text, most = 60) => (text.length > most ? text.slice(0, most - 1).trimEnd() + "…" : text);

const heat = (value) => Math.max(0, Math.min(1, value)).toFixed(3);
