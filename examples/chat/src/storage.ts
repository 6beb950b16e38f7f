// What the browser keeps: the settings, and each chat's messages. The gateway stores no conversations.

import type { Message, Settings } from "./gateway";

const SETTINGS = "gateway-chat";

export const DEFAULTS: Settings = { url: "http://127.0.0.1:8080", key: "", model: "demo/reasoning" };

export function loadSettings(): Settings {
  return { ...DEFAULTS, ...read<Partial<Settings>>(SETTINGS) };
}

export function saveSettings(settings: Settings) {
  write(SETTINGS, settings);
}

export function loadMessages(chatId: string): Message[] {
  return read<Message[]>(`${SETTINGS}:${chatId}`) ?? [];
}

export function saveMessages(chatId: string, messages: Message[]) {
  if (messages.length > 0) write(`${SETTINGS}:${chatId}`, messages);
}

function read<T>(name: string): T | undefined {
  const text = localStorage.getItem(name);
  return text === null ? undefined : (JSON.parse(text) as T);
}

function write(name: string, value: unknown) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch (error) {
    console.warn("The browser's storage is full; a reload will not show this.", error);
  }
}
