// The dialog of settings: sampling, system prompt, appearance, API key.
import { byId } from "./elements.js";
import { loadKey, loadSettings, saveKey, saveSettings } from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens"];
const dark = matchMedia("(prefers-color-scheme: dark)");

/** The settings of this browser. */
export class Settings {
  constructor() {
    this.values = loadSettings();
    this.key = loadKey();
    this.dialog = byId("settings");
    this.showTheme();
    dark.addEventListener("change", () => this.showTheme());
    byId("theme").addEventListener("change", () => {
      this.set("theme", byId("theme").value);
      this.showTheme();
    });
    byId("reset").addEventListener("click", () => {
      for (const name of NUMBERS) byId(name).value = "";
    });
  }

  /** Store one value. */
  set(name, value) {
    this.values[name] = value;
    saveSettings(this.values);
  }

  /** The sampling fields of a request: those that are set. */
  get sampling() {
    const set = NUMBERS.filter((name) => Number.isFinite(this.values[name]));
    return Object.fromEntries(set.map((name) => [name, this.values[name]]));
  }

  /** Let the user change the settings and the system prompt. `done` gets the system prompt. */
  open({ system, isChat, notice = "" }, done) {
    const placeholder = byId("system");
    byId("system-field").hidden = !isChat;
    placeholder.value = system;
    byId("settings-notice").hidden = !notice;
    byId("settings-notice").textContent = notice;
    for (const name of NUMBERS) byId(name).value = this.values[name] ?? "";
    byId("theme").value = this.values.theme || "";
    byId("key").value = this.key;
    this.dialog.showModal();
    if (notice) byId("key").focus();
    this.dialog.addEventListener("close", () => this.take(done), { once: true });
  }

  take(done) {
    for (const name of NUMBERS) {
      const field = byId(name);
      const isNumber = field.value !== "" && field.validity.valid;
      this.values[name] = isNumber ? field.valueAsNumber : undefined;
    }
    saveSettings(this.values);
    const key = byId("key").value.trim();
    const hasNewKey = key !== this.key;
    if (hasNewKey) saveKey((this.key = key));
    done(byId("system").value, hasNewKey);
  }

  showTheme() {
    document.documentElement.dataset.theme = this.values.theme || (dark.matches ? "dark" : "light");
  }
}
