// The server's API: OpenAI's endpoints, and /props of llama.cpp.

/** An answer of the server that is an error. */
export class ServerError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const UNREACHABLE = "The server does not answer. Check that o2o serve still runs.";

async function request(path, key, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(UNREACHABLE, 0);
  }
  if (!response.ok) {
    const error = (await response.json().catch(() => ({}))).error || {};
    throw new ServerError(error.message || `status ${response.status}`, response.status, error.code);
  }
  return response;
}

/** List the models: [{id, meta: {chat, loaded}}]. */
export async function models(key) {
  return (await (await request("v1/models", key)).json()).data;
}

/** Read the properties of a model, such as its context. */
export async function props(model, key) {
  return (await request(`props?model=${encodeURIComponent(model)}`, key)).json();
}

/**
 * Generate. Yields {text, reasoning, finish, usage, timings}, each part as soon as it is there.
 * A model without a chat template continues the text of the messages.
 */
export async function* generate({ model, messages, sampling, isChat, key, signal }) {
  const body = { model, stream: true, stream_options: { include_usage: true }, ...sampling };
  if (isChat) body.messages = messages;
  else body.prompt = document_of(messages);
  const response = await request(isChat ? "v1/chat/completions" : "v1/completions", key, body, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const part = JSON.parse(data);
    if (part.error) throw new ServerError(part.error.message, part.error.status || 500, part.error.code);
    const choice = (part.choices || [])[0] || {};
    yield {
      text: (isChat ? choice.delta?.content : choice.text) || "",
      reasoning: choice.delta?.reasoning_content || "",
      finish: choice.finish_reason || null,
      usage: part.usage || null,
      timings: part.timings || null,
    };
  }
}

/** The text that a model without a chat template continues. */
export function document_of(messages) {
  let text = "";
  for (const { content } of messages) {
    text += text && !/\s$/.test(text) && !/^\s/.test(content) ? ` ${content}` : content;
  }
  return text;
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(UNREACHABLE, 0);
    }
    if (chunk.done) return;
    rest += chunk.value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}
