// The panel that says why a token was written: routing weights, and what each model would have liked.
import { element, oneLine, percent } from "./dom.js";

const DECIDED = {
  both: "Router and expert both had it as their first choice.",
  expert: "It is the expert's own first choice, not the router's.",
  router: "It is the router's first choice; the expert alone would have written something else.",
  neither: "It is the first choice of neither: the expert alone would have written something else.",
};
const AVERAGED = "It comes from an average of the experts; this one counted most for it.";
const ALONE = "One model wrote it alone.";
const VERDICTS = {
  consensus: "Kept: it is the first choice of every model that checked it.",
  majority: "Kept: together the models give their tokens here more than one half.",
  gate: "Kept: the drafter alone is sure enough.",
  boundary: "Kept: a model has no token boundary here, so it could not be asked.",
  alone: "Kept: a special token, the inside of a character, or nobody to ask.",
  accepted: "Kept: drawn by the drafter, accepted by the ensemble.",
  ensembled: "Ensembled: the ensemble chose the drafter's own token.",
  replaced: "Ensembled: the ensemble chose another token than the drafter.",
  continued: "A further token of what the ensemble chose.",
};
const narrow = matchMedia("(max-width: 900px)"); // there the panel lies over the page: see inspector.css

export class Inspector {
  #shown = null;
  #isPinned = false;
  #isClosing = false;

  /** @param names whose colours are explained while no token is shown */
  constructor(node, writers, names) {
    Object.assign(this, { node, writers, names });
    this.close();
  }

  get isOpen() { return this.#shown !== null; }

  /** A token that is pointed at is shown until another is; one that was chosen stays. */
  preview(view) {
    if (this.#isPinned || (narrow.matches && !this.isOpen)) return;
    this.#show(view);
  }

  pin(view) {
    if (this.#isClosing) return;
    this.#isPinned = true;
    this.#show(view);
  }

  close() {
    this.#unmark();
    this.#isClosing = true;
    const isFocused = this.node.contains(document.activeElement);
    if (isFocused) this.#shown.span.focus({ preventScroll: true }); // back to where it came from
    this.#isClosing = false;
    this.#isPinned = false;
    this.#shown = null;
    this.node.classList.remove("open");
    this.node.replaceChildren(...this.#key());
  }

  /** How to read an answer, as long as there is nothing else to show. */
  #key() {
    const term = (shown, words) => [element("dt", {}, ...shown), element("dd", { textContent: words })];
    return [
      element("h2", { textContent: "How to read an answer" }),
      element("dl", {},
        ...term(this.names.map((name) => this.#name(name)), "Colour and letter say who wrote a token."),
        ...term([element("u", { textContent: "underlined" })], "Its writer alone would have written something else."),
        ...term(["Point, tap or Tab"], "on a token to see here who had how much weight, and what each would have "
          + "liked to write. Arrow keys walk on, Esc closes.")),
    ];
  }

  #unmark() {
    this.#shown?.span.classList.remove("shown");
    this.#shown?.span.setAttribute("aria-selected", "false");
  }

  #show(view) {
    this.#unmark();
    this.#shown = view;
    const { span, record } = view;
    span.classList.add("shown");
    span.setAttribute("aria-selected", String(this.#isPinned));
    const figures = [...this.#weights(record), ...this.#support(record), ...this.#candidates(record)];
    this.node.replaceChildren(...this.#head(view), ...figures);
    this.node.classList.add("open");
    if (this.#isPinned) span.scrollIntoView({ block: "nearest" });
  }

  #name(name) {
    const { letter, className } = this.writers.of(name);
    return element("span", { className: "name" },
      element("b", { className: `letter ${className}`, textContent: letter, "aria-hidden": "true" }),
      element("span", { textContent: name }));
  }

  #head({ record, at, of }) {
    const { className } = this.writers.of(record.expert), place = `token ${at + 1} of ${of}, written by `;
    const what = element("code", { className: `what ${className}`, textContent: shownAs(record) });
    const close = element("button", { type: "button", className: "icon close", textContent: "×" });
    Object.assign(close, { title: "Close (Esc)", ariaLabel: "Close", onclick: () => this.close() });
    return [
      element("div", { className: "head" }, what, close),
      element("p", { className: "by" }, place, this.#name(record.expert)),
      element("p", { className: "why", textContent: this.#why(record) }),
    ];
  }

  #why(record) {
    if (record.verdict) return VERDICTS[record.verdict] ?? record.verdict;
    if (isRouted(record)) return DECIDED[record.decided_by];
    return hasAny(record.weights) ? AVERAGED : ALONE;
  }

  #weights(record) {
    const title = isRouted(record) ? "Routing weights" : "Weights of the average";
    return hasAny(record.weights) && !record.verdict ? this.#bars(title, record.weights, record.expert) : [];
  }

  #support(record) {
    const title = "How likely each model finds it";
    return hasAny(record.support) ? this.#bars(title, record.support, null) : [];
  }

  #bars(title, shares, chosen) {
    const rows = Object.entries(shares).map(([name, share]) => {
      const bar = element("i", { className: this.writers.of(name).className });
      bar.style.width = `${100 * share}%`;
      const figure = element("td", { className: "figure", textContent: percent(share, 1) });
      const heading = element("th", { scope: "row" }, this.#name(name));
      const row = element("tr", {}, heading, element("td", { className: "bar" }, bar), figure);
      row.classList.toggle("chosen", name === chosen);
      return row;
    });
    const table = element("table", { className: "weights", "aria-label": title }, element("tbody", {}, ...rows));
    return [element("h2", { textContent: title }), table];
  }

  #candidates(record) {
    const lists = Object.entries(record.candidates ?? {});
    if (!lists.length) return [];
    const columns = lists.map(([name, best]) => this.#column(name, best, record));
    const heading = element("h2", { textContent: "Likeliest tokens, in % (framed: written)" });
    return [heading, element("div", { className: "candidates" }, ...columns)];
  }

  #column(name, best, record) {
    const heading = name === "fused" ? element("span", { className: "name", textContent: "fused" }) : this.#name(name);
    const rows = best.map(({ token, token_id: id, logprob }) => row(token, Math.exp(logprob), id === record.token_id));
    if (!best.some(({ token_id: id }) => id === record.token_id)) rows.push(row(record.token, null, true));
    const list = element("ol", { "aria-label": `likeliest tokens of ${name}` }, ...rows);
    return element("section", { className: name === "fused" ? "fused" : "" }, element("h3", {}, heading), list);
  }
}

/** One candidate; null as its probability: below all that are listed. */
function row(token, share, isWritten) {
  const bar = element("i");
  bar.style.width = `${100 * (share ?? 0)}%`;
  const text = element("code", { textContent: oneLine(token) });
  const said = share === null ? "less" : percent(share, 1).replace(" %", "");
  const figure = element("span", { className: "figure", textContent: said });
  const written = isWritten ? element("span", { className: "unseen", textContent: " written" }) : null;
  const item = element("li", { title: token }, bar, text, figure, written);
  item.classList.toggle("written", isWritten);
  return item;
}

const hasAny = (table) => Object.keys(table ?? {}).length > 0;
/** Whether a router had a say; else weights are those of an average. */
const isRouted = (record) => record.decided_by !== "expert" || "router" in (record.candidates ?? {});
const shownAs = (record) => oneLine(record.text) || record.token || "no text";
