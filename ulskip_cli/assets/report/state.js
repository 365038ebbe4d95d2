"use strict";
// What is shown is in the address, after "#?", so that a view can be kept and sent.
const data = JSON.parse(document.getElementById("data").textContent);
const state = new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : "");

function keep(key, value) {
  if (value === "" || value === null || value === undefined) state.delete(key);
  else state.set(key, value);
  const text = state.toString();
  history.replaceState(null, "", text ? `#?${text}` : location.pathname + location.search);
}

// An element with attributes and children; text is always text, never markup.
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") element.style.cssText = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Runs what was asked for last, once typing pauses.
let pending = 0;
function settled(action) {
  clearTimeout(pending);
  pending = setTimeout(action, 120);
}

function dot(strategy) {
  return make("span", { class: "dot", style: `--c:${data.colours[strategy] || "var(--soft)"}`, "aria-hidden": "true" });
}

(function theme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (state.get("theme")) root.dataset.theme = state.get("theme");
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    keep("theme", root.dataset.theme);
  });
})();
