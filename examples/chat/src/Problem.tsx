import { explain, type Settings } from "./gateway";

export function Problem({ error, settings, onRetry }: { error: Error; settings: Settings; onRetry: () => void }) {
  const { text, code } = explain(error, settings);

  return (
    <div className="problem" role="alert">
      <p>{text}</p>
      {code && <code>{code}</code>}
      <button type="button" onClick={onRetry}>
        Try again
      </button>
    </div>
  );
}
