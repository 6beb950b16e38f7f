import { type DynamicToolUIPart, getToolName, type ToolUIPart } from "ai";

export type ToolCallActions = {
  onAnswer: (tool: string, toolCallId: string, output: unknown) => void;
  onDecline: (tool: string, toolCallId: string) => void;
};

type Part = ToolUIPart | DynamicToolUIPart;

/** One call of the model: what it wants, and what the user answers in the tool's place. */
export function ToolCall({ part, onAnswer, onDecline }: { part: Part } & ToolCallActions) {
  const name = getToolName(part);

  return (
    <section className="tool" aria-label={`Tool call ${name}`}>
      <h2>{name}</h2>
      <pre aria-label="Input">{show(part.input)}</pre>
      {part.state === "input-available" && (
        <form action={(fields) => onAnswer(name, part.toolCallId, parse(String(fields.get("result"))))}>
          <label>
            Result
            <input name="result" required autoComplete="off" placeholder='Such as {"celsius": 21}' />
          </label>
          <button type="submit" className="primary">
            Answer
          </button>
          <button type="button" onClick={() => onDecline(name, part.toolCallId)}>
            Decline
          </button>
        </form>
      )}
      {part.state === "output-available" && (
        <pre className="output" aria-label="Output">
          {show(part.output)}
        </pre>
      )}
      {part.state === "output-error" && <p className="failed">{part.errorText}</p>}
    </section>
  );
}

const show = (value: unknown) =>
  typeof value === "string" ? value : (JSON.stringify(value, null, 1)?.replace(/\n */g, " ") ?? "…");

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
