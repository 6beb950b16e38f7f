import { isToolUIPart } from "ai";
import type { Message } from "./gateway";
import { ToolCall, type ToolCallActions } from "./ToolCall";

export function MessageView({ message, ...actions }: { message: Message } & ToolCallActions) {
  return (
    <li>
      <article className={`message ${message.role}`} aria-label={message.role === "user" ? "You" : "Assistant"}>
        {message.parts.map((part, index) => (
          // Parts are only ever added at the end.
          <PartView key={index} part={part} {...actions} />
        ))}
        {message.metadata && <Bill {...message.metadata} />}
      </article>
    </li>
  );
}

function PartView({ part, ...actions }: { part: Message["parts"][number] } & ToolCallActions) {
  if (isToolUIPart(part)) return <ToolCall part={part} {...actions} />;
  switch (part.type) {
    case "text":
      return <p className="text">{part.text}</p>;
    case "reasoning":
      // A provider may keep the text to itself; the part is still posted back to it.
      return part.text === "" ? null : (
        <details className="reasoning" open={part.state === "streaming"}>
          <summary>Reasoning</summary>
          <p className="text">{part.text}</p>
        </details>
      );
    case "data-gateway-cut":
      return (
        <p className="notice" role="note">
          {part.data.message}
        </p>
      );
    default:
      return null;
  }
}

function Bill({ usage, costUsd }: NonNullable<Message["metadata"]>) {
  return (
    <p className="bill">
      {usage.inputTokens} tokens in, {usage.outputTokens} out
      {usage.reasoningTokens > 0 && ` (${usage.reasoningTokens} of them reasoning)`}
      {costUsd !== undefined && ` · $${costUsd}`}
    </p>
  );
}
