// The edge's API: whole JSON answers, and streams of events.

class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, { key, body, signal } = {}) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The edge cannot be reached.", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const error = (await response.json().catch(() => ({}))).error;
  const wait = response.headers.get("retry-after");
  const message = error?.message ?? `The edge answered with status ${response.status}.`;
  return new ApiError(wait ? `${message} (It asks to wait ${wait} s.)` : message, response.status);
}

/** The chunks of a streamed answer; throws when it breaks off before its end. */
async function* chunks(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let held = "";
  while (true) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      part = { done: true };
    }
    if (part.done) throw new ApiError("The connection broke off before the answer ended.", 0);
    const frames = (held + decoder.decode(part.value, { stream: true })).split("\n\n");
    held = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data: ")) continue;
      const data = frame.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 200);
      yield chunk;
    }
  }
}
