// Asks an edge through OpenAI's client for Node and prints what came as one JSON object.
import OpenAI from "openai";

const [url, model, kind] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me a tale." }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = kind === "tools" ? [{ type: "function", function: { name: "weather", parameters } }] : undefined;
const fields = { model, messages, seed: 7, max_tokens: 300, tools };

const whole = await client.chat.completions.create(fields);
const stream = client.chat.completions.stream({ ...fields, stream_options: { include_usage: true } });
let pieces = "";
stream.on("content", (delta) => (pieces += delta));
const streamed = await stream.finalChatCompletion();

let refused = null;
try {
  await client.chat.completions.create({ ...fields, temperature: 9 });
} catch (error) {
  refused = { status: error.status, param: error.param };
}
const response = kind === "tools" ? null : await client.responses.create({ model, input: "Tell me a tale.", max_output_tokens: 300 });
console.log(
  JSON.stringify({
    models: (await client.models.list()).data.map((entry) => entry.id),
    whole: whole.choices[0],
    streamed: streamed.choices[0],
    pieces,
    usage: streamed.usage,
    refused,
    response: response && response.output_text,
  }),
);
