/** The page: which models there are, what is asked of them, and what becomes of the answers. */

import { Problem, hasKey, keepKey, models as served } from "./api.js";
import { card, failed } from "./card.js";
import { $, count, el, options } from "./dom.js";
import { explained, offerMethods, showExplanation } from "./explain.js";
import { linesOf, readFile, textsOf } from "./files.js";
import { decoded, encoded, useTheme } from "./state.js";
import { TASKS } from "./tasks.js";

const RETRY_MS = 1500;
const page = { models: [], limits: { max_batch: 32 }, file: null, asking: null, explaining: null, last: null };
const WHY = { method: $("method"), unit: $("unit"), label: $("label") };

const task = () => TASKS[model().task];
const named = (name) => page.models.find((each) => each.name === name);
const model = () => named($("model").value);
const chosen = () => [model(), named($("other").value)].filter(Boolean);

async function start() {
  useTheme($("theme"));
  try {
    const found = await served();
    if (!found.models.length) {
      say(`The server is ${found.status}; trying again.`);
      setTimeout(start, RETRY_MS);
      return;
    }
    page.models = found.models;
    page.limits = found.limits ?? page.limits;
    say("");
  } catch (error) {
    if (error.status === 401) return askForKey();
    problem(error);
    return setTimeout(start, RETRY_MS * 4);
  }
  problem(null);
  offerModels();
  for (const id of ["run", "example"]) $(id).disabled = false;
  chooseModel();
  restore();
}

function offerModels() {
  const groups = Object.entries(TASKS).map(([kind, { title }]) => {
    const own = page.models.filter((each) => each.task === kind);
    const choices = own.map(({ name }) => el("option", { value: name }, name));
    return own.length && el("optgroup", { label: title }, ...choices);
  });
  const kept = $("model").value;
  $("model").replaceChildren(...groups.filter(Boolean));
  $("model").value = page.models.some(({ name }) => name === kept) ? kept : page.models[0].name;
}

function chooseModel() {
  const { name, task: kind, engine, precision, labels, max_length: longest } = model();
  const others = page.models.filter((each) => each.task === kind && each.name !== name);
  const kept = others.some((each) => each.name === $("other").value) ? $("other").value : "";
  const none = others.length ? "Nothing" : "No other model of this task";
  options($("other"), [{ value: "", text: none }, ...others.map((each) => ({ value: each.name }))], kept);
  $("other").disabled = !others.length;
  const known = labels.length > 8 ? count(labels.length, "label") : `labels ${labels.join(", ")}`;
  const about = [task().title, engine, precision, `texts up to ${count(longest, "token")}`];
  $("about").textContent = [...about, ...(labels.length > 1 ? [known] : [])].join(" · ");
  const { text, hint, query } = task();
  $("text-label").textContent = text;
  $("text-hint").textContent = hint;
  $("query-field").hidden = !query;
  offerMethods(WHY, chosen());
  WHY.label.parentElement.hidden = kind === "rerank";
  clear();
}

function clear() {
  page.last = null;
  for (const id of ["answers", "explanations"]) $(id).replaceChildren();
  $("empty").hidden = false;
  for (const id of ["why", "verdict"]) $(id).hidden = true;
}

/** What is to be asked: {texts, query}. Throws a `Problem` for nothing. */
function asked() {
  const own = task();
  const typed = $("text").value;
  const written = own.lines ? linesOf(typed) : [typed].filter((text) => text.trim());
  const texts = (page.file ? textsOf(page.file, $("column").value) : written).slice(0, own.most);
  if (!texts.length) {
    const write = `Write something into “${own.text}” first.`;
    throw new Problem(0, page.file ? "This column has no texts: choose another one." : write);
  }
  const query = $("query").value.trim();
  if (own.query && !query) throw new Problem(0, "Write a query first.");
  return { texts, query };
}

async function run() {
  if ($("run").disabled) return;
  page.asking?.abort();
  page.explaining?.abort();
  const asking = (page.asking = new AbortController());
  problem(null);
  let input;
  try {
    input = asked();
  } catch (error) {
    clear();
    return problem(error);
  }
  busy(true);
  const answers = [];
  for (const each of chosen()) {
    const progress = (done, of) => say(of > 1 ? `${each.name}: ${done} of ${count(of, "text")}` : `${each.name} …`);
    progress(0, input.texts.length);
    try {
      const found = await task().ask(each.name, input, { limits: page.limits, signal: asking.signal, progress });
      answers.push({ name: each.name, ...found });
    } catch (error) {
      if (error.name === "AbortError") {
        if (page.asking === asking) stopped();
        return;
      }
      if (error.status === 401) askForKey();
      answers.push({ name: each.name, error });
    }
  }
  if (page.asking !== asking) return;
  busy(false);
  show(input, answers);
}

function stopped() {
  busy(false);
  say("Stopped.");
}

function show(input, answers) {
  const own = task();
  const good = answers.filter(({ error }) => !error);
  $("empty").hidden = true;
  $("answers").classList.toggle("wide", input.texts.length > 1 && !own.query);
  $("answers").replaceChildren(
    ...answers.map(({ name, error, rows, facts }) =>
      error ? failed(name, error) : card(name, own.show(input, rows, open), facts)
    )
  );
  $("verdict").hidden = good.length < 2;
  if (good.length > 1) $("verdict").replaceChildren(...[own.compare(input, good[0].rows, good[1].rows)].flat());
  const why = good.length && own.explains ? own.explains(input, good[0].rows) : null;
  page.last = why;
  $("why").hidden = !why;
  if (why) $("why-title").textContent = why.title;
  $("explanations").replaceChildren();
  $("why-status").textContent = "";
  if ($("results").getBoundingClientRect().top > innerHeight - 120) $("results").scrollIntoView({ block: "start" });
  const told = good.map(({ name, rows }) => (good.length > 1 ? `${name}: ` : "") + own.say(input, rows));
  say(told.join("; ") || "No answer.");
}

