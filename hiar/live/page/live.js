// The page: shows the server's messages as videos, figures and text, and sends the viewer's actions to the server.

import { keepTogether, makePlayer, startTogether } from "./players.js";
import { makeCharts } from "./charts.js";

const TICK = 200; // milliseconds between two reports of the playback position
const AGAIN = 1000; // milliseconds until a lost connection is retried
const WRONG_TOKEN = 4401;
const CLOSED = { 4429: "The maximum number of viewers is reached. Trying again.", 4408: "The connection was too slow. Trying again." };
const at = (id) => document.getElementById(id);

let socket, hello, players = [], cards = [], notes = [], charts, started, paused = false, asked = null;

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("open", () => tell({ kind: "enter", token: sessionStorage.getItem("token") ?? "" }));
  socket.addEventListener("message", ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : watch(data)));
  socket.addEventListener("close", ({ code }) => {
    hello = null;
    if (code === WRONG_TOKEN) {
      at("entry").hidden = false;
      at("token").focus();
      return say(sessionStorage.getItem("token") ? "This token is wrong." : "This page needs a token.", true);
    }
    say(CLOSED[code] ?? "The server does not answer. Trying again.", true);
    setTimeout(connect, AGAIN);
  });
}

function tell(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function hear(message) {
  const heard = { hello: greet, block, prompt: note, restart: note, refused: refuse, taken: () => {}, broken };
  heard[message.kind]?.(message);
}

function greet(message) {
  hello = message;
  for (const player of players) player.close();
  const names = hello.students.map(({ name }) => name);
  cards = hello.students.map(makeCard);
  at("stage").replaceChildren(...cards.map(({ figure }) => figure));
  players = cards.map(({ video }, i) => makePlayer(video, hello.students[i].codec));
  charts?.clear();
  charts = makeCharts(at("charts"), names.map((_, i) => `--c${i}`));
  [started, notes, asked] = [false, [], null];
  at("history").replaceChildren();
  hello.history.forEach(note);
  at("prompt").maxLength = hello.longest;
  at("prompt").placeholder = hello.prompt;
  at("limit").textContent = `${hello.world}: ${hello.width} x ${hello.height} pixels, ${hello.fps} frames/s, made up to ${hello.lead} s ahead`;
  at("words").replaceChildren(...hello.suggestions.map((text) => new Option(text)));
  at("suggestions").replaceChildren(...hello.suggestions.slice(0, 6).map(suggestion));
  at("seed").value = hello.seed;
  choices("order", hello.orders, hello.order);
  choices("context", hello.contexts, hello.context);
  at("entry").hidden = true;
  say("Waiting for the first pictures.");
}

function makeCard({ name, device, walk }, number) {
  const figure = document.createElement("figure");
  figure.style.setProperty("--own", `var(--c${number})`);
  const caption = document.createElement("figcaption");
  const video = document.createElement("video");
  const list = document.createElement("dl");
  caption.textContent = name;
  Object.assign(video, { muted: true, playsInline: true, disablePictureInPicture: true });
  video.setAttribute("aria-label", `Video of ${name}`);
  const figures = Object.fromEntries(["Block", "Computes", "Latency", "Stalls, dropped", "Memory"].map((term) => {
    const value = document.createElement("dd");
    const key = document.createElement("dt");
    key.textContent = term;
    list.append(key, value);
    return [term, value];
  }));
  const way = document.createElement("p");
  way.className = "soft";
  way.textContent = `${walk.order}, ${walk.context} context; ${device}`;
  const save = document.createElement("button");
  save.textContent = "Save the last minute";
  save.addEventListener("click", () => saveMinute(number, name));
  figure.append(caption, video, list, way, save);
  return { figure, video, figures };
}

function block({ student, start, end, pictures, seconds, figures, memory, block: number }) {
  const card = cards[student];
  card.rate = 0.8 * (card.rate ?? pictures / seconds) + 0.2 * pictures / seconds;
  card.last = { number, memory };
  charts.add(student, end, figures);
  card.made = end;
}

function watch(data) {
  players[new Uint8Array(data, 0, 1)[0]]?.add(data.slice(1));
}

function note(message) {
  const { kind, seconds, prompt, seed } = message;
  notes.push(seconds);
  if (hello) at("prompt").placeholder = prompt;
  const item = document.createElement("li");
  const when = document.createElement("time");
  when.textContent = clock(seconds);
  item.append(when, kind === "restart" ? `${prompt} (a new video, seed ${seed})` : prompt);
  at("history").prepend(item);
  while (at("history").children.length > 200) at("history").lastChild.remove();
  if (notes.length > 200) notes.shift();
  if (asked && asked.seconds === null) asked.seconds = seconds;
}

function refuse({ line }) {
  asked = null;
  answer(line, true);
}

function broken({ student, line }) {
  cards[student].figure.classList.add("bad");
  cards[student].figures.Block.textContent = line;
  players[student].gone = true;
}

function ask(message) {
  asked = { at: performance.now(), seconds: null };
  answer("Sent.");
  tell(message);
}

function tick() {
  if (!hello) return;
  const alive = players.filter(({ gone }) => !gone);
  if (!alive.length) return say("All students have stopped; the reasons are below their videos.", true);
  started = started || startTogether(alive, hello.watched, hello.fps);
  if (!started) return;
  const reached = keepTogether(alive, paused, hello.lead);
  tell({ kind: "watched", seconds: reached });
  charts.draw(reached, notes, hello.students.map(({ name }) => name));
  const slow = cards.filter(({ rate }) => rate < hello.fps).length > 0;
  say(paused ? "Paused; nothing new is generated unless others watch." : slow ? `Playing at ${clock(reached)}; slower than ${hello.fps} frames/s here.` : `Playing at ${clock(reached)}.`, false, true);
  cards.forEach(({ figures, last, rate, made, video }, i) => {
    if (!last || players[i].gone) return;
    figures.Block.textContent = last.number;
    figures.Computes.textContent = `${rate.toFixed(0)} frames/s, ${Math.max(0, made - video.currentTime).toFixed(1)} s ahead`;
    figures["Stalls, dropped"].textContent = `${players[i].stalls}, ${video.getVideoPlaybackQuality().droppedVideoFrames}`;
    figures["Stalls, dropped"].dataset.stalls = players[i].stalls;
    figures.Memory.textContent = `${(last.memory / 1e6).toFixed(0)} MB`;
  });
  if (asked?.seconds != null && reached >= asked.seconds) {
    const latency = ((performance.now() - asked.at) / 1000).toFixed(1);
    answer(`From your prompt to its picture: ${latency} s, of which up to ${hello.lead} s was already generated.`);
    for (const { figures } of cards) figures.Latency.textContent = `${latency} s`;
    asked = null;
  }
}

async function saveMinute(number, name) {
  for (const form of ["mp4", "json"]) {
    const reply = await fetch(`minute/${number}.${form}`, { headers: { authorization: `Bearer ${sessionStorage.getItem("token") ?? ""}` } });
    if (!reply.ok) return answer(`The last minute cannot be saved: ${await reply.text()}.`, true);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await reply.blob());
    link.download = `${name.replace(/[^\w.-]+/g, "-")}.${form}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  return answer("Saved: the video, and a JSON file of how it was made.");
}

function suggestion(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => ask({ kind: "prompt", text }));
  return button;
}

function choices(id, values, chosen) {
  at(id).replaceChildren(new Option("as trained", ""), ...values.map((value) => new Option(value, value)));
  at(id).value = chosen ?? "";
}

function say(line, bad = false, quiet = false) {
  const state = at("state");
  state.setAttribute("aria-live", quiet ? "off" : "polite"); // a screen reader would read out the clock all the time
  state.textContent = line;
  state.classList.toggle("bad", bad);
}

function answer(line, bad = false) {
  at("answer").textContent = line;
  at("answer").classList.toggle("bad", bad);
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
}

function setPaused(value) {
  paused = value;
  at("pause").textContent = paused ? "Play" : "Pause";
  at("pause").setAttribute("aria-pressed", String(paused));
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ kind: "prompt", text: at("prompt").value });
  at("prompt").select();
});
at("again").addEventListener("submit", (event) => {
  event.preventDefault();
  setPaused(false);
  ask({ kind: "restart", seed: at("seed").valueAsNumber, order: at("order").value || null, context: at("context").value || null });
});
at("pause").addEventListener("click", () => setPaused(!paused));
at("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value);
  at("token").value = "";
  connect();
});
addEventListener("keydown", (event) => {
  if (event.key === " " && event.target === document.body) {
    event.preventDefault();
    setPaused(!paused);
  }
});
setInterval(tick, TICK);
connect();
