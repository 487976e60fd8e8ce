// One message as a list item: its text, its actions, and its editor.
import { button, element, textButton } from "./elements.js";
import { render } from "./markdown.js";

/** Make the item of a message. `actions`: {copy, edit, regenerate}. */
export function messageView(message, actions) {
  const item = element("li", `message ${message.role}`);
  const who = element("h2", "visually-hidden", message.role === "user" ? "You" : "Model");
  const body = element("div", "body");
  item.append(who, body);
  fill(body, message, actions.copy);
  item.append(bar(message, actions));
  return item;
}

/** Show the present text of a message. */
export function fill(body, message, copy) {
  if (message.role === "user") {
    body.textContent = message.content;
    return;
  }
  const parts = [];
  if (message.reasoning) {
    const wasOpen = body.querySelector("details.reasoning")?.open;
    const details = element("details", "reasoning");
    details.open = wasOpen ?? !message.content;
    details.append(element("summary", "", "Reasoning"), element("div", "", message.reasoning));
    parts.push(details);
  }
  if (message.isPlain) {
    const text = element("p", "", message.content.trimStart());
    text.style.whiteSpace = "pre-wrap";
    parts.push(text);
  } else {
    parts.push(render(message.content, copy));
  }
  body.replaceChildren(...parts);
}

function bar(message, actions) {
  const row = element("div", "actions");
  row.append(button("copy", "Copy the message", () => actions.copy(message.content)));
  if (message.role === "user") row.append(button("edit", "Edit the message", () => actions.edit(message)));
  else row.append(button("again", "Regenerate the answer", () => actions.regenerate(message)));
  if (message.facts) row.append(element("span", "facts", message.facts));
  return row;
}

/** Let the user edit the message of an item. `save` gets the new text; `cancel` restores the item. */
export function editor(item, message, save, cancel) {
  const form = element("div", "editor");
  const field = element("textarea");
  field.value = message.content;
  field.rows = Math.min(12, message.content.split("\n").length + 1);
  field.setAttribute("aria-label", "Edit the message");
  const done = () => field.value.trim() && save(field.value);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      done();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
  });
  const row = element("div");
  row.append(textButton("Cancel", cancel), textButton("Send", done, "small primary"));
  form.append(field, row);
  item.replaceChildren(form);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}
