// The public API, nothing else: which models there are, and an answer as it is written.

const KEY = "fusionroute-key"; // lives as long as the tab

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** What went wrong, in words for a person. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param });
  }
}

/** Every model that the server offers. */
export async function models() {
  return (await (await request("v1/models", {})).json()).data;
}

/**
 * The chunks of a streamed answer; leaving the loop, or `signal`, ends the request.
 * @param path of the endpoint
 */
export async function* stream(path, body, signal) {
  const reply = await request(path, { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal });
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, { status: reply.status, ...chunk.error });
    yield chunk;
  }
  throw new ApiError("The connection was lost before the answer was complete.");
}

async function request(path, options) {
  const headers = { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

async function refusal(reply) {
  const said = await reply.json().then((body) => body.error, () => null);
  let message = said?.message ?? `The server answered ${reply.status} ${reply.statusText}.`;
  const wait = reply.headers.get("Retry-After");
  if (wait && reply.status === 429) message += ` Try again in ${wait} s.`;
  return new ApiError(message, { status: reply.status, code: said?.code, param: said?.param });
}

/** The data of server-sent events; comments (signs of life) are passed over. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", data = [];
  try {
    while (true) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        return; // cut off: whoever reads misses the end
      }
      if (chunk.done) return;
      text += chunk.value;
      const lines = text.split(/\r\n|\n|\r(?!$)/); // a final \r may be half of \r\n
      text = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // already ended, or already broken
  }
}
