// The text of an answer, token by token. For assistive technology it is a list to walk through with the arrow keys.
import { element, oneLine, visible } from "./dom.js";
import { AGAINST_EXPERT, isAsked, isMarked } from "./legend.js";

export class Tokens {
  #records = [];
  #spans = [];
  #reachable = null; // the one token that Tab comes to

  /**
   * @param writers who has which colour and letter
   * @param inspector is told which token is looked at: preview(view), pin(view)
   */
  constructor(writers, inspector, label) {
    this.writers = writers;
    this.inspector = inspector;
    this.node = element("div", { className: "tokens", dir: "auto", role: "listbox" });
    Object.assign(this.node, { ariaLabel: label, ariaOrientation: "horizontal", ariaBusy: "true" });
    this.node.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") this.#look("preview", event.target);
    });
    this.node.addEventListener("focusin", (event) => this.#look("pin", event.target));
    this.node.addEventListener("click", (event) => this.#click(event));
    this.node.addEventListener("keydown", (event) => this.#walk(event));
  }

  get length() { return this.#records.length; }

  add(record) {
    const { before, inner, after } = byLine(visible(record.text));
    const span = this.#span(record, inner, this.#records.at(-1));
    span.classList.toggle("begins-line", before !== "");
    span.classList.toggle("ends-line", after !== "");
    span.classList.toggle("silent", record.text === ""); // the end of the answer, or a part of a character
    span.tabIndex = -1;
    if (!this.#reachable) this.#reach(span);
    this.#records.push(record);
    this.#spans.push(span);
    this.node.append(...[before, span, after].filter((part) => part !== ""));
  }

  /** What became ready to be shown without a further token belongs to the last one. */
  addText(text) {
    if (!text || !this.#records.length) return;
    const last = this.#spans.at(-1);
    (last.nextSibling ? this.node : last).append(visible(text)); // not before the line break that the token ends in
    last.classList.remove("silent");
  }

  #span(record, text, previous) {
    const { letter, className } = this.writers.of(record.expert);
    const span = element("span", { className: `token ${className}`, role: "option", "aria-selected": "false" });
    const tag = element("i", { className: "tag", "data-letter": letter }); // no text, so that it is not copied
    if (record.expert !== previous?.expert) span.append(tag);
    span.append(text);
    span.classList.toggle("against", isMarked(record));
    span.classList.toggle("asked", isAsked(record));
    span.dataset.at = this.#records.length;
    span.setAttribute("aria-label", described(record));
    return span;
  }

  #look(how, target) {
    const span = target.closest(".token");
    if (!span) return;
    const at = Number(span.dataset.at);
    if (how === "pin") this.#reach(span);
    this.inspector[how]({ span, at, of: this.#records.length, record: this.#records[at] });
  }

  #reach(span) {
    if (this.#reachable) this.#reachable.tabIndex = -1;
    span.tabIndex = 0;
    this.#reachable = span;
  }

  #click(event) {
    const span = event.target.closest(".token");
    if (!span || String(getSelection())) return; // text that is being marked is not a token that is tapped
    if (span === document.activeElement) this.#look("pin", span);
    else span.focus();
  }

  #walk(event) {
    const at = this.#spans.indexOf(event.target);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return this.#look("pin", event.target);
    }
    const to = {
      ArrowLeft: () => at - 1, ArrowRight: () => at + 1, Home: () => 0, End: () => this.#spans.length - 1,
      ArrowUp: () => this.#onNextLine(at, -1), ArrowDown: () => this.#onNextLine(at, 1),
    }[event.key]?.();
    if (to === undefined) return;
    event.preventDefault();
    const span = this.#spans[Math.min(Math.max(to, 0), this.#spans.length - 1)];
    span.focus({ preventScroll: true });
    span.scrollIntoView({ block: "nearest" });
  }

  /** The token on the next line that stands nearest to straight above or below. */
  #onNextLine(from, step) {
    const middle = (span) => {
      const box = span.getClientRects()[0];
      return box && [(box.left + box.right) / 2, box.top];
    };
    const [x, y] = middle(this.#spans[from]) ?? [0, 0];
    let best = from, line = null, distance = Infinity;
    for (let at = from + step; at in this.#spans; at += step) {
      const [left, top] = middle(this.#spans[at]) ?? [0, y];
      if (Math.abs(top - y) < 8) continue;
      if (line !== null && Math.abs(top - line) > 8) break;
      line = top;
      if (Math.abs(left - x) < distance) [best, distance] = [at, Math.abs(left - x)];
    }
    return best;
  }
}

/** A token is one thing to point at: the line breaks around its text stand outside of it, a ↵ inside for them. */
function byLine(text) {
  const [, before, inner, after] = /^(\n*)(.*?)(\n*)$/s.exec(text);
  return inner === "" ? { before: "", inner, after: before } : { before, inner, after };
}

function described({ text, expert, decided_by: decidedBy, verdict }) {
  const spoken = oneLine(text).replace(/␣/g, " ").replace(/↵/g, " line break ").replace(/⇥/g, " tab ");
  const shown = text === "" ? "no text" : spoken;
  const mark = verdict ? `, ${verdict}` : AGAINST_EXPERT.includes(decidedBy) ? ", not the expert's own choice" : "";
  return `${shown.trim() || "space"}, by ${expert}${mark}`;
}
