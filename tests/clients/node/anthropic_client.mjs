// Drives @anthropic-ai/sdk. argv[2]: {baseURL, apiKey, way, ask, signal?}; stdout: what came, or the error thrown.
import { writeFileSync } from "node:fs";

import Anthropic from "@anthropic-ai/sdk";

const { baseURL, apiKey, way, ask, signal } = JSON.parse(process.argv[2]);
const requests = [];
const client = new Anthropic({
  baseURL,
  apiKey,
  maxRetries: way === "retrying" ? 2 : 0,
  fetch: (url, init) => {
    requests.push(String(url));
    return fetch(url, init);
  },
});

const events = [];

async function streamed() {
  const stream = await client.messages.create({ ...ask, stream: true });
  // The head of the answer is here; a test may wait for that.
  if (signal) writeFileSync(signal, "");
  for await (const event of stream) events.push(event);
  return { events };
}

const ways = {
  stream: streamed,
  retrying: async () => ({ message: await client.messages.create(ask) }),
  helper: async () => ({ message: await client.messages.stream(ask).finalMessage() }),
  whole: async () => ({ message: await client.messages.create(ask) }),
  count: async () => ({ count: await client.messages.countTokens(ask) }),
  models: async () => {
    const listed = [];
    for await (const model of client.models.list({ limit: 2 })) listed.push(model.id);
    return { listed, one: await client.models.retrieve(ask.model) };
  },
};

let result;
try {
  result = await ways[way]();
} catch (error) {
  const { name, status, message, requestID, type } = error;
  const kind = error.constructor.name;
  result = { events, error: { kind, name, status, message, requestID, type, body: error.error } };
}
process.stdout.write(JSON.stringify({ ...result, requests: requests.length }));
