"use strict";
// The menu on a phone, and the search: both work from a folder, without a server.
const up = document.documentElement.dataset.up;
const menu = document.getElementById("menu");
const field = document.getElementById("search");
const found = document.getElementById("found");
const MOST = 20;

menu.addEventListener("click", () => {
  const open = menu.getAttribute("aria-expanded") !== "true";
  menu.setAttribute("aria-expanded", String(open));
  document.body.classList.toggle("menu-open", open);
});

function loadIndex() {
  if (window.searchIndex || document.getElementById("index")) return;
  const script = document.createElement("script");
  script.id = "index";
  script.src = `${up}search.js`;
  script.addEventListener("load", show);
  document.head.append(script);
}

function score([address, page, heading, text], words) {
  // Each word has to begin one somewhere; a heading counts more than a title, a title more than the text, a guide more than code.
  const places = [heading, page, text].map((each) => each.toLowerCase());
  let sum = address.startsWith("guide/") ? 4 : 0;
  for (const word of words) {
    const begins = new RegExp(`(^|[^a-z0-9])${word.replace(/\W/g, "\\$&")}`);
    const here = places.findIndex((place) => begins.test(place));
    if (here < 0) return 0;
    sum += [12, 5, 1][here] + (places[0] === word ? 20 : 0);
  }
  return sum;
}

function item([address, page, heading, text], word) {
  const entry = document.createElement("li");
  const link = document.createElement("a");
  const place = document.createElement("small");
  link.href = up + address;
  link.textContent = heading;
  const start = Math.max(0, text.toLowerCase().indexOf(word) - 50);
  place.textContent = `${page === heading ? "" : `${page}: `}${text.slice(start, start + 140)}`;
  link.append(place);
  entry.append(link);
  return entry;
}

function show() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  found.hidden = !words.length;
  if (!words.length || !window.searchIndex) return;
  const ranked = window.searchIndex.map((entry) => [score(entry, words), entry]).filter(([points]) => points);
  ranked.sort((one, other) => other[0] - one[0]);
  found.replaceChildren(...ranked.slice(0, MOST).map(([, entry]) => item(entry, words[0])));
  if (!ranked.length) found.textContent = "Nothing was found.";
}

field.addEventListener("focus", loadIndex);
field.addEventListener("input", show);
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") found.querySelector("a")?.click();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== field) {
    event.preventDefault();
    field.focus();
  } else if (event.key === "Escape") {
    field.value = "";
    show();
  }
});
