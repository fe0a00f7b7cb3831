"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
document.documentElement.classList.add("js");

// Everything that a question says reaches the page as text, never as markup.
const element = (tag, options = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
};
// Control characters are shown as their pictures, and what turns the direction of text by its number.
const visible = (text) => text
  .replace(/[\x00-\x08\x0b-\x1f\x7f]/g, (c) => String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)))
  .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f]/g, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase()}⟩`);
const percent = (share) => `${(100 * share).toFixed(1)} %`.replace("-", "−");

// Tabs: without script everything is shown one below the other, and so it is in print.
for (const group of document.querySelectorAll("[data-tabs]")) {
  const tabs = [...group.querySelectorAll(".tab")];
  const bar = element("div", { className: "tab-buttons", hidden: tabs.length < 2 });
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
  choose(tabs[0]);
}

// Tasks: those that were clicked on stand out, or else the one that is pointed at.
const clouds = [...document.querySelectorAll(".cloud")];
const marks = clouds.flatMap((cloud) => [...cloud.querySelectorAll("path")]);
const buttons = [...document.querySelectorAll(".task-legend button")];
const pressed = new Set();
function standOut(tasks) {
  for (const cloud of clouds) cloud.classList.toggle("some", tasks.size > 0);
  for (const mark of marks) mark.classList.toggle("chosen", tasks.has(mark.dataset.t));
}
for (const button of buttons) {
  const task = button.dataset.task;
  button.addEventListener("click", () => {
    if (!pressed.delete(task)) pressed.add(task);
    if (pressed.size === buttons.length) pressed.clear();
    for (const each of buttons) each.setAttribute("aria-pressed", String(pressed.has(each.dataset.task)));
    standOut(pressed);
  });
  button.addEventListener("pointerenter", () => standOut(pressed.size ? pressed : new Set([task])));
  button.addEventListener("pointerleave", () => standOut(pressed));
}

// A question that is pointed at is shown in every picture.
const byQuestion = new Map();
for (const mark of marks) {
  if (!byQuestion.has(mark.dataset.q)) byQuestion.set(mark.dataset.q, []);
  byQuestion.get(mark.dataset.q).push(mark);
}
let shown = [];
function hide() {
  tip.hidden = true;
  for (const mark of shown) mark.classList.remove("shown");
  shown = [];
}
function place(x, y) {
  tip.hidden = false;
  const own = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - own.width - 8))}px`;
  tip.style.top = `${Math.max(8, y + own.height + 18 > innerHeight ? y - own.height - 10 : y + 14)}px`;
}
function showQuestion(mark, x, y) {
  const question = data.questions[Number(mark.dataset.q)];
  const [before, after] = question.right.map((right) => (right ? "✓ right" : "✗ wrong"));
  shown = byQuestion.get(mark.dataset.q);
  for (const each of shown) each.classList.add("shown");
  tip.replaceChildren(
    element("b", { textContent: data.tasks[Number(mark.dataset.t)] }), element("br"),
    `before ${before} · after ${after}`,
    element("p", { textContent: visible(question.text), dir: "auto" }),
    element("p", { textContent: `wanted: ${visible(question.answer)}`, dir: "auto" }));
  place(x, y);
}
function showExpert(map, x, y) {
  const box = map.getBoundingClientRect();
  const [first, second] = data.usage[Number(map.dataset.measure)];
  const layer = Math.min(first.length - 1, Math.max(0, Math.floor(((y - box.top) / box.height) * first.length)));
  const expert = Math.min(first[0].length - 1, Math.max(0, Math.floor(((x - box.left) / box.width) * first[0].length)));
  const [before, after] = [first[layer][expert], second[layer][expert]];
  tip.replaceChildren(
    element("b", { textContent: `layer ${data.layers[layer]}, expert ${expert}` }), element("br"),
    `before ${percent(before)} · after ${percent(after)}`);
  place(x, y);
}
document.addEventListener("pointermove", (event) => {
  hide();
  const mark = event.target.closest?.(".cloud path");
  const map = event.target.closest?.(".heatmap svg");
  if (mark) showQuestion(mark, event.clientX, event.clientY);
  else if (map) showExpert(map, event.clientX, event.clientY);
});
document.addEventListener("scroll", hide, { passive: true, capture: true });
})();
