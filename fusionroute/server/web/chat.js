// A conversation: turns of one question and an answer, or two answers side by side.
import { ApiError, stream } from "./api.js";
import { Answer } from "./answer.js";
import { element, visible } from "./dom.js";

const CANDIDATES = 5;
const PLAIN_LIMIT = 256; // tokens of an answer where none is asked for and the API's own limit is 16
const NEAR = 80; // pixels from the end of the conversation within which it follows what is written

export class Conversation {
  #turns = [];
  #running = null;
  #withoutCandidates = new Set(); // models that cannot name them

  /** @param on what the page does: needsKey(message), announce(words), changed() */
  constructor(view, writers, inspector, on) {
    Object.assign(this, { view, writers, inspector, on, list: view.querySelector("#turns") });
    new ResizeObserver(() => this.#follows && !this.isEmpty && this.#toEnd()).observe(this.list);
    view.addEventListener("scroll", () => { this.#follows = view.scrollHeight - view.scrollTop - view.clientHeight < NEAR; });
  }

  #follows = true;

  get isRunning() { return this.#running !== null; }
  get isEmpty() { return this.#turns.length === 0; }

  /** Ask one model or several the same. */
  async ask(prompt, models, options) {
    const answers = element("div", { className: `answers of-${models.length}` });
    const question = element("p", { className: "question", dir: "auto", textContent: visible(prompt) });
    const turn = { prompt, options, answers: [], node: answers };
    this.#turns.push(turn);
    this.list.append(element("li", {}, question, answers));
    this.#follows = true;
    await this.#run(models.map((model, side) => ({ turn, side, model })));
  }

  stop() { this.#running?.abort(); }

  clear() {
    this.stop();
    this.#turns = [];
    this.list.replaceChildren();
    this.inspector.close();
  }

  async #run(jobs) {
    const running = this.#running = new AbortController();
    this.on.changed();
    const answers = await Promise.all(jobs.map((job) => this.#answer(job, running.signal)));
    if (this.#running === running) this.#running = null;
    this.on.changed();
    this.on.announce(answers.map((answer) => answer.inWords()).join(". "));
  }

  async #answer({ turn, side, model }, signal) {
    const answer = new Answer(model, this.writers, this.inspector);
    const messages = this.#messages(turn, side);
    const old = turn.answers[side];
    if (old) old.node.replaceWith(answer.node);
    else turn.node.append(answer.node);
    turn.answers[side] = answer;
    try {
      for await (const chunk of this.#chunks(model, messages, turn.options.fields, signal)) answer.take(chunk);
      answer.finish();
    } catch (error) {
      if (signal.aborted) answer.stopped();
      else this.#failed(error, answer, { turn, side, model });
    }
    return answer;
  }

  #failed(error, answer, job) {
    if (!(error instanceof ApiError)) console.error(error);
    const isFinal = error.status === 400 || error.status === 404; // the same again is refused again
    answer.fail(error.message, isFinal ? null : () => this.isRunning || this.#run([job]));
    if (error.status === 401) this.on.needsKey(error.message);
  }

  /** Not every method chooses from one distribution: where candidates are refused, the rest is asked for. */
  async *#chunks({ id, fusionroute: { chat } }, messages, fields, signal) {
    const path = chat ? "v1/chat/completions" : "v1/completions";
    // a model without a prompt format continues text: it is given the last message as it is
    const question = chat ? { messages } : { prompt: messages.at(-1).content, max_tokens: PLAIN_LIMIT };
    const body = { model: id, ...question, ...defined(fields), stream_options: { include_usage: true }, provenance: true };
    if (!this.#withoutCandidates.has(id)) {
      try {
        return yield* stream(path, { ...body, candidates: CANDIDATES }, signal);
      } catch (error) {
        if (error.param !== "candidates") throw error;
        this.#withoutCandidates.add(id);
      }
    }
    yield* stream(path, body, signal);
  }

  /** What was said before, as this side heard it, and the question. */
  #messages(turn, side) {
    const before = turn.options.remember ? this.#turns.slice(0, this.#turns.indexOf(turn)) : [];
    const said = before.flatMap(({ prompt, answers }) => {
      const text = (answers[side] ?? answers[0]).text;
      return text ? [{ role: "user", content: prompt }, { role: "assistant", content: text }] : [];
    });
    return [...said, { role: "user", content: turn.prompt }];
  }

  #toEnd() { this.view.scrollTop = this.view.scrollHeight; }
}

/** What is empty is not sent: the server's own value holds. */
const defined = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
