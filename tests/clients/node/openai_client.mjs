// Drives openai-node. argv[2]: {baseURL, apiKey, way, ask, signal?}; stdout: what came, or the error that was thrown.
import { writeFileSync } from "node:fs";

import OpenAI from "openai";

const { baseURL, apiKey, way, ask, signal } = JSON.parse(process.argv[2]);
const requests = [];
const client = new OpenAI({
  baseURL,
  apiKey,
  maxRetries: way === "retrying" ? 2 : 0,
  fetch: (url, init) => {
    requests.push(String(url));
    return fetch(url, init);
  },
});

const chunks = [];
const called = [];

async function streamed() {
  const stream = await client.chat.completions.create({ ...ask, stream: true });
  // The head of the answer is here; a test may wait for that.
  if (signal) writeFileSync(signal, "");
  for await (const chunk of stream) chunks.push(chunk);
  return { chunks };
}

async function collected() {
  const stream = client.chat.completions.stream(ask);
  return { completion: await stream.finalChatCompletion() };
}

async function toolsRun() {
  const tools = ask.tools.map(({ function: { name, parameters } }) => ({
    type: "function",
    function: {
      name,
      parameters,
      parse: JSON.parse,
      function: (args) => {
        called.push({ name, args });
        return `${name} says: ${Object.values(args).join(",")}`;
      },
    },
  }));
  const runner = client.chat.completions.runTools({ ...ask, tools, stream: way === "runTools" });
  return { content: await runner.finalContent(), messages: runner.messages, called };
}

const ways = {
  stream: streamed,
  retrying: streamed,
  helper: collected,
  whole: async () => ({ completion: await client.chat.completions.create(ask) }),
  runTools: toolsRun,
  runToolsWhole: toolsRun,
  models: async () => {
    const listed = [];
    for await (const model of client.models.list()) listed.push(model);
    return { listed, one: await client.models.retrieve(ask.model) };
  },
};

let result;
try {
  result = await ways[way]();
} catch (error) {
  const { name, status, code, type, param, message } = error;
  const kind = error.constructor.name;
  result = { chunks, error: { kind, name, status, code, type, param, message } };
}
process.stdout.write(JSON.stringify({ ...result, requests: requests.length }));
