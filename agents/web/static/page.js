// The page of `neuralsim play --web`: draws frames that come over a websocket, sends keys and commands.
import { Gamepads } from "./gamepad.js";

const $ = (id) => document.getElementById(id);
const PROTOCOL = "neuralsim.play.v1";
const CODES = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", KeyA: "left", KeyD: "right", KeyW: "up", KeyS: "down",
  ShiftLeft: "gentle", ShiftRight: "gentle",
  ...Object.fromEntries([..."jlikfhgt"].map((k) => [`Key${k.toUpperCase()}`, k])),
  ...Object.fromEntries([..."0123456789"].flatMap((k) => [[`Digit${k}`, k], [`Numpad${k}`, k]])),
};
const COMMANDS = { " ": "pause", ".": "step", Backspace: "rewind", r: "same", n: "new", p: "policy", v: "record" };
const HELP = [
  ["space", "pause and go on"], [".", "pause and take a single step"], ["backspace", "rewind two seconds, again for more"],
  ["r", "the same start again"], ["n", "a new start"], ["1 2 3 4", "denoising passes for each frame"],
  ["p", "hand over to the policy and back; a key of yours wins"], ["v", "record a video and episodes, stop recording"],
  ["+  -", "larger, smaller"], ["h", "this help"],
];
const ARROWS = { left: "←", right: "→", up: "↑", down: "↓", gentle: "shift" };
const HISTORY = 300;
const SILENCE = 12000; // the server says something every four seconds

let socket = null, world = null, people = { driver: null, viewers: [], asking: [], free: false }, head = null;
let met = false, heard = 0, received = 0, drawn = 0, zoom = 1, changes = 0, retry = 0, ended = false, noteUntil = 0;
let history = [];
const held = new Map(); // key -> sources that hold it down
const pressedAt = new Map(); // count of a change -> time of its event
const waits = [], frameTimes = [], arrivals = [];
const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

// -- connection ---------------------------------------------------------------------------------------------------------

function stored(key, make) {
  try {
    if (!sessionStorage.getItem(key)) sessionStorage.setItem(key, make());
    return sessionStorage.getItem(key);
  } catch { return make(); }
}
function randomHex() { return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join(""); }
function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) { // out of the address bar, so that it is not read over a shoulder or kept in the history
    try { sessionStorage.setItem("token", given); window.history.replaceState(null, "", location.pathname); } catch { return given; }
  }
  try { return sessionStorage.getItem("token") || ""; } catch { return ""; }
}

function connect() {
  ended = false;
  document.body.dataset.state = "connecting";
  const secret = token();
  const protocols = [PROTOCOL, `client.${stored("client", randomHex)}`, ...(secret ? [`token.${secret}`] : [])];
  const url = new URL("play", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  const opened = new WebSocket(url, protocols);
  socket = opened;
  opened.binaryType = "arraybuffer";
  received = drawn = 0;
  opened.onopen = () => { heard = performance.now(); met = true; retry = 0; $("gone").close(); document.body.dataset.state = "connected"; };
  opened.onmessage = (event) => {
    if (opened !== socket) return;
    heard = performance.now();
    if (typeof event.data === "string") takeNote(JSON.parse(event.data)); else takeFrame(event.data, opened);
  };
  opened.onclose = (event) => {
    if (opened !== socket) return;
    document.body.dataset.state = "lost";
    releaseAll(false);
    if ([4000, 4001, 1008].includes(event.code)) { lost(event.reason || "the server has closed the connection", false); return; }
    if (!met && retry > 1) { explain(); return; }
    $("seat-chip").textContent = "reconnecting";
    $("seat-chip").className = "chip";
    retry += 1;
    setTimeout(() => { if (opened === socket && !ended) connect(); }, Math.min(250 * 2 ** retry, 5000));
  };
}
function explain() { lost(token() ? "The server refuses this page or is not there. The token may be wrong." : "The server is not there, or asks for a token.", true); }
function lost(reason, askToken) {
  ended = true;
  $("seat-chip").textContent = "not connected";
  $("gone-reason").textContent = reason;
  $("token-form").hidden = !askToken;
  if (!$("gone").open) $("gone").showModal();
}
function send(message) { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message)); }

// -- what comes ---------------------------------------------------------------------------------------------------------

