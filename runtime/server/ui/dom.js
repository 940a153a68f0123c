/** Elements made of data. Everything from an answer or a file is set as text: it can never become markup. */

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** `el("p.hint", {id: "a"}, "text", child)`. */
export function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  return fill(node, attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** Sets a variable of the style sheet: the page's policy forbids style attributes, not this. */
export function styled(node, values) {
  for (const [name, value] of Object.entries(values)) node.style.setProperty(`--${name}`, value);
  return node;
}

export function options(select, choices, chosen) {
  const made = choices.map(({ value, text = value, disabled = false }) =>
    el("option", { value, disabled, selected: value === chosen }, text)
  );
  select.replaceChildren(...made);
}

/** A bar of a share from 0 to 1; its figure stands beside it as text. */
export function bar(share, kind = "") {
  const width = `${Math.round(Math.max(0, Math.min(1, share)) * 1000) / 10}%`;
  return el("span.bar", { "aria-hidden": "true" }, styled(el(`i${kind && "." + kind}`), { width }));
}

export const number = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits) : String(value));

export const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

export const count = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** A region that may be wider than the page: it scrolls by itself, with the keyboard, too. */
export function scrolling(label, ...children) {
  return el("div.scroll", { role: "region", tabindex: "0", "aria-label": label }, ...children);
}

/**
 * A text with spans marked, as [{start, end, ...}] by characters as the server counts them (Unicode code points, which
 * JavaScript's own positions are not). `mark` makes the element of a span.
 */
export function marked(text, spans, mark) {
  const points = Array.from(text);
  const found = [];
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < at) continue;
    if (span.start > at) found.push(points.slice(at, span.start).join(""));
    found.push(mark(span, points.slice(span.start, span.end).join("")));
    at = span.end;
  }
  found.push(points.slice(at).join(""));
  return el("p.text", {}, ...found);
}
