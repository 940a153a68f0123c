/** Files of texts, read in the browser: a line each (.txt), CSV or TSV with a head, JSON lines. */

export const MOST_ROWS = 1000;
const MOST_BYTES = 10_000_000;
const LIKELY = ["text", "sentence", "content", "review", "body", "message", "document", "passage", "question"];

/** A file -> {name, columns, rows: [{column: text}], chosen, notes}. Throws an `Error` that says what to do. */
export async function readFile(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than 10 MB: use nopad predict for it.`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()).replace(/^\uFEFF/, "");
  } catch {
    throw new Error(`${file.name} is not UTF-8: save it as UTF-8.`);
  }
  const kind = file.name.toLowerCase().split(".").pop();
  const read = { csv: readDelimited, tsv: readDelimited, jsonl: readJson, json: readJson }[kind] ?? readLines;
  const { columns, rows, notes = [] } = read(text);
  if (!rows.length) throw new Error([`${file.name} has no texts.`, ...notes].join(" "));
  if (rows.length > MOST_ROWS) notes.push(`The first ${MOST_ROWS} of ${rows.length} rows are taken.`);
  const chosen = LIKELY.find((name) => columns.some((column) => column.toLowerCase() === name));
  return {
    name: file.name,
    columns,
    rows: rows.slice(0, MOST_ROWS),
    chosen: columns.find((column) => column.toLowerCase() === chosen) ?? columns[0],
    notes,
  };
}

/** The texts of a column, without blank ones. */
export const textsOf = (file, column) => file.rows.map((row) => row[column] ?? "").filter((text) => text.trim());

export const linesOf = (text) => text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);

function readLines(text) {
  return { columns: ["line"], rows: linesOf(text).map((line) => ({ line })) };
}

function readJson(text) {
  const rows = [];
  const bad = [];
  const take = (value, place) => {
    if (typeof value === "string") rows.push({ text: value });
    else if (value && typeof value === "object" && !Array.isArray(value)) {
      rows.push(Object.fromEntries(Object.entries(value).filter(([, each]) => typeof each === "string")));
    } else bad.push(place);
  };
  if (text.trimStart().startsWith("[")) {
    let all = [];
    try {
      all = JSON.parse(text);
    } catch {
      return { columns: [], rows: [], notes: ["It is not valid JSON."] };
    }
    all.forEach((value, index) => take(value, index + 1));
  } else {
    text.split("\n").forEach((line, index) => {
      if (!line.trim()) return;
      try {
        take(JSON.parse(line), index + 1);
      } catch {
        bad.push(index + 1);
      }
    });
  }
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const places = bad.slice(0, 5).join(", ") + (bad.length > 5 ? ", ..." : "");
  return { columns, rows, notes: bad.length ? [`Left out, as they are no JSON objects: rows ${places}.`] : [] };
}

function readDelimited(text) {
  const first = text.split("\n", 1)[0];
  const delimiter = [",", "\t", ";"].sort((a, b) => first.split(b).length - first.split(a).length)[0];
  const records = parseDelimited(text, delimiter).filter((record) => record.some((field) => field.trim()));
  const head = records.shift() ?? [];
  const columns = head.map((name, index) => name.trim() || `column ${index + 1}`);
  const rows = records.map((record) => Object.fromEntries(columns.map((name, index) => [name, record[index] ?? ""])));
  return { columns, rows };
}

/** RFC 4180: quoted fields may hold delimiters, line breaks and doubled quotes. */
function parseDelimited(text, delimiter) {
  const records = [];
  let record = [];
  let field = "";
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (quoted) {
      if (character !== '"') field += character;
      else if (text[at + 1] === '"') field += text[++at];
      else quoted = false;
    } else if (character === '"' && field === "") quoted = true;
    else if (character === delimiter) {
      record.push(field);
      field = "";
    } else if (character === "\n") {
      records.push([...record, field.replace(/\r$/, "")]);
      record = [];
      field = "";
    } else field += character;
  }
  return field || record.length ? [...records, [...record, field.replace(/\r$/, "")]] : records;
}
