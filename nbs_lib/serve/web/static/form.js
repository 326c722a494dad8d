"use strict";
const $ = (id) => document.getElementById(id);
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;
const OTHER = "\u0000other";
let token = "",
  served = null,
  again = 0;

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

async function ask(path, body) {
  const headers = token ? { authorization: "Bearer " + token } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const began = performance.now();
  try {
    const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body, cache: "no-store" });
    const said = await answer.json().catch(() => ({ error: "The service answered " + answer.status + "." }));
    return { status: answer.status, said, took: performance.now() - began, after: answer.headers.get("retry-after") };
  } catch {
    return { status: 0, said: { error: "The service does not answer: is it still running?" }, took: 0 };
  }
}

function controlOf(field, id) {
  const about = { id, name: field.name, "aria-describedby": id + "-hint " + id + "-wrong", autocomplete: "off" };
  const value = field.value ?? "";
  const choices = field.kind === "bool" ? ["true", "false"] : field.levels;
  if (choices.length) {
    const select = make("select", about);
    select.append(make("option", { value: "" }, "\u2013"));
    for (const each of choices) select.append(make("option", { value: each }, each));
    if (field.kind !== "bool") select.append(make("option", { value: OTHER }, "another \u2026"));
    select.value = String(value);
    select.addEventListener("change", () => {
      if (select.value !== OTHER) return;
      const free = make("input", { ...about, type: "text" });
      select.replaceWith(free);
      free.focus();
    });
    return select;
  }
  if (field.kind === "time") {
    return make("input", { ...about, type: "datetime-local", step: 1, value: String(value).replace(/Z$/, "") });
  }
  const keyboard = { number: "decimal", whole: "numeric" }[field.kind];
  return make("input", { ...about, type: "text", spellcheck: "false", value: String(value), inputmode: keyboard });
}

function fieldOf(field, number) {
  const id = "field-" + number;
  const unit = field.kind === "time" ? "UTC" : field.unit,
    optional = field.required || field.view ? "" : "optional";
  const small = [unit, optional].filter(Boolean).join(", ");
  const label = make("label", { for: id }, field.name, make("span", {}, small ? " (" + small + ")" : ""));
  const hint = [field.description, field.seen].filter(Boolean).join("; ");
  const wrong = make("p", { id: id + "-wrong", class: "wrong", hidden: true });
  return make("div", { class: "field" }, label, controlOf(field, id), make("p", { id: id + "-hint" }, hint), wrong);
}

function literal(field, text) {
  if (field.kind === "bool" && (text === "true" || text === "false")) return text;
  if ((field.kind === "number" || field.kind === "whole") && NUMBER.test(text)) return text;
  return JSON.stringify(field.kind === "time" ? text + "Z" : text);
}

function rowOf() {
  const typed = served.fields.map((field, k) => [field, $("field-" + k).value.trim()]);
  const brought = new Set(typed.filter(([field, text]) => field.view && text).map(([field]) => field.view));
  const parts = [];
  for (const [field, text] of typed) {
    if (field.view ? brought.has(field.view) : text || field.required) {
      parts.push(JSON.stringify(field.name) + ":" + (text ? literal(field, text) : "null"));
    }
  }
  return "{" + parts.join(",") + "}";
}

function draw(form) {
  const kept = served ? Object.fromEntries(served.fields.map((field, k) => [field.name, $("field-" + k).value])) : {};
  served = form;
  document.title = "Predict " + form.target;
  $("title").textContent = "Predict \u201c" + form.target + "\u201d";
  $("about").textContent = "Say what is known, and the model " + form.model + " answers. The fields hold an example.";
  const made = form.fields.map((field, k) => [field, fieldOf(field, k)]);
  $("fields").replaceChildren(...made.filter(([field]) => !field.view).map(([, element]) => element));
  $("views").replaceChildren();
  for (const [name, description] of Object.entries(form.views)) {
    const own = made.filter(([field]) => field.view === name).map(([, element]) => element);
    const box = make("div", { class: "fields" }, ...own);
    if (own.length) $("views").append(make("h3", {}, name), make("p", {}, description), box);
  }
  $("looked-up").hidden = !$("views").childElementCount;
  form.fields.forEach((field, k) => {
    if (kept[field.name] !== undefined) $("field-" + k).value = kept[field.name];
  });
  $("form").hidden = false;
}

function sentence(text) {
  const parts = text.split("`").map((part, k) => (k % 2 ? make("code", {}, part) : part));
  if (typeof parts[0] === "string") parts[0] = parts[0].charAt(0).toUpperCase() + parts[0].slice(1);
  return make("p", {}, ...parts);
}

