import { type FormEvent, type KeyboardEvent, useState } from "react";

type Props = { isBusy: boolean; onSend: (text: string) => void; onStop: () => void };

export function Composer({ isBusy, onSend, onStop }: Props) {
  const [text, setText] = useState("");

  function submit(event: FormEvent | KeyboardEvent) {
    event.preventDefault();
    if (isBusy || text.trim() === "") return;
    onSend(text);
    setText("");
  }

  return (
    <form className="composer" onSubmit={submit}>
      <textarea
        aria-label="Message"
        placeholder="Message"
        rows={1}
        value={text}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) submit(event);
        }}
      />
      {isBusy ? (
        <button type="button" onClick={onStop}>
          Stop
        </button>
      ) : (
        <button type="submit" className="primary" disabled={text.trim() === ""}>
          Send
        </button>
      )}
    </form>
  );
}
