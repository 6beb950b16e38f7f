// What the page knows about the gateway: where it is, what a message of it holds, and how its errors read.

import { DefaultChatTransport, type UIMessage } from "ai";

export type Settings = { url: string; key: string; model: string };

type Metadata = {
  finishReason: string;
  costUsd?: string;
  usage: { inputTokens: number; outputTokens: number; totalTokens: number; reasoningTokens: number };
};

type DataParts = {
  "gateway-cut": { reason: string; message: string };
  "gateway-error": { code: string; message: string };
  "gateway-budget": { reason: string; message: string };
  "gateway-warning": { message: string };
  "gateway-downgrade": { message: string };
};

export type Message = UIMessage<Metadata, DataParts>;

// The gateway runs no tools. The model is told of these, and the page answers its calls.
const TOOLS = [
  {
    name: "get_weather",
    description: "The current weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", description: "The city's name." } },
      required: ["city"],
    },
  },
];

const headers = ({ key }: Settings) => ({
  Authorization: `Bearer ${key}`,
  // An answer goes on when the page is gone, and the page takes it up again when it is back.
  "x-gateway-resumable": "true",
});

export function transport(settings: Settings) {
  return new DefaultChatTransport<Message>({
    api: `${settings.url}/api/chat`,
    headers: headers(settings),
    body: { model: settings.model, tools: TOOLS },
  });
}

/** Ends the answer at the gateway: a page that only stops reading would leave it running, and be charged for it. */
export async function stopAnswer(settings: Settings, chatId: string) {
  const address = `${settings.url}/api/chat/${encodeURIComponent(chatId)}/stop`;
  const response = await fetch(address, { method: "POST", headers: headers(settings) });
  if (!response.ok) throw new Error(await response.text());
}

/** What went wrong, in the gateway's words where it said something. */
export function explain(error: Error, { url }: Settings): { text: string; code?: string } {
  if (error.message.startsWith("{")) {
    const { message, code } = JSON.parse(error.message).error;
    return { text: message, code };
  }
  if (error instanceof TypeError) {
    const check = `Is the gateway there, and does its server.cors_origins name ${location.origin}?`;
    return { text: `The connection to ${url} failed. ${check}` };
  }
  return { text: error.message };
}