function note(tone, badge, heading, ...rest) {
  const top = [make("span", { class: "badge" }, badge), make("h2", {}, heading)];
  const box = make("div", { class: "verdict " + tone }, ...top, ...rest);
  $("answer").replaceChildren(box);
  return box;
}

const plain = (number, digits = 5) => String(Number(number.toPrecision(digits)));

function percent(share) {
  if (share > 0 && share < 0.001) return "below 0.1\u00a0%";
  return (share > 0.999 && share < 1 ? "above 99.9" : plain(100 * share, 3)) + "\u00a0%";
}

function bars(shares, threshold) {
  const box = make("div", { class: "bars" });
  for (const [name, share] of shares) {
    const fill = make("i"),
      bar = make("div", { class: "bar", role: "img", "aria-label": percent(share) }, fill);
    fill.style.width = 100 * share + "%";
    if (threshold !== undefined) {
      const mark = make("b");
      mark.style.left = 100 * threshold + "%";
      bar.append(mark);
    }
    box.append(make("span", {}, name), bar, make("span", {}, percent(share)));
  }
  return box;
}

function inWords(said) {
  if (served.task === "regression") return [plain(said.value), []];
  if (served.task === "multiclass") {
    const shares = Object.entries(said.probabilities).sort((one, other) => other[1] - one[1]);
    return [said.class, [bars(shares.slice(0, 12))]];
  }
  const yes = served.classes[1],
    from = percent(served.threshold);
  const words = `The probability of \u201c${yes}\u201d is ${percent(said.probability)}; `;
  const told = make("p", {}, words, `from ${from} on, the answer is \u201c${yes}\u201d.`);
  return [said.class, [told, bars([[yes, said.probability]], served.threshold)]];
}

function facts(said, took) {
  const list = make("dl", { class: "facts" });
  const add = (term, text) => list.append(make("dt", {}, term), make("dd", {}, text));
  add("Rung", said.rung);
  if (said.history !== null && said.history !== undefined) {
    const unit = served.history ? " " + served.history : "";
    add("History", said.history ? plain(said.history) + unit + ", where there is least" : "none");
  }
  add("Took", plain(Number(took.toFixed(1))) + " ms, there and back");
  add("Model", said.model);
  add("Answer", said.id);
  return list;
}

function whyOf(said, row) {
  const written = performance.now() + 2000; // an answer is in the log within that time
  const box = make("div", { class: "why" }),
    told = make("div", { role: "status" });
  const button = make("button", { type: "button" }, "Why?");
  button.addEventListener("click", async () => {
    button.disabled = true;
    told.replaceChildren(make("p", {}, "One moment \u2026"));
    const logged = performance.now() > written && JSON.stringify({ id: said.id });
    let answer = await ask("explain?change=1", logged || row);
    if (logged && answer.status === 404) answer = await ask("explain?change=1", row); // there is no log
    button.disabled = false;
    if (answer.status !== 200) return told.replaceChildren(sentence(answer.said.error));
    button.remove();
    told.replaceChildren(...another(said.model, answer.said.answer.model), ...explained(answer.said));
  });
  box.append(button, told);
  return box;
}

function another(before, now) {
  if (before === now) return [];
  const words = "The answer above came from the model " + before + ". ";
  return [make("p", {}, make("strong", {}, "Another model explains: "), words, "This is what " + now + " says.")];
}

function explained(found) {
  const percents = found.told !== null,
    unit = percents ? " points" : "";
  const usual = percents ? percent(found.usual) : plain(found.usual);
  const of = percents ? "the probability of \u201c" + found.told + "\u201d" : "it";
  const about = "In the usual case " + of + " is ";
  const reasons = found.reasons.map((reason) => make("li", {}, reason.text));
  const part = (title, ...rest) => [make("h3", {}, title), ...rest];
  const rows = found.contributions.map((each) => {
    const inputs = Object.entries(each.inputs).map(([name, { value }]) => name + " = " + (value ?? "unknown"));
    const size = Number(each.points.toFixed(percents ? 1 : 3)),
      points = (size > 0 ? "+" : "") + plain(size) + unit;
    const named = each.description || each.code.replace(/^view:/, "what is known of ");
    const what = make("details", {}, make("summary", {}, named), inputs.join("; "));
    return make("tr", {}, make("td", {}, what), make("td", {}, points));
  });
  const head = make("tr", {}, make("th", { scope: "col" }, "What"), make("th", { scope: "col" }, "Adds"));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  return [
    ...part("Why", make("p", {}, about + usual + "."), make("ul", {}, ...reasons)),
    ...part("How far to trust it", sentence(found.confidence)),
    ...part("Cases like it", sentence(found.similar.text)),
    ...part("What would change it", sentence(found.what_would_change_it.text)),
    make("p", { class: "caveat" }, found.caveat),
    make("details", {}, make("summary", {}, "Everything that counted"), table),
  ];
}

