// Who wrote how much: a bar and a line of names, counted while the answer grows.
import { element, percent, plural } from "./dom.js";

export const AGAINST_EXPERT = ["router", "neither"]; // deciders of a token that the expert alone would not have written

/** How a token is marked beside its colour, as in the terminal: where models check each other, by their verdict. */
export const isMarked = ({ verdict, decided_by: decider }) => (
  verdict ? verdict === "replaced" : AGAINST_EXPERT.includes(decider));
export const isAsked = (record) => record.ensembled === true || record.verdict === "continued";

export class Legend {
  #counts = new Map();
  #entries = new Map();
  #total = 0;
  #marked = 0;
  #asked = 0;
  #checked = false;

  constructor(names, writers) {
    this.writers = writers;
    this.bar = element("div", { className: "shares", "aria-hidden": "true" });
    this.list = element("ul", { className: "names" });
    this.marks = element("p", { className: "marks" });
    this.node = element("div", { className: "legend" }, this.bar, this.list, this.marks);
    for (const name of names) this.#entry(name);
  }

  count(record) {
    this.#entry(record.expert);
    this.#counts.set(record.expert, this.#counts.get(record.expert) + 1);
    this.#total += 1;
    this.#marked += Number(isMarked(record));
    this.#asked += Number(record.ensembled === true);
    this.#checked ||= Boolean(record.verdict);
  }

  /** Shows what was counted; apart from `count`, so that many tokens are drawn at once. */
  draw() {
    for (const [name, { segment, figure }] of this.#entries) {
      const count = this.#counts.get(name), share = count / Math.max(this.#total, 1);
      segment.style.flexGrow = count;
      segment.classList.toggle("narrow", share < 0.07);
      figure.textContent = this.#total ? `${percent(share)} · ${count}` : "";
    }
    this.marks.replaceChildren(...this.#explained());
  }

  /** `54 tokens: math 60 %, code 20 %, chat 20 %`. */
  inWords() {
    const shares = [...this.#counts].filter(([, count]) => count).sort((one, other) => other[1] - one[1]);
    const words = shares.map(([name, count]) => `${name} ${percent(count / this.#total)}`).join(", ");
    return `${plural(this.#total, "token")}${words && `: ${words}`}`;
  }

  #entry(name) {
    if (this.#entries.has(name)) return;
    const { letter, className } = this.writers.of(name);
    const segment = element("i", { className, textContent: letter });
    const figure = element("span", { className: "figure" });
    this.bar.append(segment);
    const mark = element("b", { className: `letter ${className}`, textContent: letter, "aria-hidden": "true" });
    this.list.append(element("li", {}, mark, element("span", { textContent: name }), figure));
    this.#entries.set(name, { segment, figure });
    this.#counts.set(name, 0);
  }

  #explained() {
    const parts = [];
    const share = (count) => `${plural(count, "token")} (${percent(count / this.#total)})`;
    if (this.#checked) {
      parts.push(element("b", { textContent: "bold" }), `: the models were asked, ${share(this.#asked)} `);
    }
    if (this.#marked) {
      const why = this.#checked ? "they wrote something else" : "the expert alone would have written something else";
      parts.push(element("u", { textContent: "underlined" }), `: ${why}, ${share(this.#marked)}`);
    }
    return parts;
  }
}