function takeNote(note) {
  if (note.kind === "world") describe(note);
  else if (note.kind === "people") { people = note; showPeople(); }
  else if (note.kind === "downloads") showDownloads(note.files);
  else if (note.kind === "refused") { $("message").textContent = note.reason; noteUntil = performance.now() + 2500; }
}

async function takeFrame(data, from) {
  received += 1;
  const number = received;
  arrivals.push([performance.now(), data.byteLength]);
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let picture;
  try { picture = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: "image/webp" })); }
  catch { picture = null; }
  if (from !== socket) return;
  if (number > drawn) { // decoding may overtake; an older frame is never drawn after a newer one
    drawn = number;
    if (picture && world) drawFrame(picture, header);
    head = header;
    showStatus();
    send({ kind: "ack", number });
    const at = header.change[0] === world?.you ? header.change[1] : 0;
    requestAnimationFrame(() => measure(at));
  }
  picture?.close();
}

function measure(count) {
  const now = performance.now();
  frameTimes.push(now);
  for (const [change, time] of pressedAt) {
    if (change > count) break;
    waits.push(now - time);
    pressedAt.delete(change);
  }
  if (waits.length > 400) waits.splice(0, waits.length - 400);
}

function drawFrame(picture, header) {
  const { width } = picture, height = world.real ? picture.height / 2 : picture.height;
  for (const id of ["dream", "real", "difference"]) {
    if ($(id).width !== width || $(id).height !== height) { $(id).width = width; $(id).height = height; }
  }
  $("dream").getContext("2d").drawImage(picture, 0, 0, width, height, 0, 0, width, height);
  if (!world.real) return;
  $("real").getContext("2d").drawImage(picture, 0, height, width, height, 0, 0, width, height);
  if (scratch.canvas.width !== width || scratch.canvas.height !== 2 * height) { scratch.canvas.width = width; scratch.canvas.height = 2 * height; }
  scratch.drawImage(picture, 0, 0);
  const pixels = scratch.getImageData(0, 0, width, 2 * height).data, size = 4 * width * height;
  const difference = new ImageData(width, height);
  let sum = 0;
  for (let i = 0; i < size; i += 1) {
    const d = Math.abs(pixels[i] - pixels[i + size]);
    difference.data[i] = i % 4 === 3 ? 255 : d;
    if (i % 4 !== 3) sum += d;
  }
  $("difference").getContext("2d").putImageData(difference, 0, 0);
  $("difference-about").textContent = `mean ${(sum / (3 * width * height)).toFixed(1)} of 255`;
  $("dream").classList.toggle("success", world.share && header.end > 0.5);
  $("real").classList.toggle("success", world.share && header.real[1]);
}

// -- status ---------------------------------------------------------------------------------------------------------------

const digits = (x, n = 2) => (x === null || x === undefined ? "unknown" : Math.abs(x) >= 1000 ? x.toPrecision(3) : (x + 0).toFixed(n).replace(/^-(0\.?0*)$/, "$1"));
const percent = (x) => (x === null ? "unknown" : `${Math.round(100 * x)} %`);

function describe(note) {
  world = note;
  history = [];
  $("world").replaceChildren(...note.worlds.map((name) => new Option(name, name, false, name === note.world)));
  $("dream-about").textContent = "the model";
  $("real-figure").hidden = $("difference-figure").hidden = !note.real;
  $("readings-figure").hidden = note.real;
  $("no-reference").textContent = note.no_reference;
  $("panels").classList.toggle("pair", !note.real);
  $("chart-name").textContent = note.reward;
  $("legend-real").hidden = $("legend-real-name").hidden = !note.real;
  document.title = `NeuralSim ${note.name}`;
  buildPad();
  const rows = [...note.keys.map(([key, effect]) => [key, effect]), ...HELP.filter(([k]) => note.denoises || !k.startsWith("1 "))];
  $("help-list").replaceChildren(...rows.flatMap(([key, effect]) => [element("dt", key), element("dd", effect)]));
  showPeople();
}

function element(tag, text) { const made = document.createElement(tag); made.textContent = text; return made; }

function bar(id, share, colour) {
  const box = $(id).parentElement;
  box.classList.add("bar");
  box.style.setProperty("--share", Math.max(0, Math.min(1, share ?? 0)));
  box.style.setProperty("--colour", `var(--${colour})`);
}

