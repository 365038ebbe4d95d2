"use strict";
// What is shown is kept in the address, after "#?", so that a view can be stored and sent.
const STEP = 100; // rows that are shown at first, and more at a time
const byId = (id) => document.getElementById(id);
const all = (query) => [...document.querySelectorAll(query)];
const state = new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : "");
const chosen = (key) => (state.get(key) || "").split("|").filter(Boolean);
const toggled = (values, value) => (values.includes(value) ? values.filter((one) => one !== value) : [...values, value]).join("|");

function keep(key, value) {
  if (value) state.set(key, value);
  else state.delete(key);
  const text = state.toString();
  history.replaceState(null, "", text ? `#?${text}` : location.pathname + location.search);
}

// An element with a class and children; text is always text, never markup.
function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// The table of points: the template writes every row; here they are filtered and sorted.
const heads = all("#table th[data-key]");
const column = Object.fromEntries(heads.map((head, i) => [head.dataset.key, i]));
const rows = [...byId("table").tBodies[0].rows];
const words = rows.map((row) => row.textContent.toLowerCase());
let limit = STEP;

function drawPoints() {
  const query = (state.get("q") || "").toLowerCase().split(/\s+/);
  const facets = Object.keys(column).map((key) => [column[key], chosen(key)]).filter(([, values]) => values.length);
  const found = rows.filter((row, i) => (!state.has("gate") || "passes" in row.dataset)
    && facets.every(([at, values]) => values.includes(row.cells[at].dataset.v)) && query.every((word) => words[i].includes(word)));
  const sort = state.get("sort") || "", key = sort.replace(/^-/, ""), sign = sort.startsWith("-") ? -1 : 1;
  if (key in column) found.sort((a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column[key]].dataset.v);
    return !x || !y ? !x - !y : sign * (x - y || x.localeCompare(y));
  });
  for (const head of heads)
    head.setAttribute("aria-sort", head.dataset.key !== key ? "none" : sign < 0 ? "descending" : "ascending");
  byId("table").tBodies[0].replaceChildren(...found.slice(0, limit));
  byId("count").textContent = `${found.length === rows.length ? "" : `${found.length} of `}${rows.length} point${rows.length === 1 ? "" : "s"}`;
  byId("more").hidden = found.length <= limit;
  byId("more").textContent = `Show ${Math.min(STEP, found.length - limit)} more of ${found.length - limit}`;
}

// Numbers are sorted from the highest first, words from A; a second click turns the order, a third undoes it.
function sortBy(head) {
  const key = head.dataset.key, orders = head.classList.contains("word") ? [key, `-${key}`, ""] : [`-${key}`, key, ""];
  keep("sort", orders[(orders.indexOf(state.get("sort") || "") + 1) % 3]);
}

// The reader: source, reference and the answers of chosen runs to one example, side by side.
const data = JSON.parse(byId("data").textContent);
const set = () => data.sets[Number(state.get("set"))] || data.sets[0];
const picked = () => (state.has("runs") ? chosen("runs").map(Number).filter((run) => set().runs[run]) : set().picked);
const compared = (base, text) => data.changes[`${base},${text}`] || [100, data.texts[text].length, 0, 0];

function shownExamples() {
  const { examples, runs } = set(), query = (state.get("find") || "").toLowerCase();
  const found = examples.map((_, i) => i).filter((i) => [examples[i].source, examples[i].reference,
    ...picked().map((run) => runs[run].outputs[i])].some((text) => data.texts[text].toLowerCase().includes(query)));
  if (state.get("order") !== "changed") return found;
  const shared = (run, i) => (run.baseline === null ? 100 : compared(runs[run.baseline].outputs[i], run.outputs[i])[0]);
  const least = new Map(found.map((i) => [i, Math.min(...picked().map((run) => shared(runs[run], i)))]));
  return found.sort((a, b) => least.get(a) - least.get(b));
}

function current(list) {
  const now = Number(state.get("ex") || NaN);
  return list.includes(now) ? now : list[0];
}

function step(by) {
  const list = shownExamples();
  if (list.length) keep("ex", String(list[(list.indexOf(current(list)) + by + list.length) % list.length]));
}

function drawReader() {
  const { examples, runs } = set(), list = shownExamples(), i = current(list), example = examples[i];
  byId("where").textContent = example ? `${list.indexOf(i) + 1} of ${list.length}` : "No example has these words.";
  byId("source-id").textContent = example ? `Source ${example.id}` : "Source";
  for (const key of ["source", "reference"]) byId(key).textContent = example ? data.texts[example[key]] : "";
  byId("picks").replaceChildren(...runs.map((run, number) => {
    const button = make("button", "chip", make("span", "dot"), run.label);
    Object.assign(button, { type: "button", name: "runs", value: number, ariaPressed: String(picked().includes(number)) });
    button.style.setProperty("--c", run.colour);
    return button;
  }));
  byId("answers").replaceChildren(...(example ? picked().map((run) => card(runs, run, i)) : []));
  byId("answers").classList.toggle("hide-missing", state.get("missing") === "0");
}

