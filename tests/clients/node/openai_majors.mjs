// Drives one major of openai-node. argv[2]: {sdk, baseURL, apiKey, way, ask}; stdout: what came, or the error thrown.
const { sdk, baseURL, apiKey, way, ask } = JSON.parse(process.argv[2]);
const { default: OpenAI } = await import(sdk);
const { VERSION } = await import(`${sdk}/version`);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

async function all(stream) {
  const events = [];
  for await (const event of await stream) events.push(event);
  return events;
}

const runnable = (tool) => ({
  type: "function",
  function: { ...tool, parse: JSON.parse, function: (args) => `sun in ${args.city}` },
});

const ways = {
  version: () => VERSION,
  stream: () => all(client.chat.completions.create({ ...ask, stream: true })),
  whole: () => client.chat.completions.create(ask),
  tools: async () => {
    const runner = client.chat.completions.runTools({ ...ask, tools: ask.tools.map(runnable), stream: true });
    return { content: await runner.finalContent(), messages: runner.messages };
  },
  responses: () => all(client.responses.create({ ...ask, stream: true })),
  response: async () => (await client.responses.create(ask)).output_text,
};

let told;
try {
  told = { result: await ways[way]() };
} catch (error) {
  const { status, code, headers } = error;
  told = { error: { kind: error.constructor.name, status, code, retryAfter: headers?.get?.("retry-after") } };
}
process.stdout.write(JSON.stringify(told));
