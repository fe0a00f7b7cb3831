// A conversation: turns of one question and an answer, or two answers side by side.
import { ApiError, stream } from "./api.js";
import { Answer } from "./answer.js";
import { element, visible } from "./dom.js";

const CANDIDATES = 5;
const PLAIN_LIMIT = 256; // tokens of an answer where none is asked for and the API's own limit is 16
const NEAR = 80; // pixels from the end of the conversation within which it follows what is written
const MAY_PASS = [401, 408, 429]; // of the refusals those after which the same may be asked again

export class Conversation {
  #turns = [];
  #running = null;
  #follows = true;

  /** @param on what the page does: needsKey(message), announce(words), changed(), sent(prompt), refused(prompt) */
  constructor(view, writers, inspector, on) {
    Object.assign(this, { view, writers, inspector, on, list: view.querySelector("#turns") });
    new ResizeObserver(() => this.#follows && !this.isEmpty && this.#toEnd()).observe(this.list);
    view.addEventListener("scroll", () => {
      this.#follows = view.scrollHeight - view.scrollTop - view.clientHeight < NEAR;
    });
  }

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
    await this.#run(turn, models.map((model, side) => ({ model, side, remember: options.remember })));
  }

  stop() { this.#running?.abort(); }

  clear() {
    this.stop();
    this.#running = null;
    this.#turns = [];
    this.list.replaceChildren();
    this.inspector.close();
    this.on.changed();
    this.on.announce("");
  }

  async #run(turn, jobs) {
    const running = this.#running = new AbortController();
    this.on.changed();
    this.on.announce("");
    this.on.sent(turn.prompt);
    const answers = await Promise.all(jobs.map((job) => this.#answer(turn, job, running.signal)));
    if (this.#running !== running) return; // a new conversation has begun
    this.#running = null;
    this.on.changed();
    this.on.announce(answers.map((answer) => answer.inWords()).join("; "));
    if (turn.answers.every((answer) => answer.isRefused)) this.on.refused(turn.prompt);
  }

  async #answer(turn, job, signal) {
    const { model, side } = job;
    const answer = new Answer(model, this.writers, this.inspector);
    const messages = this.#messages(turn, job);
    const old = turn.answers[side];
    if (old) old.node.replaceWith(answer.node);
    else turn.node.append(answer.node);
    turn.answers[side] = answer;
    try {
      for await (const chunk of this.#chunks(model, messages, turn.options.fields, signal)) answer.take(chunk);
      answer.finish();
    } catch (error) {
      if (signal.aborted) answer.stopped();
      else this.#failed(error, answer, turn, { ...job, saidBefore: messages.length - 1 });
    }
    return answer;
  }

  #failed(error, answer, turn, { saidBefore, ...job }) {
    if (!(error instanceof ApiError)) console.error(error);
    const again = (label, changes) => {
      const onclick = () => this.isRunning || this.#run(turn, [{ ...job, ...changes }]);
      return element("button", { type: "button", textContent: label, onclick });
    };
    answer.isRefused = error.status >= 400 && error.status < 500 && !MAY_PASS.includes(error.status);
    if (isTooLong(error) && saidBefore) {
      const hint = "The earlier turns went along: ask without them, or start over with New chat.";
      answer.fail(`${error.message} ${hint}`, again("Ask without earlier turns", { remember: false }));
    } else answer.fail(error.message, answer.isRefused ? null : again("Try again", {}));
    if (error.status === 401) this.on.needsKey(error.message);
  }

  #chunks({ id, fusionroute: { chat, candidates } }, messages, fields, signal) {
    const path = chat ? "v1/chat/completions" : "v1/completions";
    // a model without a prompt format continues text: it is given the last message as it is
    const question = chat ? { messages } : { prompt: messages.at(-1).content, max_tokens: PLAIN_LIMIT };
    const told = { stream_options: { include_usage: true }, provenance: true };
    if (candidates) told.candidates = CANDIDATES;
    return stream(path, { model: id, ...question, ...defined(fields), ...told }, signal);
  }

  /** What was said before, as this side heard it, and the question. An answer that failed was not said. */
  #messages(turn, { side, remember }) {
    const before = remember ? this.#turns.slice(0, this.#turns.indexOf(turn)) : [];
    const said = before.flatMap(({ prompt, answers }) => {
      const { text, problem } = answers[side] ?? answers[0];
      return text && !problem ? [{ role: "user", content: prompt }, { role: "assistant", content: text }] : [];
    });
    return [...said, { role: "user", content: turn.prompt }];
  }

  #toEnd() { this.view.scrollTop = this.view.scrollHeight; }
}

/** Whether fewer messages would do: with a field to blame, it is that field that asks for too much. */
const isTooLong = ({ code, param }) => code === "context_length_exceeded" || (code === "request_too_large" && !param);
/** What is empty is not sent: the server's own value holds. */
const defined = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
