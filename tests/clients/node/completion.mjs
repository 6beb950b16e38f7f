// Drives the function behind `useCompletion` of AI SDK 4, 5, 6 or 7.
// argv[2]: {version, api, headers, body?, prompt, protocol?}; stdout: the text on the screen, its snapshots, the error.
const { version, api, headers, body, prompt, protocol } = JSON.parse(process.argv[2]);
const { callCompletionApi } = await import(version === "4" ? "@ai-sdk/ui-utils" : `ai${version}`);

const snapshots = [];
const data = [];
let error = null;
await callCompletionApi({
  api,
  prompt,
  headers,
  body,
  streamProtocol: protocol,
  setCompletion: (text) => snapshots.push(text),
  setLoading: () => {},
  setError: (thrown) => {
    if (thrown) error = { name: thrown.name, message: thrown.message };
  },
  setAbortController: () => {},
  onData: (parts) => data.push(...parts),
});
process.stdout.write(JSON.stringify({ completion: snapshots.at(-1), snapshots, error, data }));
