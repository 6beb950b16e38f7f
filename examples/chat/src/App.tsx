import { useEffect, useState } from "react";
import { Chat } from "./Chat";
import type { Settings } from "./gateway";
import { SettingsForm } from "./SettingsForm";
import { loadSettings, saveSettings } from "./storage";

export function App() {
  const [settings, setSettings] = useState(loadSettings);
  const [isAsking, setAsking] = useState(settings.key === "");
  const chatId = useChatId();

  function save(changed: Settings) {
    saveSettings(changed);
    setSettings(changed);
    setAsking(false);
  }

  return (
    <>
      <header className="bar">
        <h1>Chat</h1>
        <span className="model">{settings.model}</span>
        <button type="button" onClick={() => (location.hash = newId())} disabled={isAsking}>
          New chat
        </button>
        <button type="button" onClick={() => setAsking(!isAsking)} aria-expanded={isAsking}>
          Settings
        </button>
      </header>
      {isAsking ? (
        <SettingsForm settings={settings} onSave={save} />
      ) : (
        <Chat key={chatId} id={chatId} settings={settings} />
      )}
    </>
  );
}

/** The chat's id is the address's fragment, so that a reload finds the chat and an answer that is still running. */
function useChatId() {
  const [id, setId] = useState(() => idInAddress() || newId());
  useEffect(() => {
    history.replaceState(null, "", `#${id}`);
    const follow = () => setId(idInAddress() || newId());
    window.addEventListener("hashchange", follow);
    return () => window.removeEventListener("hashchange", follow);
  }, [id]);
  return id;
}

// Letters and digits, as ids go into addresses. crypto.randomUUID is missing on pages without https.
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), toLetters).join("");

const toLetters = (byte: number) => byte.toString(36).padStart(2, "0");

const idInAddress = () => location.hash.slice(1).replace(/[^\w-]/g, "");
