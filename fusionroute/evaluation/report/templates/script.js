"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
document.documentElement.classList.add("js");

// Everything a model wrote reaches the page as text, never as markup.
const element = (tag, options = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (key.includes("-") || key === "lang") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
};
// Control characters are shown as their pictures, and what turns the direction of text by its number.
const visible = (text) => text
  .replace(/[\x00-\x08\x0b-\x1f\x7f]/g, (c) => String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)))
  .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f]/g, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase()}⟩`);
const isRight = (answer) => answer !== null && (answer.score ?? 0) >= 0.5;
const percent = (share) => `${Math.round(100 * share)} %`;

// Tabs: without script everything is shown one below the other, and so it is in print.
for (const group of document.querySelectorAll("[data-tabs]")) {
  const tabs = [...group.querySelectorAll(".tab")];
  const bar = element("div", { class: "tab-buttons" });
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.hidden = tab !== chosen;
      tab.button.setAttribute("aria-pressed", String(tab === chosen));
    }
  };
  for (const tab of tabs) {
    tab.button = element("button", { type: "button", textContent: tab.dataset.tab, onclick: () => choose(tab) });
    bar.append(tab.button);
  }
  group.prepend(bar);
  bar.hidden = tabs.length < 2;
  choose(tabs.find((tab) => "first" in tab.dataset) ?? tabs[0]);
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));

// Tables: numbers the largest first, then the smallest first, then as they came; a missing value is always last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.querySelectorAll("thead th button")].map((button) => button.closest("th"));
  headings.forEach((heading, column) => {
    const orders = column === 0 ? ["ascending", "descending"] : ["descending", "ascending"];
    heading.querySelector("button").addEventListener("click", () => {
      const order = orders[orders.indexOf(heading.getAttribute("aria-sort")) + 1];
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      if (order) heading.setAttribute("aria-sort", order);
      body.append(...(order ? sorted(original, column, order === "ascending" ? 1 : -1) : original));
    });
  });
}
function sorted(rows, column, sign) {
  const key = (row) => {
    const cell = row.cells[column];
    return column === 0 ? cell.textContent : cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  return [...rows].sort((first, second) => {
    const [a, b] = [key(first), key(second)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
  });
}

if (!data.tasks.length) {
  for (const id of ["viewer", "failed"]) byId(id).replaceWith(element("p", { class: "note", textContent: "No examples were recorded." }));
  return;
}

const options = (select, pairs, chosen) => {
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value: String(value), textContent: text })));
  if (pairs.some(([value]) => String(value) === String(chosen))) select.value = String(chosen);
};
const numbered = (names) => names.map((name, at) => [at, name]);
const accuracyHere = (method) => {
  const answers = data.tasks.flatMap((task) => task.items.map((item) => item.answers[method])).filter((a) => a);
  return answers.length ? answers.filter(isRight).length / answers.length : -1;
};

// The viewer.
const FILTERS = {
  all: ["all", () => true],
  both: ["both right", (left, right) => left && right],
  left: ["only left right", (left, right) => left && !right],
  right: ["only right right", (left, right) => !left && right],
  neither: ["both wrong", (left, right) => !left && !right],
};
const view = { at: 0 };
const field = { task: byId("task"), left: byId("left"), right: byId("right"), filter: byId("filter") };
const chosenTask = () => data.tasks[Number(field.task.value)];
const pairOf = (item) => [item.answers[Number(field.left.value)], item.answers[Number(field.right.value)]];

// A question that one of the two was never asked is neither right nor wrong: it stands under "all" alone.
const itemsOf = (filter) => chosenTask().items.filter((item) => {
  const pair = pairOf(item);
  return filter === "all" || (!pair.includes(null) && FILTERS[filter][1](...pair.map(isRight)));
});
const shownItems = () => itemsOf(field.filter.value || "all");

function fillFilter() {
  const counted = Object.entries(FILTERS).map(([value, [text]]) => [value, `${text} (${itemsOf(value).length})`]);
  options(field.filter, counted, field.filter.value || "all");
}

function show() {
  fillFilter();
  const items = shownItems();
  view.at = Math.max(0, Math.min(view.at, items.length - 1));
  const item = items[view.at];
  byId("position").textContent = items.length ? `${view.at + 1} of ${items.length}` : "none";
  byId("previous").disabled = view.at === 0;
  byId("next").disabled = view.at >= items.length - 1;
  hideTip();
  if (!item) {
    byId("question").replaceChildren(element("p", { class: "empty", textContent: "No question here is of this kind." }));
    for (const side of ["left", "right"]) byId(`answer-${side}`).hidden = true;
    byId("token-legend").replaceChildren();
    return;
  }
  const task = chosenTask();
  const some = task.asked > task.items.length ? ` · ${task.items.length} of ${task.asked} are in this page` : "";
  byId("question").replaceChildren(element("div", { class: "question" },
    element("div", {}, element("h4", { textContent: `Question ${item.id} of ${task.name}${some}` }), textBox(item.prompt)),
    element("div", {}, element("h4", { textContent: "Wanted" }), textBox(item.target))));
  for (const side of ["left", "right"]) showAnswer(byId(`answer-${side}`), Number(field[side].value), item);
  showLegend(pairOf(item));
}

function textBox(text) {
  return text === "" ? element("div", { class: "empty", textContent: "(empty)" })
    : element("div", { class: "text", dir: "auto", textContent: visible(text) });
}

function showAnswer(place, method, item) {
  const answer = item.answers[method];
  place.hidden = false;
  place.className = answer === null ? "" : isRight(answer) ? "right" : "wrong";
  const heading = element("h4", {}, element("strong", { textContent: data.methods[method] }));
  if (answer === null) {
    place.replaceChildren(heading, element("div", { class: "empty", textContent: "not answered: this cell has no result" }));
    return;
  }
  const partly = answer.score !== null && answer.score !== 0 && answer.score !== 1 ? ` (score ${Number(answer.score.toPrecision(3))})` : "";
  heading.append(element("span", { class: "mark", textContent: (isRight(answer) ? "✓ right" : "✗ wrong") + partly }));
  if (answer.tokens) heading.append(element("span", { textContent: answer.written === 1 ? "1 token" : `${answer.written} tokens` }));
  if (answer.finish) heading.append(element("span", { textContent: ENDINGS[answer.finish] ?? `ended: ${answer.finish}` }));
  place.replaceChildren(heading, answer.tokens ? tokenBox(answer) : textBox(answer.text));
  if (answer.tokens) place.append(split(answer));
}
const ENDINGS = { stop: "ended by itself", length: "cut at the longest length allowed" };

const at = (numbers, index) => (typeof numbers === "number" ? numbers : numbers[index]);
const isAgainst = (decider) => data.deciders[decider] === "router" || data.deciders[decider] === "neither";
// Where models check each other's tokens, the verdict says more than the decider does.
const verdictOf = (answer, index) => (answer.verdict === undefined ? null : data.verdicts[at(answer.verdict, index)]);
const ENSEMBLED = ["ensembled", "replaced", "continued"];
const countOf = (answer, ...names) => answer.tokens.filter((_, index) => names.includes(verdictOf(answer, index).name)).length;
// Where nearly every token is ensembled, frames around all of them would say nothing.
const isMostlyEnsembled = (answer) => (answer.isMostly ??= countOf(answer, ...ENSEMBLED) > 0.9 * answer.tokens.length);
function marksOf(answer, index) {
  const verdict = verdictOf(answer, index);
  if (!verdict || !verdict.name) return isAgainst(at(answer.decided, index)) ? ["against"] : [];
  const marks = ENSEMBLED.includes(verdict.name) && !isMostlyEnsembled(answer) ? ["ensembled"] : [];
  return verdict.name === "replaced" ? [...marks, "against"] : marks;
}

function tokenBox(answer) {
  const box = element("div", { class: "text", dir: "auto" });
  answer.tokens.forEach((text, index) => {
    const expert = data.experts[at(answer.by, index)];
    const classes = ["token", ...marksOf(answer, index)];
    if (expert.colour) classes.push("coloured");
    if (text.startsWith("\n")) classes.push("line");
    const isEnd = text === "" && index === answer.written - 1 && answer.finish === "stop";
    if (isEnd) classes.push("end");
    const span = element("span", { class: classes.join(" "), textContent: isEnd ? "" : visible(text) });
    if (expert.colour) span.style.setProperty("--by", expert.colour);
    span.about = { answer, index };
    box.append(span);
  });
  const rest = answer.written - answer.tokens.length;
  if (rest > 0) box.append(element("span", { class: "empty", textContent: ` … ${rest} more tokens` }));
  return box;
}

function split(answer) {
  const counts = new Map();
  answer.tokens.forEach((_, index) => counts.set(at(answer.by, index), (counts.get(at(answer.by, index)) ?? 0) + 1));
  const line = element("div", { class: "split" });
  for (const [expert, count] of [...counts].sort((a, b) => a[0] - b[0])) {
    const { name, colour } = data.experts[expert];
    const part = element("span");
    if (colour) {
      const swatch = element("i", { class: "swatch" });
      swatch.style.background = colour;
      part.append(swatch);
    }
    part.append(`${name} ${percent(count / answer.tokens.length)}`);
    line.append(part);
  }
  if (answer.verdict !== undefined) {
    const [asked, replaced] = [countOf(answer, "ensembled", "replaced"), countOf(answer, "replaced")];
    line.append(element("span", { textContent: `ensembled ${asked} of ${answer.tokens.length}` + (replaced ? `, ${replaced} of them replaced` : "") }));
  }
  return line;
}

function showLegend(answers) {
  const written = answers.filter((answer) => answer && answer.tokens);
  const marks = new Set(written.flatMap((answer) => answer.tokens.flatMap((_, index) => marksOf(answer, index))));
  const isChecked = written.some((answer) => answer.verdict !== undefined);
  const isNearlyAll = written.some((answer) => answer.verdict !== undefined && isMostlyEnsembled(answer));
  const place = byId("token-legend");
  place.replaceChildren();
  if (written.length) place.append(element("span", { textContent: "Each token has the colour of the expert that wrote it; point at one for more." }));
  if (marks.has("ensembled")) place.append(element("span", {}, element("span", { class: "ensembled-key", textContent: "framed" }), ": the ensemble was asked" + (isNearlyAll ? " (left out where that is nearly everywhere)" : "")));
  if (marks.has("against")) place.append(element("span", {}, element("span", { class: "against-key", textContent: "underlined" }), `: the ${isChecked ? "drafter" : "expert"} alone would have written something else`));
}

// What is known of a token, on hover or touch.
const tip = byId("tip");
const DECIDED = {
  both: "the router's first choice as well as the expert's",
  expert: "the expert's first choice",
  router: "the router's first choice; the expert alone would have written something else",
  neither: "nobody's first choice alone; the sum chose it",
};
let pointed = null;
function hideTip() {
  tip.hidden = true;
  if (pointed) pointed.classList.remove("shown");
  pointed = null;
}
// Each model's probability of its own token at this place; empty where the others were not asked.
function supportTable(answer, index) {
  const found = Object.entries(answer.support ?? {}).map(([name, shares]) => [name, shares[index]]);
  if (!found.some(([, share]) => typeof share === "number")) return "";
  const table = element("table", { class: "support" });
  for (const [name, share] of found) {
    const bar = element("i");
    bar.style.width = `${100 * (share ?? 0)}%`;
    table.append(element("tr", {}, element("th", { textContent: name }),
      element("td", { textContent: typeof share === "number" ? Number(share.toPrecision(2)) : "–" }),
      element("td", { class: "bar" }, bar)));
  }
  return table;
}
function showTip(token) {
  hideTip();
  pointed = token;
  token.classList.add("shown");
  const { answer, index } = token.about;
  const verdict = verdictOf(answer, index);
  const decider = data.deciders[at(answer.decided, index)];
  const expert = data.experts[at(answer.by, index)].name;
  const said = verdict && verdict.name ? verdict.meaning : DECIDED[decider] ?? String(decider ?? "");
  tip.replaceChildren(element("b", { textContent: expert }), ` · token ${index + 1}`, element("br"), said, supportTable(answer, index));
  tip.hidden = false;
  const [box, own] = [token.getClientRects()[0] ?? token.getBoundingClientRect(), tip.getBoundingClientRect()];
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
  tip.style.top = `${box.bottom + own.height + 10 > innerHeight ? box.top - own.height - 6 : box.bottom + 6}px`;
}
for (const kind of ["pointerover", "click"]) {
  document.addEventListener(kind, (event) => {
    const token = event.target instanceof Element ? event.target.closest(".token") : null;
    if (token) showTip(token);
    else hideTip();
  });
}
document.addEventListener("scroll", hideTip, { passive: true, capture: true });

const step = (by) => {
  view.at += by;
  show();
};
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
for (const select of Object.values(field)) {
  select.addEventListener("change", () => {
    view.at = 0;
    show();
  });
}
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest && event.target.closest("select, input, textarea, .scroll")) return;
  const box = byId("viewer").getBoundingClientRect();
  if (box.bottom < 0 || box.top > innerHeight) return; // the keys belong to the viewer only while it can be seen
  event.preventDefault();
  if (by > 0 ? !byId("next").disabled : !byId("previous").disabled) step(by);
});

// The failures: a list that leads into the viewer.
const failed = { method: byId("failed-method"), task: byId("failed-task"), finish: byId("failed-finish") };
function failures() {
  const method = Number(failed.method.value);
  return data.tasks.flatMap((task, taskAt) => task.items
    .filter((item) => item.answers[method] && !isRight(item.answers[method]))
    .map((item) => ({ task, taskAt, item, answer: item.answers[method] })));
}
function listFailures() {
  const all = failures();
  const tasks = [["", `all tasks (${all.length})`]];
  data.tasks.forEach((task, index) => {
    const count = all.filter((found) => found.taskAt === index).length;
    if (count) tasks.push([index, `${task.name} (${count})`]);
  });
  options(failed.task, tasks, failed.task.value);
  const here = all.filter((found) => failed.task.value === "" || found.taskAt === Number(failed.task.value));
  const endings = [...new Set(here.map((found) => found.answer.finish ?? "–"))].sort();
  options(failed.finish, [["", "any way"], ...endings.map((name) => [name, name])], failed.finish.value);
  const rows = here.filter((found) => failed.finish.value === "" || (found.answer.finish ?? "–") === failed.finish.value);
  byId("failed-count").textContent = rows.length === 1 ? "1 wrong answer" : `${rows.length} wrong answers`;
  byId("failed-rows").replaceChildren(...rows.map(failureRow));
}
const textOf = (answer) => (answer.tokens ? answer.tokens.join("") : answer.text);
const glimpse = (text) => visible(text.slice(0, 160).replace(/\s*\n\s*/g, " ↵ "));
function failureRow(found) {
  const { task, item, answer } = found;
  const others = item.answers.filter((other, method) => other && method !== Number(failed.method.value));
  const open = () => openFailure(found);
  return element("tr", { tabIndex: 0, onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } },
    element("td", { textContent: task.name }),
    element("td", { textContent: glimpse(item.prompt) }),
    element("td", { class: "text-cell", textContent: glimpse(item.target) }),
    element("td", { class: "text-cell", textContent: glimpse(textOf(answer)) || "(empty)" }),
    element("td", { textContent: answer.finish ?? "–" }),
    element("td", { textContent: `${others.filter(isRight).length} of ${others.length}` }));
}
function openFailure({ taskAt, item }) {
  const method = Number(failed.method.value);
  const right = ranked.find((other) => other !== method && isRight(item.answers[other]));
  field.task.value = String(taskAt);
  field.left.value = String(method);
  if (right !== undefined) field.right.value = String(right);
  field.filter.value = "all";
  view.at = shownItems().indexOf(item);
  show();
  byId("examples").scrollIntoView();
}
for (const select of Object.values(failed)) select.addEventListener("change", listFailures);

const ranked = data.methods.map((_, index) => index).sort((a, b) => accuracyHere(b) - accuracyHere(a));
const reference = Math.max(0, data.methods.indexOf(data.reference));
const rival = data.methods.indexOf(data.rival) >= 0 ? data.methods.indexOf(data.rival) : ranked.find((m) => m !== reference) ?? 0;
options(field.task, data.tasks.map((task, index) => [index, task.name]));
options(field.left, numbered(data.methods), rival);
options(field.right, numbered(data.methods), reference);
options(failed.method, numbered(data.methods), reference);
for (const id of ["viewer", "failed"]) byId(id).hidden = false;
show();
listFailures();
})();
