import type { Settings } from "./gateway";

export function SettingsForm({ settings, onSave }: { settings: Settings; onSave: (settings: Settings) => void }) {
  function save(fields: FormData) {
    const text = (name: keyof Settings) => String(fields.get(name)).trim();
    onSave({ url: text("url").replace(/\/+$/, ""), key: text("key"), model: text("model") });
  }

  return (
    <form className="settings" aria-label="Settings" action={save}>
      <label>
        Gateway
        <input name="url" type="url" required defaultValue={settings.url} />
      </label>
      <label>
        Key
        <input name="key" type="password" required autoComplete="off" defaultValue={settings.key} />
      </label>
      <label>
        Model
        <input name="model" required autoComplete="off" spellCheck={false} defaultValue={settings.model} />
      </label>
      <p className="warning">
        The key is kept in this browser, where scripts and whoever uses it can read it. That is for trying out only: in
        production your server gives each page a short-lived JWT.
      </p>
      <button type="submit" className="primary">
        Save
      </button>
    </form>
  );
}
