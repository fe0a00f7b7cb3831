// Who may write, and how they are told apart: by colour and by letter, the same for every model on the page.

const COLOURS = 7; // Okabe and Ito's, as in the terminal; the classes by-0 … by-6 of style.css

export class Writers {
  #known = new Map();

  /** Names get their places in the order in which the offered models name them: the team's experts first. */
  constructor(models) {
    for (const model of models) for (const name of model.fusionroute.writers) this.of(name);
  }

  /** @returns {{letter: string, className: string}} */
  of(name) {
    if (!this.#known.has(name)) this.#known.set(name, this.#next(name));
    return this.#known.get(name);
  }

  #next(name) {
    const at = this.#known.size;
    const stripes = at < COLOURS ? "" : ` lap-${1 + (Math.floor(at / COLOURS) - 1) % 2}`;
    return { letter: this.#letter(name), className: `by-${at % COLOURS}${stripes}` };
  }

  #letter(name) {
    const taken = new Set([...this.#known.values()].map((known) => known.letter));
    const candidates = [...name.toUpperCase()].filter((character) => /[\p{L}\p{N}]/u.test(character));
    return candidates.find((letter) => !taken.has(letter)) ?? String(this.#known.size + 1);
  }
}
