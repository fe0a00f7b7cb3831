// One model's answer: its text by token, its legend, and a line on how it went.
import { element, plural } from "./dom.js";
import { Legend } from "./legend.js";
import { Tokens } from "./tokens.js";

const ENDS = { stop: "complete", length: "cut off at the token limit", cancelled: "stopped" };

export class Answer {
  text = ""; // what the model said, for the turns that follow
  #drawing = 0;
  #times = { asked: performance.now(), first: null, last: null };

  constructor(model, writers, inspector) {
    this.model = model;
    this.legend = new Legend(model.fusionroute.writers, writers);
    this.tokens = new Tokens(writers, inspector, `Tokens of the answer of ${model.id}`);
    this.whole = element("p", { className: "unseen whole" }); // to be read as text; the tokens are many pieces
    this.foot = element("p", { className: "foot" });
    const heading = element("h2", { textContent: model.id });
    const parts = [heading, this.legend.node, this.whole, this.tokens.node, this.foot];
    this.node = element("article", { className: "answer writing" }, ...parts);
  }

  /** Takes one chunk of the stream. */
  take(chunk) {
    for (const choice of chunk.choices) {
      const text = choice.delta?.content ?? choice.text ?? "", records = choice.provenance ?? [];
      this.text += text;
      for (const record of records) this.#write(record);
      this.tokens.addText(text.slice(records.reduce((length, record) => length + record.text.length, 0)));
      if (choice.finish_reason) this.reason = choice.finish_reason;
    }
    if (chunk.usage) this.usage = chunk.usage;
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  /** The stream has ended well. */
  finish() {
    this.#end(ENDS[this.reason] ?? this.reason);
  }

  stopped() {
    this.#end(ENDS.cancelled);
  }

  /** @param remedy what can be done about it: a button, or null */
  fail(message, remedy) {
    this.#end("failed");
    this.foot.hidden = this.isBlank; // the message says it all
    this.problem = message;
    const words = element("p", { className: "error" }, element("span", { textContent: message }));
    if (remedy) words.append(" ", remedy);
    this.node.append(words);
  }

  get isBlank() { return this.tokens.length === 0; }

  /** For those who do not see it: `answer complete, 54 tokens: math 60 %, …`. */
  inWords() {
    const figures = this.isBlank ? [] : [this.legend.inWords()];
    return [`${this.model.id}: answer ${this.outcome}`, ...figures, ...(this.problem ? [this.problem] : [])].join(", ");
  }

  #write(record) {
    this.#times.first ??= performance.now();
    this.#times.last = performance.now();
    this.tokens.add(record);
    this.legend.count(record);
  }

  #draw() {
    this.#drawing = 0;
    this.legend.draw();
  }

  #end(outcome) {
    this.outcome = outcome;
    this.#draw();
    this.whole.textContent = this.text;
    this.legend.node.hidden = this.tokens.node.hidden = this.isBlank;
    this.node.classList.remove("writing");
    this.tokens.node.ariaBusy = "false";
    this.foot.textContent = [outcome, ...this.#figures()].join(" · ");
  }

  #figures() {
    const { asked, first, last } = this.#times;
    const count = this.tokens.length;
    if (this.isBlank) return [];
    const figures = [plural(this.usage?.completion_tokens ?? count, "token")];
    if (count > 1 && last > first) figures.push(`${((count - 1) / ((last - first) / 1000)).toPrecision(3)} tokens/s`);
    figures.push(`first after ${((first - asked) / 1000).toFixed(2)} s`);
    if (this.usage) figures.push(`prompt ${plural(this.usage.prompt_tokens, "token")}`);
    return figures;
  }
}