function show(said, took, row) {
  const [heading, rest] = inWords(said);
  const flags = (said.flags || []).map((flag) => make("li", {}, flag));
  if (flags.length) rest.push(make("p", {}, make("strong", {}, "Odd about this row:")), make("ul", {}, ...flags));
  const who = "answered by " + (served.rungs[said.rung] || said.rung) + ".";
  rest.push(said.degraded ? make("p", {}, make("strong", {}, "Take it with care: "), who) : sentence(who));
  const [tone, badge] = said.degraded ? ["warn", "\u25B2 NOT THE BEST ANSWER"] : ["good", "\u2713 FULL ANSWER"];
  const box = note(tone, badge, served.target + ": " + heading, ...rest, facts(said, took));
  box.append(whyOf(said, row), asked(said.id));
  $("answer").scrollIntoView({ block: "nearest" });
}

function asked(id) {
  const box = make("div", { class: "next" }, make("strong", {}, "What was it really?"));
  const told = make("p", { role: "status" });
  const buttons = make("div", { class: "buttons" });
  const send = async (label) => {
    const { status, said } = await ask("feedback", '{"id":' + JSON.stringify(id) + ',"label":' + label + "}");
    told.textContent = status === 200 ? "Noted, thank you." : said.error;
  };
  if (served.task === "regression") {
    const value = make("input", { type: "text", inputmode: "decimal", "aria-label": "what it really was" });
    const button = make("button", { type: "button" }, "Send");
    const typed = () => (NUMBER.test(value.value.trim()) ? value.value.trim() : JSON.stringify(value.value));
    button.addEventListener("click", () => send(typed()));
    buttons.append(value, button);
  }
  for (const name of served.task === "regression" ? [] : served.classes) {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => send(JSON.stringify(name)));
    buttons.append(button);
  }
  box.append(buttons, told);
  return box;
}

function refuse({ status, said, after }) {
  const k = served ? served.fields.findIndex((field) => field.name === said.field) : -1;
  const text = said.error || "The service answered " + status + ".";
  const later = after ? [make("p", {}, "Come again in " + after + " s.")] : [];
  const heading = k < 0 ? "The service could not answer." : "One field is not right.";
  note("bad", "\u2717 NOT ANSWERED", heading, sentence(text), ...later);
  if (k < 0) return;
  const control = $("field-" + k),
    wrong = $("field-" + k + "-wrong");
  if (control.closest("details")) control.closest("details").open = true;
  control.setAttribute("aria-invalid", "true");
  const short = text.replace(/^field .*?: /, "").replace(/, or null\.$/, ", or empty.");
  wrong.replaceChildren(...sentence(short).childNodes);
  wrong.hidden = false;
  control.focus();
}

async function submit(event) {
  event.preventDefault();
  for (const control of $("form").querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  for (const wrong of $("form").querySelectorAll(".wrong")) wrong.hidden = true;
  $("send").disabled = true;
  const row = rowOf(),
    answer = await ask("predict", row);
  $("send").disabled = false;
  if (answer.status === 401) return locked();
  if (answer.status !== 200) return refuse(answer);
  if (answer.said.model !== served.model && answer.said.rung !== "prior") await start();
  show(answer.said, answer.took, row);
}

function locked(wrong) {
  for (const link of document.querySelectorAll("nav a:not([aria-current])")) link.hidden = true;
  $("locked").hidden = false;
  $("form").hidden = true;
  $("wrong-token").hidden = !wrong;
  $("token").focus();
}

async function start() {
  clearTimeout(again);
  const { status, said } = await ask("form");
  $("locked").hidden = true;
  if (status === 401) return locked(token !== "");
  if (status === 200 && said.fields) {
    if (!served) $("answer").replaceChildren();
    draw(said);
    if (said.ready) note("warn", "\u25B2 NOT READY", "The service is not ready.", sentence(said.ready));
    else if (said.log) note("warn", "\u25B2 NOT LOGGED", "No answer can be found again, or learned from.", sentence(said.log));
    return;
  }
  const next = make("p", { class: "next" }, "This page looks again by itself, and shows the form once there is one.");
  note("warn", "\u25B2 NOTHING TO ASK", "No model is served yet.", sentence(said.ready || said.error || ""), next);
  again = setTimeout(start, 3000);
}

$("form").addEventListener("submit", submit);
$("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  start();
});
start();
