// Markdown as elements. markdown-it parses it into tokens; no text is ever interpreted as HTML.
import MarkdownIt from "./vendor/markdown-it.js";
import { button, element } from "./elements.js";

const parser = new MarkdownIt({ html: false, linkify: false, breaks: true });
const LINKS = /^(https?:|mailto:)/i;
const HEADING = /^h([1-6])$/;
const BLOCKS = new Set(["p", "ul", "ol", "li", "blockquote", "hr",
  "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "s", "br", "code"]);

/** Render a text. Returns a fragment of new elements. */
export function render(text, copy) {
  const root = document.createDocumentFragment();
  append(root, parser.parse(text, {}), copy);
  return root;
}

function append(root, tokens, copy) {
  const open = [root];
  for (const token of tokens) {
    const parent = open[open.length - 1];
    if (token.nesting === -1) {
      open.pop();
    } else if (token.type === "inline") {
      append(parent, token.children, copy);
    } else if (token.nesting === 1) {
      open.push(opened(parent, token));
    } else {
      leaf(parent, token, copy);
    }
  }
}

function opened(parent, token) {
  if (token.hidden) return parent; // a paragraph of a tight list
  if (token.type === "link_open") return link(parent, token.attrGet("href"));
  const heading = HEADING.exec(token.tag); // the page has h1, and h2 for each message
  if (!heading && !BLOCKS.has(token.tag)) return parent;
  const child = element(heading ? `h${Math.min(6, Number(heading[1]) + 2)}` : token.tag);
  const start = token.attrGet("start");
  if (token.tag === "ol" && start) child.start = Number(start);
  const align = /text-align:(left|right|center)/.exec(token.attrGet("style") || "");
  if (align) child.style.textAlign = align[1];
  if (token.tag === "table") {
    const frame = element("div", "table");
    frame.tabIndex = 0;
    frame.append(child);
    parent.append(frame);
  } else {
    parent.append(child);
  }
  return child;
}

function leaf(parent, token, copy) {
  switch (token.type) {
    case "text":
      parent.append(token.content);
      break;
    case "code_inline":
      parent.append(element("code", "", token.content));
      break;
    case "fence":
    case "code_block":
      parent.append(code(token.content, token.info.trim().split(/\s+/)[0], copy));
      break;
    case "hardbreak":
    case "softbreak":
      parent.append(element("br"));
      break;
    case "hr":
      parent.append(element("hr"));
      break;
    case "image": // it is not loaded: a request would leave the machine
      link(parent, token.attrGet("src")).append(token.content || "image");
      break;
    default:
      parent.append(token.content);
  }
}

function link(parent, href) {
  if (!LINKS.test(href || "")) {
    const plain = element("span");
    parent.append(plain);
    return plain;
  }
  const anchor = element("a");
  anchor.href = href;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  parent.append(anchor);
  return anchor;
}

function code(content, language, copy) {
  const block = element("div", "code");
  const head = element("div", "code-head");
  head.append(element("span", "", language || "code"), button("copy", "Copy the code", () => copy(content)));
  const pre = element("pre");
  pre.tabIndex = 0;
  pre.append(element("code", "", content.replace(/\n$/, "")));
  block.append(head, pre);
  return block;
}