function card(runs, number, i) {
  const { label, colour, outputs, flags, baseline } = runs[number];
  const own = outputs[i], reference = set().examples[i].reference, full = baseline === null ? null : runs[baseline].outputs[i];
  const base = state.get("base") === "full" ? full : reference;
  const body = make("div", "body", ...(base === null ? [data.texts[own]] : marked(base, own)));
  if (!data.texts[own]) body.append(make("span", "legend", "(empty)"));
  const notes = [`${compared(reference, own)[0]}% of words shared with the reference`];
  if (full !== null && number !== baseline) notes.push(own === full ? "identical to the full model's" : `${compared(full, own)[0]}% shared with the full model's answer`);
  const tags = (flags[i] || []).map((flag) => make("span", "tag bad", flag.replace("_", " ")));
  const header = make("header", "", make("b", "", label), make("span", "", ...tags));
  const article = make("article", "answer", header, body, make("footer", "", notes.join(" · ")));
  article.style.setProperty("--c", colour);
  return article;
}

// The words of a text, with those marked that it alone has, and those of another text that it lacks.
function marked(base, text) {
  const [from, to] = [base, text].map((one) => Array.from(data.texts[one])); // lengths count characters, not UTF-16 units
  const lengths = compared(base, text).slice(1), parts = [];
  for (let at = 0, i = 0, j = 0; at < lengths.length; at += 3) {
    const [equal, missing, added] = lengths.slice(at, at + 3);
    const same = to.slice(j, j + equal).join(""), gone = from.slice(i + equal, i + equal + missing).join("");
    const [, before, own, after] = to.slice(j + equal, j + equal + added).join("").match(/^(\s*)([^]*?)(\s*)$/);
    parts.push(same);
    if (gone.trim()) parts.push(make("del", "", before ? gone.trimEnd() : gone));
    parts.push(before, ...(own ? [make("ins", "", own)] : []), after);
    [i, j] = [i + equal + missing, j + equal + added];
  }
  return parts;
}

// Shows the answers of one point beside the full model's.
function read(row) {
  const which = data.sets.findIndex((one) => one.runs.some((run) => run.row === row));
  keep("set", which ? String(which) : "");
  const run = set().runs.findIndex((one) => one.row === row);
  keep("runs", [...new Set([set().runs[run].baseline ?? run, run])].join("|"));
  byId("examples").scrollIntoView();
  byId("reader").focus({ preventScroll: true });
}

// Spreads cards evenly: no last row with a single card, if the width allows it.
function spread(grid) {
  const count = grid.children.length, gap = 16, least = grid.matches(".cards") ? 225 : 300;
  const most = Math.max(1, Math.min(count, Math.floor((grid.clientWidth + gap) / (least + gap))));
  const fits = Array.from({ length: most }, (_, i) => most - i);
  const even = (across) => count % across === 0 && 2 * across > most;
  const across = fits.find(even) || fits.find((one) => count % one !== 1) || 1;
  grid.style.gridTemplateColumns = `repeat(${across}, minmax(0, ${across > 1 || most > 1 ? "560px" : "1fr"}))`;
}

// Tells above a table that it is wider than its box; page.css fades the edge that hides columns.
function hint(box) {
  const hidden = box.scrollWidth - box.clientWidth;
  box.previousElementSibling.hidden = hidden < 2;
  box.classList.toggle("beyond", hidden - box.scrollLeft >= 2);
}

// What depends on the width of the window.
function fit() {
  all(".cards, .answers").forEach(spread);
  all(".scroll, .wide").forEach(hint);
}

function draw() {
  for (const control of all("input[name], select[name], button[name]")) {
    const now = state.get(control.name) || "";
    if (control.type === "checkbox") control.checked = now !== "0";
    else if (control.type !== "button") control.value = now;
    else control.ariaPressed = String("facet" in control.dataset ? chosen(control.name).includes(control.value) : now === control.value);
  }
  document.documentElement.dataset.theme = state.get("theme") || "";
  drawPoints();
  if (data.sets.length) drawReader();
  fit();
}

function pressed(button) {
  const { id, name, value } = button;
  if (name !== "runs" && button.closest(".filters")) limit = STEP;
  if (id === "theme") {
    const dark = state.get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    keep("theme", dark === "dark" ? "light" : "dark");
  } else if (id === "more") limit += STEP;
  else if (id === "reset") [...Object.keys(column), "q", "gate", "sort"].forEach((key) => keep(key, ""));
  else if (id === "previous" || id === "next") step(id === "next" ? 1 : -1);
  else if (button.matches("th button")) sortBy(button.parentElement);
  else if (button.matches(".read")) read(Number(value));
  else if (name === "runs") keep(name, toggled(picked().map(String), value) || "none");
  else if ("facet" in button.dataset) keep(name, toggled(chosen(name), value));
  else if (name === "gate") keep(name, state.has(name) ? "" : value);
  else keep(name, value);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  pressed(button);
  draw();
});
document.addEventListener("input", ({ target }) => {
  keep(target.name, target.type === "checkbox" ? (target.checked ? "" : "0") : target.value);
  if (target.name === "set") keep("runs", "");
  if (["set", "find", "order"].includes(target.name)) keep("ex", "");
  if (target.closest(".filters")) limit = STEP;
  draw();
});
byId("reader")?.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 }[event.key];
  if (!by || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  event.preventDefault();
  step(by);
  draw();
});
all(".scroll, .wide").forEach((box) => box.addEventListener("scroll", () => hint(box)));
addEventListener("resize", fit);
draw();
