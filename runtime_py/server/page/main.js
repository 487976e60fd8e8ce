// The chat page: conversations, the list of messages, and the composer.
import { generate, models, props, ServerError } from "./api.js";
import { button, byId, element, textButton } from "./elements.js";
import { editor, fill, messageView } from "./message_view.js";
import { Settings } from "./settings.js";
import { loadConversations, newConversation, saveConversations } from "./store.js";

const CONTEXT_FULL = "context_length_exceeded";
const PHONE = matchMedia("(max-width: 52rem)");
const NEAR = 80; // pixels from the end at which new text scrolls along

const settings = new Settings();
const scroller = byId("scroll");
const prompt = byId("prompt");
let conversations = loadConversations();
let current = conversations[0] || newConversation();
let served = []; // the models of the server
let contexts = {}; // tokens of context, by model
let running = null; // {controller, conversation, message}

// ---- the model ---------------------------------------------------------------------------------

const model = () => served.find((one) => one.id === byId("model").value) || served[0];
const isChat = () => model()?.meta?.chat ?? true;

async function connect() {
  try {
    served = await models(settings.key);
  } catch (error) {
    showError(error, connect);
    return;
  }
  hideNotice();
  const select = byId("model");
  select.replaceChildren(...served.map((one) => new Option(one.id, one.id)));
  if (served.some((one) => one.id === settings.values.model)) select.value = settings.values.model;
  select.hidden = served.length < 2;
  await showModel();
}

async function showModel() {
  const one = model();
  if (!one) return;
  const words = isChat()
    ? ["What is on your mind?", `You talk to ${one.id}.`, "Write a message"]
    : ["Begin a text", `${one.id} has no chat template: it continues what you write.`, "Write how the text goes on"];
  [byId("welcome-title").textContent, byId("welcome-text").textContent, prompt.placeholder] = words;
  try {
    contexts[one.id] = (await props(one.id, settings.key)).default_generation_settings.n_ctx;
  } catch (error) {
    if (error.status === 401) showError(error, connect);
  }
  showContext();
}

// ---- notices -------------------------------------------------------------------------------------

function showNotice(text, ...actions) {
  byId("notice").replaceChildren(element("span", "", text), ...actions);
  byId("notice").hidden = false;
  scrollToEnd();
}

function hideNotice() {
  byId("notice").hidden = true;
}

function showError(error, retry) {
  if (error.status === 401) {
    openSettings("The server needs an API key, or this one is wrong.");
  } else if (error.code === CONTEXT_FULL) {
    showFull();
  } else {
    const text = error instanceof ServerError ? error.message : `The page failed: ${error.message}`;
    showNotice(text, textButton("Try again", () => (hideNotice(), retry())));
  }
}

function showFull() {
  const size = contexts[model()?.id];
  const limit = size ? `${size.toLocaleString("en")} tokens` : "what the model can read";
  showNotice(
    `The context is full: the conversation has ${limit}. Begin a new one, or shorten an earlier message.`,
    textButton("New conversation", startNew),
  );
  showContext(size);
}

function showContext(used = current.used || 0) {
  const size = contexts[model()?.id];
  byId("context").hidden = !size || !used;
  if (!size || !used) return;
  const meter = document.querySelector(".meter");
  meter.setAttribute("aria-valuemax", size);
  meter.setAttribute("aria-valuenow", used);
  meter.firstElementChild.style.width = `${Math.min(100, (100 * used) / size)}%`;
  byId("context").classList.toggle("full", used >= size);
  byId("context-text").textContent = `${used.toLocaleString("en")} / ${size.toLocaleString("en")} tokens`;
}

// ---- conversations ---------------------------------------------------------------------------------

function save() {
  if (current.messages.length && !conversations.includes(current)) conversations.unshift(current);
  const removed = saveConversations(conversations);
  if (removed > 0) conversations = conversations.slice(0, conversations.length - removed);
  if (removed) {
    showNotice(
      removed > 0
        ? "The browser's storage is full: the oldest conversation was removed."
        : "This browser stores nothing: the conversation is lost when the page is closed.",
    );
  }
}

