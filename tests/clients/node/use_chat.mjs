// Does what `useChat` of AI SDK 4 does, with the same code: the hook itself only adds React's state.
// argv[2]: {api, headers, body?, messages, results?, maxRequests?, signal?}; stdout: the messages on the user's screen,
// the error beside them, every snapshot of the answer on the way, and what the SDK's server side would make of it.
import { writeFileSync } from "node:fs";

import {
  callChatApi,
  extractMaxToolInvocationStep,
  fillMessageParts,
  generateId,
  isAssistantMessageWithCompletedToolCalls,
  shouldResubmitMessages,
  updateToolCallResult,
} from "@ai-sdk/ui-utils";
import { convertToCoreMessages } from "ai";

const { api, headers, body = {}, messages, results = {}, signal } = JSON.parse(process.argv[2]);
const posts = [];
const snapshots = [];
const finishes = [];
const received = [];
let screen = messages;
let error = null;

// @ai-sdk/react 1.2.12, triggerRequest: without extra fields a message loses its id and its date.
const asPosted = ({ role, content, experimental_attachments, data, annotations, toolInvocations, parts }) =>
  JSON.parse(JSON.stringify({ role, content, experimental_attachments, data, annotations, toolInvocations, parts }));

async function triggerRequest() {
  const chatMessages = fillMessageParts(screen);
  const payload = { id: "chat-1", messages: chatMessages.map(asPosted), ...body };
  posts.push(payload);
  await callChatApi({
    api,
    body: payload,
    headers,
    streamProtocol: "data",
    generateId,
    lastMessage: chatMessages[chatMessages.length - 1],
    restoreMessagesOnFailure() {
      screen = messages;
    },
    onResponse(response) {
      if (signal) writeFileSync(signal, "");
      received.push({ status: response.status, headers: Object.fromEntries(response.headers) });
    },
    onUpdate({ message, replaceLastMessage }) {
      screen = [...(replaceLastMessage ? chatMessages.slice(0, -1) : chatMessages), message];
      snapshots.push(structuredClone(message));
    },
    onFinish(message, { usage, finishReason }) {
      finishes.push({ usage, finishReason });
    },
  });
}

try {
  await triggerRequest();
  const last = () => screen[screen.length - 1];
  for (const [toolName, result] of Object.entries(results)) {
    // addToolResult: once every call of the last step has its result, the hook posts again by itself.
    const waiting = (last().toolInvocations ?? []).filter((call) => call.toolName === toolName && call.state === "call");
    for (const { toolCallId } of waiting) {
      screen = structuredClone(screen);
      updateToolCallResult({ messages: screen, toolCallId, toolResult: result });
    }
  }
  if (Object.keys(results).length > 0 && isAssistantMessageWithCompletedToolCalls(last())) {
    await triggerRequest();
  }
} catch (thrown) {
  error = { name: thrown.name, message: thrown.message };
}

const maxStep = extractMaxToolInvocationStep(screen[screen.length - 1].toolInvocations) ?? null;
const wouldResubmit = shouldResubmitMessages({
  originalMaxToolInvocationStep: undefined,
  originalMessageCount: messages.length,
  maxSteps: 5,
  messages: screen,
});
let core = null;
try {
  core = convertToCoreMessages(screen);
} catch (thrown) {
  core = { refused: thrown.message };
}
process.stdout.write(JSON.stringify({ screen, error, snapshots, finishes, received, posts, core, maxStep, wouldResubmit }));