/** A text of a table, asked alone. */
function open(text) {
  dropFile();
  $("text").value = text;
  $("text").focus();
  run();
}

async function explain() {
  if (!page.last) return;
  page.explaining?.abort();
  const asking = (page.explaining = new AbortController());
  const { parts, input, label } = page.last;
  const how = { method: WHY.method.value, unit: WHY.unit.value, label: WHY.label.value };
  const made = [];
  $("why").setAttribute("aria-busy", "true");
  for (const { name } of chosen()) {
    $("why-status").textContent = `Explaining with ${name} …`;
    try {
      const { found, facts } = await explained(name, input, how, asking.signal);
      made.push(showExplanation(name, parts, { ...found, label: label ?? found.label }, facts));
    } catch (error) {
      if (error.name === "AbortError") return;
      made.push(el("article.explained", {}, el("h4", {}, name), el("p.problem", {}, error.message)));
    }
  }
  if (page.explaining !== asking) return;
  $("why").removeAttribute("aria-busy");
  $("explanations").replaceChildren(...made);
  const legend = "The stronger the colour, the more a part did: blue for it, orange against it.";
  $("why-status").textContent = made.some((each) => each.querySelector("mark")) ? legend : "";
}

async function useFile(file) {
  if (!file) return;
  problem(null);
  try {
    page.file = await readFile(file);
  } catch (error) {
    return problem(error);
  }
  const { name, rows, columns, chosen: best, notes } = page.file;
  $("file-name").textContent = name;
  $("file-rows").textContent = [count(rows.length, "row"), ...notes].join(". ");
  options($("column"), columns.map((value) => ({ value })), best);
  $("column").parentElement.hidden = columns.length < 2;
  $("file-field").hidden = false;
  $("text-field").hidden = true;
  say(`${name}: ${count(rows.length, "row")}`);
  $("run").focus();
}

function dropFile() {
  page.file = null;
  $("file").value = "";
  $("file-field").hidden = true;
  $("text-field").hidden = false;
}

async function share() {
  const state = { model: $("model").value, other: $("other").value, query: $("query").value, text: $("text").value };
  const open = $("explanations").childElementCount > 0;
  const why = open ? { method: WHY.method.value, unit: WHY.unit.value, label: WHY.label.value } : {};
  const filled = Object.entries({ ...state, ...why }).filter(([, value]) => value);
  history.replaceState(null, "", encoded(Object.fromEntries(filled)));
  try {
    await navigator.clipboard.writeText(location.href);
    say(page.file ? "Link copied, without the file." : "Link copied.");
  } catch {
    say("The link is in the address bar.");
  }
}

/** Shows what the link says: the answer, and the explanation if there was one. */
async function restore() {
  const state = decoded(location.hash);
  if (!state) return;
  if (page.models.some(({ name }) => name === state.model)) $("model").value = state.model;
  chooseModel();
  if ([...$("other").options].some(({ value }) => value === state.other)) $("other").value = state.other;
  offerMethods(WHY, chosen());
  dropFile();
  $("text").value = state.text ?? "";
  $("query").value = state.query ?? "";
  if (!state.text) return;
  await run();
  if (!state.method || !page.last) return;
  for (const [name, select] of Object.entries(WHY)) {
    const offered = [...select.options].some(({ value, disabled }) => value === state[name] && !disabled);
    if (offered) select.value = state[name];
  }
  await explain();
}

function askForKey() {
  $("key").hidden = false;
  if (hasKey()) problem(new Problem(401, "The server does not take this key."));
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

const say = (text) => ($("status").textContent = text);

function problem(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
}

function busy(now) {
  $("stop").hidden = !now;
  $("results").toggleAttribute("aria-busy", now);
  if (now) $("results").setAttribute("aria-busy", "true");
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("ask").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  run();
});
$("stop").addEventListener("click", () => page.asking?.abort());
$("model").addEventListener("change", chooseModel);
$("other").addEventListener("change", () => {
  offerMethods(WHY, chosen());
  clear();
});
$("explain").addEventListener("click", explain);
for (const select of Object.values(WHY)) {
  select.addEventListener("change", () => $("explanations").childElementCount && explain());
}
$("share").addEventListener("click", share);
$("file").addEventListener("change", (event) => useFile(event.target.files[0]));
$("file-remove").addEventListener("click", () => {
  dropFile();
  $("text").focus();
});
$("example").addEventListener("click", () => {
  dropFile();
  const { text, query = "" } = task().example;
  $("text").value = text;
  $("query").value = query;
  run();
});
$("key").addEventListener("click", askForKey);
$("key-dialog").addEventListener("close", () => {
  if (!$("key-value").value) return;
  keepKey($("key-value").value);
  $("key-value").value = "";
  start();
});
window.addEventListener("hashchange", restore);
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
}
$("drop").addEventListener("dragleave", () => ($("drop").hidden = true));
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  $("drop").hidden = true;
  useFile(event.dataTransfer.files[0]);
});
start();
