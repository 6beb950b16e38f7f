// A page of AI SDK 5, 6 or 7 that is closed in mid-answer, and another one that resumes the chat, elsewhere.
// argv[2]: {version, api, elsewhere, headers, leaveAfter, stopAfter?}: the first page posts to `api` and its connection
// is cut after so many snapshots; the second resumes at `elsewhere`, and asks for a stop after so many snapshots.
// stdout: the messages on both screens, the status and the error beside the second one.
const { version, api, elsewhere, headers, leaveAfter, stopAfter } = JSON.parse(process.argv[2]);
globalThis.AI_SDK_LOG_WARNINGS = false;
const sdk = await import(`ai${version}`);
const { Chat } = await import(`ai${version}-react`);
const id = "trip/über";

function page(at, messages, onSnapshot, signal) {
  let snapshots = 0;
  const chat = new Chat({
    id,
    messages,
    transport: new sdk.DefaultChatTransport({
      api: at,
      headers,
      fetch: (url, init) => fetch(url, { ...init, signal: signal ?? init.signal }),
      prepareReconnectToStreamRequest: () => ({
        api: `${at.split("?")[0]}/${encodeURIComponent(id)}/stream`,
        headers,
      }),
    }),
  });
  chat["~registerMessagesCallback"](() => {
    if (chat.messages.at(-1)?.role === "assistant") onSnapshot((snapshots += 1));
  });
  return chat;
}

const settled = async (chat) => {
  while (chat.status !== "ready" && chat.status !== "error") await new Promise((resolve) => setTimeout(resolve, 5));
};

const closing = new AbortController();
const first = page(api, [], (count) => count === leaveAfter && closing.abort(), closing.signal);
await first.sendMessage({ text: "Hi" }).catch(() => {});
await settled(first);

const stop = `${elsewhere.split("?")[0]}/${encodeURIComponent(id)}/stop`;
const second = page(elsewhere, first.messages.slice(0, 1), (count) => {
  if (count === stopAfter) void fetch(stop, { method: "POST", headers });
});
await second.resumeStream();
await settled(second);
await second.resumeStream();
await settled(second);
const { error } = second;
process.stdout.write(
  JSON.stringify({
    left: first.messages,
    screen: second.messages,
    status: second.status,
    error: error ? error.message : null,
  }),
);
