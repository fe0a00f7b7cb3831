// What models, servers and people write reaches the page as text, never as markup: there is no innerHTML here.

/** An element with properties (or attributes, where there is no such property) and children. */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Control characters as their pictures; what turns the direction of text as its number. */
export const visible = (text) => text
  .replace(/[\x00-\x08\x0b-\x1f\x7f]/g, (c) => String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)))
  .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f]/g, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase()}⟩`);

/** One token on one line: spaces and line breaks can be seen. */
export const oneLine = (text) => visible(text).replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");

/** Nothing that occurs is 0 %, and nothing is 100 % before it is all. */
export function percent(share, digits = 0) {
  const least = 10 ** -digits;
  const value = 100 * share;
  if (value > 0 && value < least / 2) return `< ${least} %`;
  if (share < 1 && value > 100 - least / 2) return `> ${100 - least} %`;
  return `${value.toFixed(digits)} %`;
}

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