function showConversations() {
  const items = conversations.map((one) => {
    const item = element("li", one === current ? "current" : "");
    const name = element("button", "name", titleOf(one));
    name.type = "button";
    if (one === current) name.setAttribute("aria-current", "true");
    name.addEventListener("click", () => select(one));
    item.append(name, button("delete", `Delete ${titleOf(one)}`, () => confirmRemoval(one)));
    return item;
  });
  byId("conversations").replaceChildren(...items);
  byId("title").textContent = titleOf(current);
  document.title = current.messages.length ? `${titleOf(current)} · Chat` : "Chat";
}

const titleOf = (conversation) => conversation.title || "New conversation";

function select(conversation) {
  stop();
  current = conversation;
  toggleSidebar(false);
  show();
  if (!PHONE.matches) prompt.focus();
}

function startNew() {
  hideNotice();
  select(newConversation(current.system));
}

function confirmRemoval(conversation) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = `Delete “${titleOf(conversation)}”? It cannot be restored.`;
  dialog.returnValue = "";
  dialog.showModal();
  dialog.addEventListener("close", () => dialog.returnValue === "yes" && remove(conversation), { once: true });
}

function remove(conversation) {
  if (running?.conversation === conversation) stop();
  conversations = conversations.filter((one) => one !== conversation);
  if (conversation === current) current = conversations[0] || newConversation();
  save();
  show();
}

function toggleSidebar(open) {
  byId("sidebar").classList.toggle("open", open);
  byId("backdrop").hidden = !open;
  byId("open-sidebar").setAttribute("aria-expanded", String(open));
  if (open) byId("close-sidebar").focus();
}

// ---- messages ----------------------------------------------------------------------------------------

const actions = { copy, edit, regenerate };

function show() {
  hideNotice();
  byId("messages").replaceChildren(...current.messages.map((one) => messageView(one, actions)));
  byId("welcome").hidden = current.messages.length > 0;
  showConversations();
  showContext();
  scroller.scrollTop = scroller.scrollHeight;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  } catch {
    showNotice("The browser does not let the page copy. Mark the text and copy it.");
  }
}

function edit(message) {
  if (running) return;
  const index = current.messages.indexOf(message);
  editor(
    byId("messages").children[index],
    message,
    (text) => {
      current.messages.length = index;
      send(text);
    },
    show,
  );
}

function regenerate(message) {
  if (running) return;
  current.messages.length = current.messages.indexOf(message);
  show();
  answer();
}

function send(text) {
  current.messages.push({ role: "user", content: text });
  if (current.messages.length === 1 || !current.title) current.title = text.trim().split("\n")[0].slice(0, 60);
  save();
  show();
  answer();
}

async function answer() {
  hideNotice();
  const conversation = current;
  const message = { role: "assistant", content: "", reasoning: "", facts: "", isPlain: !isChat() };
  const messages = conversation.messages.map(({ role, content }) => ({ role, content }));
  if (conversation.system && isChat()) messages.unshift({ role: "system", content: conversation.system });
  conversation.messages.push(message);
  const item = messageView(message, actions);
  byId("messages").append(item);
  const body = item.querySelector(".body");
  body.classList.add("waiting");
  running = { controller: new AbortController(), conversation, message };
  showRunning(true);
  scrollToEnd();
  const draw = eachFrame(() => {
    const follows = isNearEnd();
    fill(body, message, copy);
    if (follows && conversation === current) scrollToEnd();
  });
  let failure = null;
  let finish = null;
  try {
    const request = {
      model: model()?.id,
      messages,
      sampling: settings.sampling,
      isChat: isChat(),
      key: settings.key,
      signal: running.controller.signal,
    };
    for await (const part of generate(request)) {
      message.content += part.text;
      message.reasoning += part.reasoning;
      finish = part.finish || finish;
      if (part.timings) message.facts = speedOf(part.timings);
      if (part.usage) conversation.used = part.usage.total_tokens;
      if (part.text || part.reasoning) draw();
    }
  } catch (error) {
    if (error.name !== "AbortError") failure = error;
  }
  draw.now();
  running = null;
  showRunning(false);
  body.classList.remove("waiting");
  if (!message.content && !message.reasoning) {
    conversation.messages.splice(conversation.messages.indexOf(message), 1);
    item.remove();
  } else {
    item.replaceWith(messageView(message, actions));
  }
  if (conversation !== current) {
    saveConversations(conversations);
    return;
  }
  save();
  showConversations();
  showContext();
  announce(failure ? "The answer failed" : `Answer: ${message.content.slice(0, 300)}`);
  const size = contexts[model()?.id];
  if (failure) showError(failure, answer);
  else if (finish === "length" && size && conversation.used >= size) showFull();
  else if (finish === "length") showNotice("The answer reached its largest length, which the settings name.");
}

