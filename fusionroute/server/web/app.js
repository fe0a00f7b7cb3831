// Puts the page together: reads the controls, asks, shows the state.
import { key, models as offered } from "./api.js";
import { Conversation } from "./chat.js";
import { byId, element } from "./dom.js";
import { Inspector } from "./inspector.js";
import { Writers } from "./writers.js";

const EXAMPLES = [
  "Tom has 31 pens and sells 8. How many now? Write f(x) for a list: the first. Spell pilot in capitals with stars.",
  "Write f(x) for a list: sort it downwards, then take the first three.",
  "Eva has 46 apples and buys 4 more. How many now? Spell river in capitals with dashes.",
];
const view = Object.fromEntries([
  "model", "second", "second-choice", "model-is", "second-is", "compare", "new", "conversation", "welcome", "examples",
  "inspector", "composer", "prompt", "send", "stop", "temperature", "max-tokens", "seed", "remember",
  "key", "key-field", "key-says", "status",
].map((id) => [id, byId(id)]));
let models = [], conversation = null;

async function start() {
  try {
    models = await offered();
  } catch (error) {
    if (error.status === 401) return askForKey(error.message);
    const again = element("button", { type: "button", textContent: "Try again", onclick: () => location.reload() });
    view.welcome.append(element("p", { className: "error" }, error.message, " ", again));
    return;
  }
  view.key.hidden = true;
  for (const select of [view.model, view.second]) {
    select.replaceChildren(...models.map(({ id }) => element("option", { value: id, textContent: id })));
  }
  view.second.selectedIndex = counterpart(models);
  const writers = new Writers(models);
  const inspector = new Inspector(view.inspector, writers, models[0].fusionroute.writers);
  conversation = new Conversation(view.conversation, writers, inspector, {
    needsKey: askForKey,
    announce: (words) => { view.status.textContent = words; },
    changed: show,
    sent: (prompt) => { if (view.prompt.value === prompt) view.prompt.value = ""; },
    refused: (prompt) => { view.prompt.value ||= prompt; },
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && inspector.close());
  show();
  if (matchMedia("(pointer: fine)").matches) view.prompt.focus(); // on a phone the keyboard would cover the page
}

/** The first of the first model's writers that can be asked alone: what the team is worth shows best beside it. */
function counterpart([first, ...others]) {
  const team = first.fusionroute.writers;
  const alone = others.findIndex(({ fusionroute: { writers: [one, ...more] } }) => !more.length && team.includes(one));
  return others.length ? 1 + Math.max(alone, 0) : 0;
}

function chosen() {
  const ids = [view.model.value, ...(view.compare.checked ? [view.second.value] : [])];
  return ids.map((id) => models.find((model) => model.id === id));
}

function show() {
  const isRunning = conversation?.isRunning ?? false, isReady = models.length > 0;
  view.welcome.hidden = conversation !== null && !conversation.isEmpty;
  view.send.hidden = isRunning;
  view.stop.hidden = !isRunning;
  view.send.disabled = !isReady;
  for (const button of view.examples.querySelectorAll("button")) button.disabled = !isReady;
  view["second-choice"].hidden = view["second-is"].hidden = !view.compare.checked;
  if (!isReady) return;
  const [first, second] = chosen();
  view["model-is"].textContent = `${first.id}: ${first.fusionroute.description}`;
  view["second-is"].textContent = second ? `${second.id}: ${second.fusionroute.description}` : "";
}

function settings() {
  const number = (field) => (field.value === "" ? undefined : field.valueAsNumber);
  const [temperature, max_tokens, seed] = [view.temperature, view["max-tokens"], view.seed].map(number);
  return { remember: view.remember.checked, fields: { temperature, max_tokens, seed } };
}

function send(prompt) {
  if (!prompt.trim() || !models.length || conversation.isRunning || !view.composer.reportValidity()) return;
  conversation.ask(prompt, chosen(), settings());
}

function askForKey(message) {
  view["key-says"].textContent = key.get() ? `${message}` : "This server asks for an API key.";
  view.key.hidden = false;
  view["key-field"].value = "";
  view["key-field"].focus();
  show();
}

view.key.addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(view["key-field"].value.trim());
  view.key.hidden = true;
  if (models.length) view.prompt.focus();
  else start();
});
view.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send(view.prompt.value);
});
view.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(view.prompt.value);
});
view.stop.addEventListener("click", () => {
  conversation.stop();
  view.prompt.focus();
});
view.new.addEventListener("click", () => {
  conversation?.clear();
  view.prompt.focus();
});
for (const control of [view.model, view.second, view.compare]) control.addEventListener("change", show);
for (const text of EXAMPLES) {
  const button = element("button", { type: "button", textContent: text, disabled: true, onclick: () => send(text) });
  view.examples.append(element("li", {}, button));
}
start();