function showStatus() {
  if (!world || !head) return;
  const h = head;
  document.body.dataset.step = h.step;
  document.body.dataset.episode = h.episode;
  $("dream-about").textContent = world.denoises ? `the model, ${h.passes} pass${h.passes === 1 ? "" : "es"}` : "the model";
  $("dream-reward").textContent = `${world.reward} ${digits(h.reward)}`;
  $("dream-end").textContent = `${world.end} ${percent(h.end)}`;
  if (world.share) bar("dream-reward", h.reward, "blue");
  if (h.real) {
    $("real-reward").textContent = `${world.reward} ${digits(h.real[0])}`;
    $("real-end").textContent = `${world.end} ${h.real[1] ? "yes" : "no"}`;
    if (world.share) bar("real-reward", h.real[0], "green");
  }
  $("uncertainty").textContent = digits(h.uncertainty) + (world.limit === null ? "" : ` of ${world.limit.toFixed(2)}`);
  const above = world.limit !== null && h.uncertainty > world.limit;
  bar("uncertainty", world.limit ? h.uncertainty / world.limit : h.uncertainty, above ? "red" : "amber");
  $("limit").textContent = digits(h.uncertainty) + (world.limit === null ? "" : `, limit ${world.limit.toFixed(2)}`);
  if (!world.real) $("readings").replaceChildren(...h.readings.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  $("paused-chip").hidden = !h.paused;
  $("record-chip").hidden = h.recorded === null;
  if (h.recorded !== null) $("record-chip").textContent = `Rec ${h.recorded.toFixed(1)} s`;
  pressed(document.querySelector('[data-do="pause"]'), h.paused, h.paused ? "Go on" : "Pause");
  pressed(document.querySelector('[data-do="record"]'), h.recorded !== null, h.recorded !== null ? "Stop" : "Record");
  pressed(document.querySelector('[data-do="policy"]'), h.by !== "human");
  for (const button of document.querySelectorAll("[data-passes]")) pressed(button, Number(button.dataset.passes) === h.passes);
  for (const button of document.querySelectorAll(".pad [data-key]")) button.classList.toggle("held", h.held.includes(button.dataset.key));
  if (performance.now() > noteUntil && $("message").textContent !== h.message) $("message").textContent = h.message;
  $("step").textContent = h.step;
  $("start").textContent = `${h.start} of ${world.starts}`;
  $("fps").textContent = `${h.fps.toFixed(1)}/s`;
  $("return").textContent = digits(h.total);
  showSeat();
  const last = history.at(-1);
  if (last && (last.episode !== h.episode || h.step < last.step)) history = history.filter((p) => p.episode === h.episode && p.step < h.step);
  if (!last || last.step !== h.step || last.episode !== h.episode) history.push({ episode: h.episode, step: h.step, dream: h.reward, real: h.real?.[0] ?? null, uncertainty: h.uncertainty });
  if (history.length > HISTORY) history.shift();
}

function pressed(button, yes, text) {
  button.setAttribute("aria-pressed", String(yes));
  if (text) button.querySelector("span").textContent = text;
}

const drives = () => world !== null && people.driver === world.you;

function showSeat() {
  const mine = drives(), policy = head && head.by !== "human";
  const text = policy ? `${head.by} drives` : mine ? "You drive" : people.driver === null ? "No one drives" : `Viewer ${people.driver} drives`;
  const chip = $("seat-chip");
  if (document.body.dataset.state !== "connected") return;
  if (chip.textContent !== text) chip.textContent = text;
  chip.className = mine && !policy ? "chip mine" : "chip";
  document.body.dataset.drives = mine;
}

function showPeople() {
  if (!world) return;
  const mine = drives();
  const items = people.viewers.map((number) => {
    const words = [number === world.you ? "you" : `viewer ${number}`];
    if (number === people.driver) words.push("drives"); else if (people.asking.includes(number)) words.push("asks to drive");
    const item = element("li", "");
    item.append(element("span", words.join(", ")));
    if (mine && number !== world.you) {
      const give = element("button", "Hand over");
      give.type = "button";
      give.dataset.give = number;
      give.setAttribute("aria-label", `Hand over to viewer ${number}`);
      give.onclick = () => send({ kind: "seat", name: "give", number });
      item.append(give);
    }
    return item;
  });
  $("viewers").replaceChildren(...items);
  $("take").hidden = mine;
  $("take").textContent = people.free ? "Drive" : people.asking.includes(world.you) ? "Asked" : "Ask to drive";
  for (const button of document.querySelectorAll("[data-do], [data-key]")) button.disabled = !mine;
  for (const button of document.querySelectorAll("[data-passes]")) button.disabled = !mine || !world.denoises;
  $("world").disabled = !mine;
  showSeat();
}

function showDownloads(files) {
  $("downloads-title").hidden = files.length === 0;
  $("downloads").replaceChildren(...files.map(({ name, url }) => {
    const link = element("a", name), item = element("li", "");
    link.href = url;
    link.download = name;
    item.append(link);
    return item;
  }));
}

function drawCharts() {
  const dream = history.map((p) => p.dream), real = history.map((p) => p.real);
  chart($("chart"), [[dream, "--blue"], [real, "--green"]], world?.share ? 1 : null, null);
  chart($("doubt-chart"), [[history.map((p) => p.uncertainty), "--amber"]], null, world?.limit ?? null);
}

function chart(canvas, lines, top, limit) {
  const ratio = window.devicePixelRatio || 1, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const to = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  to.clearRect(0, 0, width, height);
  const values = lines.flatMap(([line]) => line).filter((x) => x !== null);
  const high = top ?? Math.max(1e-6, limit ?? 0, ...values) * 1.05, low = Math.min(0, ...values);
  const y = (x) => height - 3 - ((x - low) / (high - low)) * (height - 6);
  to.strokeStyle = style.getPropertyValue("--edge");
  to.lineWidth = 1;
  to.beginPath();
  for (const share of [0, 0.5, 1]) { to.moveTo(0, y(low + share * (high - low))); to.lineTo(width, y(low + share * (high - low))); }
  to.stroke();
  if (limit !== null) {
    to.strokeStyle = style.getPropertyValue("--red");
    to.setLineDash([5 * ratio, 5 * ratio]);
    to.beginPath(); to.moveTo(0, y(limit)); to.lineTo(width, y(limit)); to.stroke();
    to.setLineDash([]);
  }
  to.lineWidth = 2 * ratio;
  for (const [line, colour] of lines) {
    to.strokeStyle = style.getPropertyValue(colour);
    to.beginPath();
    let open = false;
    line.forEach((value, i) => {
      if (value === null) { open = false; return; }
      const x = (i / (HISTORY - 1)) * width;
      if (open) to.lineTo(x, y(value)); else to.moveTo(x, y(value));
      open = true;
    });
    to.stroke();
  }
}

function showFigures() {
  const now = performance.now();
  if (socket?.readyState === WebSocket.OPEN && now - heard > SILENCE) { // a dead connection would close minutes later
    const dead = socket;
    dead.onclose({ code: 1006 });
    dead.onclose = null;
    dead.close();
  }
  while (frameTimes.length && now - frameTimes[0] > 2000) frameTimes.shift();
  while (arrivals.length && now - arrivals[0][0] > 2000) arrivals.shift();
  $("page-fps").textContent = `${(frameTimes.length / 2).toFixed(1)}/s`;
  $("bandwidth").textContent = `${((arrivals.reduce((sum, [, size]) => sum + size, 0) * 8) / 2 / 1e6).toFixed(2)} Mbit/s`;
  const sorted = waits.slice(-50).sort((a, b) => a - b);
  $("latency").textContent = sorted.length ? `${Math.round(sorted[Math.floor(sorted.length / 2)])} ms` : "-";
  if (now > noteUntil && head && $("message").textContent !== head.message) $("message").textContent = head.message;
  drawCharts();
}

// -- keys, buttons, touch, gamepad ------------------------------------------------------------------------------------------

function hold(key, down, source) {
  if (!world || !world.acts.includes(key)) return false;
  const sources = held.get(key) ?? new Set();
  const before = sources.size > 0;
  if (down) sources.add(source); else sources.delete(source);
  held.set(key, sources);
  if (before === sources.size > 0 || !drives()) return true;
  changes += 1;
  if (!head?.paused) pressedAt.set(changes, performance.now());
  if (pressedAt.size > 100) pressedAt.delete(pressedAt.keys().next().value);
  send({ kind: "key", name: key, down, number: changes });
  return true;
}

function releaseAll(say = true) {
  const any = [...held.values()].some((sources) => sources.size);
  held.clear();
  pressedAt.clear();
  if (say && any && drives()) send({ kind: "clear" });
}

function command(name) {
  pressedAt.clear();
  send({ kind: "do", name });
}

function typed(event) {
  if ($("help").open || $("gone").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const onField = event.target.closest?.("select, input, textarea");
  const onButton = event.target.closest?.("button, a");
  if (onField || (onButton && (event.key === " " || event.key === "Enter"))) return;
  const key = CODES[event.code];
  const acts = key && world?.acts.includes(key);
  if (acts) {
    event.preventDefault();
    if (!event.repeat) hold(key, true, event.code);
    return;
  }
  const lower = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (lower in COMMANDS) { event.preventDefault(); if (!event.repeat || lower === ".") command(COMMANDS[lower]); }
  else if ("1234".includes(lower) && lower) send({ kind: "passes", number: Number(lower) });
  else if (lower === "h" || lower === "F1") { event.preventDefault(); $("help").showModal(); }
  else if (lower === "+" || lower === "=" || lower === "-") {
    zoom = Math.min(1, Math.max(0.4, zoom + (lower === "-" ? -0.1 : 0.1)));
    document.documentElement.style.setProperty("--zoom", zoom);
  }
}

function buildPad() {
  const effects = Object.fromEntries(world.keys.map(([key, effect]) => [key === "shift" ? "gentle" : key, effect]));
  // Keys that are named together, as "arrows", act one by one: their arrows say enough.
  const shown = world.acts.filter((key) => key in ARROWS || key in effects);
  const useful = shown.filter((key) => key !== "gentle" || world.keys.some(([name]) => name.includes("shift")));
  $("pad").replaceChildren(...useful.map((key) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.key = key;
    button.append(ARROWS[key] ?? key.toUpperCase());
    if (effects[key] && key !== "gentle") button.append(element("small", effects[key]));
    button.setAttribute("aria-label", `${key === "gentle" ? "gently" : key}${effects[key] ? `: ${effects[key]}` : ""}`);
    const source = `pad-${key}`;
    button.onpointerdown = (event) => { button.setPointerCapture(event.pointerId); hold(key, true, source); };
    button.onpointerup = button.onpointercancel = button.onlostpointercapture = () => hold(key, false, source);
    button.oncontextmenu = (event) => event.preventDefault();
    button.onkeydown = (event) => { if ((event.key === " " || event.key === "Enter") && !event.repeat) { event.preventDefault(); hold(key, true, source); } };
    button.onkeyup = (event) => { if (event.key === " " || event.key === "Enter") { event.preventDefault(); hold(key, false, source); } };
    return button;
  }));
}

document.addEventListener("keydown", typed);
document.addEventListener("keyup", (event) => { const key = CODES[event.code]; if (key && held.get(key)?.has(event.code)) hold(key, false, event.code); });
window.addEventListener("blur", () => releaseAll());
document.addEventListener("visibilitychange", () => { if (document.hidden) releaseAll(); });
for (const button of document.querySelectorAll("[data-do]")) button.onclick = () => command(button.dataset.do);
for (const button of document.querySelectorAll("[data-passes]")) button.onclick = () => send({ kind: "passes", number: Number(button.dataset.passes) });
$("help-button").onclick = () => $("help").showModal();
$("take").onclick = () => send({ kind: "seat", name: people.free ? "take" : "ask", number: 0 });
$("world").onchange = () => { send({ kind: "world", name: $("world").value }); $("world").blur(); };
$("again").onclick = () => { retry = 0; connect(); $("gone").close(); };
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  try { sessionStorage.setItem("token", $("token").value); } catch { /* asked for again next time */ }
  $("again").click();
};

const pads = new Gamepads((key, down) => hold(key, down, "gamepad"), command);
function tick() { if (drives()) pads.poll(); requestAnimationFrame(tick); }
requestAnimationFrame(tick);
setInterval(showFigures, 250);
window.neuralsim = { waits, frames: () => received }; // for measurements from the console
connect();