function speedOf(timings) {
  const speed = timings.predicted_per_second;
  const count = `${timings.predicted_n.toLocaleString("en")} tokens`;
  if (!Number.isFinite(speed) || timings.predicted_n < 2) return count;
  return `${count} · ${speed >= 20 ? Math.round(speed) : speed.toFixed(1)} tokens/s`;
}

function stop() {
  running?.controller.abort();
}

function showRunning(isRunning) {
  byId("stop").hidden = !isRunning;
  byId("send").hidden = isRunning;
  document.querySelectorAll(".actions button").forEach((one) => (one.disabled = isRunning));
  if (!isRunning) showSend();
}

const showSend = () => (byId("send").disabled = !prompt.value.trim() || !served.length);

function announce(text) {
  byId("status").textContent = text;
}

/** A function that runs at most once a frame, and `now`, which runs it at once. */
function eachFrame(action) {
  let waiting = 0;
  const schedule = () => (waiting ||= requestAnimationFrame(run));
  const run = () => {
    cancelAnimationFrame(waiting);
    waiting = 0;
    action();
  };
  schedule.now = run;
  return schedule;
}

// ---- scrolling -----------------------------------------------------------------------------------------

const isNearEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
const scrollToEnd = () => (scroller.scrollTop = scroller.scrollHeight);
const showToEnd = () => (byId("to-end").hidden = isNearEnd());

// ---- events --------------------------------------------------------------------------------------------

function submit() {
  const text = prompt.value.trim();
  if (!text || running || !served.length) return;
  prompt.value = "";
  resize();
  send(text);
}

function resize() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
  showSend();
}

function editLast() {
  const last = current.messages.findLast((one) => one.role === "user");
  if (last) edit(last);
}

function openSettings(notice = "") {
  settings.open({ system: current.system, isChat: isChat(), notice }, (system, hasNewKey) => {
    current.system = system.trim();
    save();
    if (hasNewKey || notice) connect();
  });
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("input", resize);
prompt.addEventListener("keydown", (event) => {
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (sends && !PHONE.matches) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !prompt.value && !running) {
    event.preventDefault();
    editLast();
  }
});
byId("stop").addEventListener("click", stop);
byId("new").addEventListener("click", startNew);
byId("open-settings").addEventListener("click", () => openSettings());
byId("open-sidebar").addEventListener("click", () => toggleSidebar(true));
byId("close-sidebar").addEventListener("click", () => {
  toggleSidebar(false);
  byId("open-sidebar").focus();
});
byId("backdrop").addEventListener("click", () => toggleSidebar(false));
byId("to-end").addEventListener("click", scrollToEnd);
byId("model").addEventListener("change", () => {
  settings.set("model", byId("model").value);
  showModel();
});
scroller.addEventListener("scroll", showToEnd, { passive: true });
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (running) stop();
    else toggleSidebar(false);
  } else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    startNew();
  } else if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    prompt.focus();
  }
});

show();
showSend();
connect();
if (!PHONE.matches) prompt.focus();
