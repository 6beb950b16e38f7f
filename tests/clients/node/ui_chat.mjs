// Drives the chat class behind `useChat` of AI SDK 5, 6 or 7; the hook itself only adds React's state.
// argv[2]: {version, api, headers, body?, messages?, acts, protocol?, signal?}; an act is one of {say, files?},
// {results: {tool: output}}, {failures: {tool: text}}, {approval: {id, approved, reason?}}, {regenerate: true}, each
// with stopAfter? (snapshots).
// stdout: the messages on the user's screen, the error and the status beside them, every snapshot of the last message
// on the way, what was posted, what `onData`, `onToolCall` and `onFinish` were told, and what the SDK's own server
// would give to its model.
import { writeFileSync } from "node:fs";

const { version, api, headers, body, messages, acts, protocol, signal } = JSON.parse(process.argv[2]);
globalThis.AI_SDK_LOG_WARNINGS = false;
const sdk = await import(`ai${version}`);
const { Chat } = version === "5-first" ? { Chat: plainChat() } : await import(`ai${version}-react`);

// What `Chat` of @ai-sdk/react does, for the release that has no such package among ours.
function plainChat() {
  class State {
    status = "ready";
    error = undefined;
    messages = [];
    callbacks = [];
    pushMessage = (message) => this.#set([...this.messages, message]);
    popMessage = () => this.#set(this.messages.slice(0, -1));
    replaceMessage = (index, message) => this.#set(this.messages.with(index, this.snapshot(message)));
    snapshot = (value) => structuredClone(value);
    #set(messages) {
      this.messages = messages;
      for (const callback of this.callbacks) callback();
    }
  }
  return class extends sdk.AbstractChat {
    constructor({ messages, ...init }) {
      const state = Object.assign(new State(), { messages });
      super({ ...init, state });
      this["~registerMessagesCallback"] = (callback) => state.callbacks.push(callback);
    }
  };
}

const posts = [];
const received = [];
const snapshots = [];
const statuses = [];
const told = [];
const called = [];
const finishes = [];
let stopAfter = Infinity;

const Transport = protocol === "text" ? sdk.TextStreamChatTransport : sdk.DefaultChatTransport;
const chat = new Chat({
  id: "chat-1",
  messages: messages ?? [],
  transport: new Transport({
    api,
    headers,
    body,
    async fetch(url, init) {
      posts.push(JSON.parse(init.body));
      const response = await fetch(url, init);
      if (signal) writeFileSync(signal, "");
      received.push({ status: response.status, headers: Object.fromEntries(response.headers) });
      return response;
    },
  }),
  onData: (part) => told.push(part),
  onToolCall: ({ toolCall }) => void called.push(toolCall),
  onFinish: ({ message, isAbort, isDisconnect, isError, finishReason }) =>
    finishes.push({ id: message.id, isAbort, isDisconnect, isError, finishReason }),
  sendAutomaticallyWhen: sdk.lastAssistantMessageIsCompleteWithToolCalls,
});
chat["~registerMessagesCallback"](() => {
  if (chat.messages.at(-1)?.role === "assistant") snapshots.push(structuredClone(chat.messages.at(-1)));
  if (statuses.at(-1) !== chat.status) statuses.push(chat.status);
  if (snapshots.length === stopAfter) void chat.stop();
});

const settled = async () => {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (chat.status === "ready" || chat.status === "error") return;
  }
};
const answer = chat.addToolOutput ?? chat.addToolResult;
for (const act of acts) {
  if (act.stopAfter) stopAfter = snapshots.length + act.stopAfter;
  if (act.say !== undefined) await chat.sendMessage({ text: act.say, files: act.files });
  if (act.regenerate) await chat.regenerate();
  if (act.approval) {
    await chat.addToolApprovalResponse(act.approval);
    await chat.sendMessage();
  }
  for (const part of chat.messages.at(-1).parts) {
    if (part.state !== "input-available") continue;
    const tool = part.type.slice("tool-".length);
    const { toolCallId } = part;
    if (act.results && tool in act.results) await answer({ tool, toolCallId, output: act.results[tool] });
    if (act.failures && tool in act.failures)
      await answer({ state: "output-error", tool, toolCallId, errorText: act.failures[tool] });
  }
  await settled();
}

let model;
try {
  model = await sdk.convertToModelMessages(chat.messages);
} catch (thrown) {
  model = { refused: thrown.message };
}
const { error } = chat;
process.stdout.write(
  JSON.stringify({
    screen: chat.messages,
    status: chat.status,
    error: error ? { name: error.name, message: error.message, statusCode: error.statusCode } : null,
    ...{ snapshots, statuses, posts, received, told, called, finishes, model },
  }),
);
