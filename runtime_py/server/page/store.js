// Conversations and settings, in the browser's storage.
const CONVERSATIONS = "o2o.conversations";
const SETTINGS = "o2o.settings";
const KEY = "o2o.key"; // for this tab only

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

const isMessage = (one) => one && typeof one.content === "string" && ["user", "assistant"].includes(one.role);

/** The conversations, the latest first. What is damaged is left out. */
export function loadConversations() {
  const stored = read(CONVERSATIONS, []);
  if (!Array.isArray(stored)) return [];
  return stored
    .filter((one) => one && typeof one.id === "string" && Array.isArray(one.messages))
    .map((one) => ({
      id: one.id,
      title: String(one.title || ""),
      system: String(one.system || ""),
      messages: one.messages.filter(isMessage),
    }));
}

/**
 * Store the conversations. The oldest ones go if the storage is full.
 * Returns how many had to go; -1 if nothing can be stored.
 */
export function saveConversations(conversations) {
  const stored = conversations.filter((one) => one.messages.length);
  for (let removed = 0; ; removed++) {
    try {
      localStorage.setItem(CONVERSATIONS, JSON.stringify(stored));
      return removed;
    } catch {
      if (stored.length < 2) return -1;
      stored.pop();
    }
  }
}

/** The settings: numbers of sampling, the theme and the model. */
export function loadSettings() {
  const stored = read(SETTINGS, {});
  return stored && typeof stored === "object" && !Array.isArray(stored) ? stored : {};
}

/** Store the settings. */
export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // private windows may have no storage; the settings stay until the page is closed
  }
}

/** The API key of this tab. */
export function loadKey() {
  try {
    return sessionStorage.getItem(KEY) || "";
  } catch {
    return "";
  }
}

/** Store the API key for this tab. */
export function saveKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // see saveSettings
  }
}

/** A new, empty conversation. */
export function newConversation(system = "") {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, title: "", system, messages: [] };
}
