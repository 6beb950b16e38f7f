// Drives the chat class behind `useChat` of AI SDK 7 over its WebSocketChatTransport.
// argv[2]: {url, headers?, body?, params?, protocols?, acts}; an act is one of {say}, {results: {tool: output}},
// {resume: true}, {reload: url} (the page is loaded anew, perhaps from another gateway), {together: [text, ...]} (chats
// that share the transport), each with stopAfter? or dropAfter? (snapshots; a drop breaks the connection).
// stdout: the messages on the user's screen, the error and the status beside them, what `onFinish` was told, the
// frames that were sent and that came, and how each connection was closed.
// Node has a WebSocket of its own from release 22 on; 20 wants --experimental-websocket.
globalThis.AI_SDK_LOG_WARNINGS = false;
const { url, headers, body, params, protocols, acts } = JSON.parse(process.argv[2]);
const { WebSocketChatTransport, lastAssistantMessageIsCompleteWithToolCalls } = await import("ai7");
const { Chat } = await import("ai7-react");

const sockets = [];
const sent = [];
const came = [];
const closes = [];
const finishes = [];
const called = [];
let snapshots = 0;
let stopAfter = Infinity;
let dropAfter = Infinity;

class Recorded extends WebSocket {
  constructor(...given) {
    super(...given);
    sockets.push(this);
    this.addEventListener("message", ({ data }) => came.push(JSON.parse(data)));
    this.addEventListener("close", ({ code, reason }) => closes.push({ code, reason }));
  }
  send(text) {
    sent.push(JSON.parse(text));
    super.send(text);
  }
}

function transportTo(url) {
  return new WebSocketChatTransport({ url, headers, body, params, protocols, webSocket: Recorded });
}

function page(transport, messages, id = "chat-1") {
  const chat = new Chat({
    id,
    messages,
    transport,
    onToolCall: ({ toolCall }) => void called.push(toolCall),
    onFinish: ({ isAbort, isDisconnect, isError, finishReason }) =>
      finishes.push({ isAbort, isDisconnect, isError, finishReason }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
  });
  chat["~registerMessagesCallback"](() => {
    if (chat.messages.at(-1)?.role !== "assistant") return;
    snapshots += 1;
    if (snapshots === stopAfter) void chat.stop();
    if (snapshots === dropAfter) sockets.at(-1).close();
  });
  return chat;
}

const settled = async (chat) => {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (chat.status === "ready" || chat.status === "error") return;
  }
};

let transport = transportTo(url);
let chat = page(transport, []);
const others = [];
for (const act of acts) {
  if (act.stopAfter) stopAfter = snapshots + act.stopAfter;
  if (act.dropAfter) dropAfter = snapshots + act.dropAfter;
  if (act.reload) {
    transport.close();
    transport = transportTo(act.reload);
    chat = page(transport, structuredClone(chat.messages));
  }
  if (act.say !== undefined) await chat.sendMessage({ text: act.say });
  if (act.resume || act.reload) await chat.resumeStream();
  if (act.together) {
    const pages = act.together.map((text, number) => page(transport, [], `chat-${number}`));
    await Promise.all(pages.map((other, number) => other.sendMessage({ text: act.together[number] })));
    others.push(...pages.map((other) => ({ messages: other.messages, status: other.status })));
  }
  for (const part of chat.messages.at(-1)?.parts ?? []) {
    const tool = part.type.slice("tool-".length);
    if (part.state === "input-available" && act.results && tool in act.results)
      await chat.addToolOutput({ tool, toolCallId: part.toolCallId, output: act.results[tool] });
  }
  await settled(chat);
}
transport.close();

const { messages, status, error } = chat;
const shown = error ? { name: error.name, message: error.message } : null;
const seen = { screen: messages, status, error: shown, others, connections: sockets.length };
process.stdout.write(JSON.stringify({ ...seen, sent, came, closes, finishes, called }), () => process.exit());
