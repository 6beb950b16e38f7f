import { useChat } from "@ai-sdk/react";
import { lastAssistantMessageIsCompleteWithToolCalls } from "ai";
import { useEffect, useMemo, useRef, useState } from "react";
import { Composer } from "./Composer";
import { type Message, type Settings, stopAnswer, transport } from "./gateway";
import { MessageView } from "./MessageView";
import { Problem } from "./Problem";
import { loadMessages, saveMessages } from "./storage";

const STOP_PATIENCE_MS = 2000;

export function Chat({ id, settings }: { id: string; settings: Settings }) {
  const [notice, setNotice] = useState<string>();
  const hasAsked = useRef(false);
  const onEnd = useRef<() => void>(undefined);
  const chat = useChat<Message>({
    id,
    messages: useMemo(() => loadMessages(id), [id]),
    transport: useMemo(() => transport(settings), [settings]),
    resume: true,
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onFinish: () => onEnd.current?.(),
    // Said once and not kept in the message. A cut is, and an error is chat.error as well.
    onData: ({ type, data }) => {
      if (type !== "data-gateway-cut" && type !== "data-gateway-error") setNotice(data.message);
    },
  });
  const { messages, status, error } = chat;
  const isBusy = status === "submitted" || status === "streaming";
  const isUnanswered = status === "ready" && messages.at(-1)?.role === "user";

  // A resumed answer is replayed from its start, so half of one is not kept.
  useEffect(() => {
    if (status !== "streaming") saveMessages(id, messages);
  }, [id, messages, status]);

  function send(text: string) {
    hasAsked.current = true;
    setNotice(undefined);
    void chat.sendMessage({ text });
  }

  async function stop() {
    const ended = new Promise<void>((resolve) => (onEnd.current = resolve));
    try {
      await stopAnswer(settings, id);
      // The stream says what the answer cost before it ends.
      await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, STOP_PATIENCE_MS))]);
    } catch (error) {
      console.error("The gateway could not be told to stop.", error);
    }
    await chat.stop();
  }

  function retry() {
    const isDisconnected = error instanceof TypeError && messages.at(-1)?.role === "assistant";
    if (error && (isDisconnected || !hasAsked.current)) void chat.resumeStream();
    else if (lastAssistantMessageIsCompleteWithToolCalls({ messages })) void chat.sendMessage();
    else void chat.regenerate();
    hasAsked.current = true;
  }

  function answerCall(tool: string, toolCallId: string, output: unknown) {
    hasAsked.current = true;
    void chat.addToolOutput({ tool, toolCallId, output });
  }

  function declineCall(tool: string, toolCallId: string) {
    hasAsked.current = true;
    void chat.addToolOutput({ state: "output-error", tool, toolCallId, errorText: "The user declined this call." });
  }

  return (
    <>
      <main>
        <ol className="messages" aria-label="Conversation" aria-busy={isBusy}>
          {messages.map((message) => (
            <MessageView key={message.id} message={message} onAnswer={answerCall} onDecline={declineCall} />
          ))}
        </ol>
        <p className="status" role="status">
          {status === "submitted" ? "Waiting for the answer…" : status === "streaming" ? "Answering…" : ""}
        </p>
        {notice && <p className="notice">{notice}</p>}
        {error && <Problem error={error} settings={settings} onRetry={retry} />}
        {isUnanswered && (
          <div className="notice late">
            <p>This question has no answer.</p>
            <button type="button" onClick={retry}>
              Try again
            </button>
          </div>
        )}
        <ScrollMark follow={messages} />
      </main>
      <Composer isBusy={isBusy} onSend={send} onStop={() => void stop()} />
    </>
  );
}

/** Keeps the end in view while the answer grows, unless the reader has scrolled up. */
function ScrollMark({ follow }: { follow: unknown }) {
  const mark = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);

  useEffect(() => {
    const note = () => {
      isAtEnd.current = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
    };
    window.addEventListener("scroll", note, { passive: true });
    return () => window.removeEventListener("scroll", note);
  }, []);

  useEffect(() => {
    if (isAtEnd.current) mark.current?.scrollIntoView({ block: "end" });
  }, [follow]);

  return <div ref={mark} className="mark" />;
}
