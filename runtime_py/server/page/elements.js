// Elements of the page. Texts are set as text, never as HTML.
const SVG = "http://www.w3.org/2000/svg";

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** Make an element with a class and a text. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** Make a button that shows an icon. */
export function button(icon, label, action) {
  const made = element("button", "icon");
  made.type = "button";
  made.title = label;
  made.setAttribute("aria-label", label);
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${icon}`);
  svg.append(use);
  made.append(svg);
  made.addEventListener("click", action);
  return made;
}

/** Make a button that shows a text. */
export function textButton(text, action, className = "small") {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}
