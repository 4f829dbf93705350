"use strict";
const PATH = "stream", PROTOCOL = 2, LIVE_FORMAT = "s16le", FILE_FORMAT = "f32le";
const LIVE_SECONDS = 0.05, FILE_SECONDS = 0.25;  // audio in a packet
const MAX_WAITING = 1 << 18;  // bytes that may wait in the browser while a file is sent
const KEEP_SECONDS = 60;  // of speech without a final result, to be said again if the connection breaks
const PAUSES = [0.25, 0.5, 1, 2, 4, 8];  // seconds before each new try to connect
const PASSING = ["going_away", "internal"];  // errors of the server that a new stream may not meet
const HISTORY = 60;  // latencies in the curve
const CAPTIONS = { srt: [toSrt, "application/x-subrip"], vtt: [toVtt, "text/vtt"] };
const $ = (id) => document.getElementById(id);
const sleep = (seconds) => new Promise((next) => setTimeout(next, 1000 * seconds));
// Averages the channels and hands over packets; when told to stop, first what is left and then null.
const WORKLET = `registerProcessor("tap", class extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.packet = new Float32Array(processorOptions.size);
    this.held = 0;
    this.stopped = false;
    this.port.onmessage = () => { this.stopped = true; this.give(); this.port.postMessage(null); };
  }
  give() {
    if (this.held) this.port.postMessage(this.packet.slice(0, this.held));
    this.held = 0;
  }
  process([channels]) {
    const length = this.stopped || !channels.length ? 0 : channels[0].length;
    for (let i = 0; i < length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.packet[this.held++] = sum / channels.length;
      if (this.held === this.packet.length) this.give();
    }
    return !this.stopped;
  }
});`;
let run = null;  // what is going on now
let spoken = [], recording = "";  // what captions are made of: the words that stay, of the newest recording; its name

function say(text) { $("state").textContent = text; }
function complain(text) { $("fault").textContent = text; }

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function wordsInto(line, words, offset) {
  line.replaceChildren();
  words.forEach((word, index) => {
    const span = document.createElement("span");
    span.className = word.confidence < 0.5 ? "w unsure" : "w";
    span.style.setProperty("--doubt", Math.max(0, Math.min(1, (0.95 - word.confidence) / 0.75)).toFixed(2));
    const [start, end] = [word.start, word.end].map((time) => (offset + time).toFixed(2));
    span.title = `${start} to ${end} s, confidence ${Math.round(100 * word.confidence)} %`;
    span.textContent = word.text;
    line.append(...(index && word.space !== false ? [" ", span] : [span]));
  });
  if (words.length) line.dataset.at = clock(offset + words[0].start);
}

// Marks the words of a line that the second pass has changed: all but what it has in common with what was streamed.
function markMended(line, streamed) {
  const spans = [...line.querySelectorAll(".w")], before = streamed.split(/\s+/).filter(Boolean);
  const longest = Array.from({ length: spans.length + 1 }, () => new Uint16Array(before.length + 1));
  const same = (i, j) => spans[i].textContent === before[j];
  for (let i = spans.length - 1; i >= 0; i--) {
    for (let j = before.length - 1; j >= 0; j--) {
      longest[i][j] = same(i, j) ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  for (let i = 0, j = 0; i < spans.length; i++) {
    while (j < before.length && !same(i, j) && longest[i][j + 1] > longest[i + 1][j]) j++;
    if (j < before.length && same(i, j)) { j++; continue; }
    spans[i].classList.add("mended");
    spans[i].title += "; by the second pass";
  }
}

function show(words, final, offset, streamed) {
  const room = document.documentElement, below = room.scrollHeight - scrollY - innerHeight;
  if (!final) {
    wordsInto($("partial"), words, offset);
  } else {
    $("partial").replaceChildren();
    const line = document.createElement("p");
    line.dir = "auto";
    wordsInto(line, words, offset);
    if (streamed !== undefined) markMended(line, streamed);
    if (words.length) $("final").append(line);
  }
  if (below < 40) scrollTo({ top: room.scrollHeight });
}

// `joined`: no space belongs between these words and those before them.
function putIntoCaptions(words, offset, joined) {
  words.forEach(({ text, start, end, space = true }, index) => {
    const [from, to] = [start, end].map((time) => Math.round(1000 * (offset + time)));
    spoken.push({ text, start: from, end: to, space: space && !(joined && !index && spoken.length) });
  });
  for (const form in CAPTIONS) $(form).disabled = !spoken.length;
}

function beginCaptions(name) {
  [spoken, recording] = [[], name];
  putIntoCaptions([]);
}

function saveCaptions(form) {
  const [write, type] = CAPTIONS[form], link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(spoken)], { type }));
  link.download = `${recording}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(`Saved ${link.download}.`);
}

function showPace(name, figure, about, curve = []) {
  const top = Math.max(0.5, ...curve);
  $("pacename").textContent = name;
  $("pace").textContent = figure;
  $("pacetext").textContent = about;
  const points = curve.map((value, i) => `${100 * i / (HISTORY - 1)},${20 - 20 * value / top}`);
  $("curve").firstElementChild.setAttribute("points", points.join(" "));
}

function showLevel(samples) {
  let peak = 1e-3;
  for (const value of samples) peak = Math.max(peak, Math.abs(value));
  const level = samples.length ? Math.min(1, 1 + Math.log10(peak) / 3) : 0;  // -60 dB to 0 dB
  $("level").style.setProperty("--level", level.toFixed(3));
  $("level").setAttribute("aria-valuenow", Math.round(100 * level));
}

function toPcm(samples) {
  const pcm = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((value, i) => pcm.setInt16(2 * i, Math.max(-32768, Math.min(32767, Math.round(32768 * value))), true));
  return pcm.buffer;
}

async function explain(known) {
  try {
    const health = await (await fetch("health")).json();
    if (health.status === "draining") return "The server is shutting down and takes no new streams.";
    if (known) return "The connection broke.";
    if (health.streams >= health.max_streams) return "All streams are taken. Please try again in a few seconds.";
    return "The server refused the stream. If it wants a token, add ?token=… to this page's address.";
  } catch { return "The server cannot be reached."; }
}

// One recognition, from the first sample to the last word. A live one outlives its connection: what has no final result
// yet is kept, and is sent again.
class Run {
  constructor(rate, format, live, name) {
    Object.assign(this, { rate, format, live, name, kept: [], sent: 0, total: 0, base: 0, tries: 0, trimmed: false });
    Object.assign(this, { known: false, ready: false, ended: false, over: false, words: [], latencies: [] });
    this.release = async () => {};
    this.asked = { chunk: $("chunk").value, again: $("again").checked };
    run = this;
    this.look("Stop");
  }

  look(text) {
    $("talk").classList.toggle("on", !this.over);
    $("talktext").textContent = text;
    for (const name of ["file", "chunk", "again"]) $(name).disabled = !this.over;
  }

  connect() {
    const url = new URL(PATH, location.href), token = new URLSearchParams(location.search).get("token");
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    if (token) url.searchParams.set("token", token);
    this.socket = new WebSocket(url);
    this.socket.onmessage = (event) => this.heard(JSON.parse(event.data));
    return new Promise((resolve) => {
      this.opened = resolve;
      this.socket.onclose = async () => { await this.closed(); resolve(); };
    });
  }

  // What is not on offer is not asked for: an exported model has one chunk size, and may have no second pass.
  start({ chunk_seconds: [shortest, longest] = [0, 0], second_pass = false }) {
    const message = { type: "start", sample_rate: this.rate, format: this.format };
    const seconds = parseInt(this.asked.chunk) / 1000;
    if (seconds >= shortest && seconds <= longest) message.chunk = this.asked.chunk;
    else if (this.asked.chunk) complain("This server's model has one chunk size only."), this.asked.chunk = "";
    if (this.asked.again && second_pass) message.second_pass = true;
    else if (this.asked.again) complain("This server's model cannot hear segments again.");
    return message;
  }

  heard(message) {
    if (this.over) return;
    const offset = this.base / this.rate;
    if (message.type === "ready") {
      if (message.protocol !== PROTOCOL) complain("This page is older than the server: please reload it.");
      this.socket.send(JSON.stringify(this.start(message.options ?? {})));
      if (!this.known) beginCaptions(this.name);
      this.known = this.ready = true;
      this.began ??= performance.now();
      if (this.live && !this.ended) say(`Listening. Words come every ${(parseInt(this.asked.chunk) / 1000 || message.chunk_seconds).toFixed(2)} s.`);
      this.flush();
      this.opened();
    } else if (message.type === "error") {
      if (this.live && PASSING.includes(message.code)) return;  // it closes, and we try again
      complain(`The server ended the stream: ${message.message}.`);
      this.finish();
    } else if (message.type === "done") {
      this.finish(`Done: ${(offset + message.decoded).toFixed(1)} s of audio.`);
    } else if (message.decoded !== undefined) {
      this.tries = 0;
      this.measure(message.decoded);
      if (message.type === "progress") return;
      if (message.type === "final") {
        this.settle(message.words, message.tokens, message.second_pass ? message.streaming_text : undefined);
        this.forget(this.base + message.decoded * this.rate);
      } else {
        this.words = message.words;
        show(message.words, false, offset);
      }
    }
  }

  // Words that stay become a line of text, and go into the captions.
  settle(words, tokens = [], streamed = undefined) {
    const offset = this.base / this.rate;
    this.words = [];
    show(words, true, offset, streamed);
    putIntoCaptions(words, offset, tokens.length > 0 && !tokens[0].startsWith("▁"));
  }

  measure(decoded) {
    if (!this.live) {
      showPace("Speed", `${(1000 * decoded / (performance.now() - this.began)).toFixed(1)} ×`, "as fast as it was spoken");
      return;
    }
    const until = this.base + decoded * this.rate;
    const packet = this.kept.find((one) => one.end >= until) ?? this.kept.at(-1);
    if (!packet) return;
    this.latencies.push((performance.now() - packet.at) / 1000);
    const recent = this.latencies.slice(-HISTORY), middle = [...recent].sort((a, b) => a - b)[recent.length >> 1];
    const about = `from the end of a piece of speech to its words; median ${middle.toFixed(2)} s, longest ${Math.max(...recent).toFixed(2)} s`;
    showPace("Latency", `${recent.at(-1).toFixed(2)} s`, about, recent);
  }

  push(samples) {
    if (this.over) return;
    showLevel(samples);
    this.total += samples.length;
    this.kept.push({ pcm: toPcm(samples), start: this.total - samples.length, end: this.total, at: performance.now() });
    if (this.total - this.kept[0].start > KEEP_SECONDS * this.rate) this.trimmed = true, this.drop(1);
    this.flush();
  }

  forget(end) {
    const count = this.kept.findIndex((packet) => packet.end > end);
    this.drop(Math.min(this.sent, count < 0 ? this.kept.length : count));
    this.trimmed = false;
  }

  drop(count) {
    this.kept.splice(0, count);
    this.sent = Math.max(0, this.sent - count);
  }

  flush() {
    if (!this.ready) return;
    while (this.sent < this.kept.length) this.socket.send(this.kept[this.sent++].pcm);
    if (this.ended) this.socket.send(JSON.stringify({ type: "end" }));
  }

  async end() {
    if (this.ended || !this.socket) { this.finish(); return; }  // asked twice, or before anything was heard
    say("Finishing.");
    this.look("Stop waiting");
    await this.release();
    this.ended = true;
    this.flush();
  }

  async closed() {
    if (this.over) return;
    this.ready = false;
    const again = this.live && this.known && this.tries < PAUSES.length;
    if (!again) {
      complain(await explain(this.known));
      this.finish();
      return;
    }
    say("The connection broke. Trying again; what is said is kept.");
    await sleep(PAUSES[this.tries++]);
    if (this.over) return;
    if (this.trimmed) this.settle(this.words);  // too long ago to be said again
    this.base = this.kept.length ? this.kept[0].start : this.total;
    this.sent = 0;
    this.connect();
  }

  finish(text = "Stopped.") {
    if (this.over) return;
    if (this.words.length) this.settle(this.words);  // better than nothing
    this.over = true;
    this.ready = false;
    this.release();
    this.socket?.close();
    run = null;
    this.look("Start microphone");
    showLevel([]);
    say(text);
  }
}

const NO_MICROPHONE = {
  NotAllowedError: "The browser does not let this page listen. Please allow the microphone in its settings.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is in use by another program.",
};

async function talk() {
  complain("");
  if (!navigator.mediaDevices || !window.AudioWorkletNode) {
    complain("This browser gives no microphone here: use https or localhost, or choose a recording.");
    return;
  }
  const context = new AudioContext();  // at its own rate: the server resamples, in the same way for every client
  const mine = new Run(context.sampleRate, LIVE_FORMAT, true, "speech");
  let media, tap;
  const release = () => {
    media?.getTracks().forEach((track) => track.stop());
    context.close().catch(() => {});
  };
  say("Waiting for the microphone.");
  showPace("Latency", "–", "from the end of a piece of speech to its words");
  try {
    // What browsers do to please the ear in a call is no help to a recogniser.
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    media = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...plain } });
    const module = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
    await context.audioWorklet.addModule(module);
    URL.revokeObjectURL(module);
    await context.resume();
    tap = new AudioWorkletNode(context, "tap", { processorOptions: { size: Math.round(LIVE_SECONDS * context.sampleRate) } });
  } catch (error) {
    release();
    complain(NO_MICROPHONE[error.name] ?? `The microphone cannot be used (${error.name}).`);
    mine.finish("Ready.");
    return;
  }
  if (mine.over) { release(); return; }
  mine.release = () => {
    const flushed = new Promise((resolve) => {
      tap.port.onmessage = ({ data }) => { if (data) mine.push(data); else resolve(); };
    });
    mine.release = async () => {};
    tap.port.postMessage("stop");
    return Promise.race([flushed, sleep(0.5)]).then(release);
  };
  tap.port.onmessage = ({ data }) => { if (data) mine.push(data); };
  media.getAudioTracks()[0].onended = () => { complain("The microphone has gone."); if (!mine.ended) mine.end(); };
  context.onstatechange = () => { if (!mine.ended && context.state !== "running") context.resume().catch(() => {}); };
  context.createMediaStreamSource(media).connect(tap).connect(context.destination);  // silence; unconnected, some stand still
  await mine.connect();
}

async function play(file) {
  if (!file) return;
  complain("");
  if (run) { complain("Please stop what is going on first."); return; }
  say(`Reading ${file.name}.`);
  const mine = new Run(FILE_RATE, FILE_FORMAT, false, file.name.replace(/\.[^.]*$/, "") || "recording");
  let samples;
  try {
    const buffer = await file.arrayBuffer(), header = headerOf(buffer);
    samples = await decode(buffer, header);
    mine.rate = header.rate;
  } catch {
    complain("This file holds no audio that the browser can read.");
    mine.finish("Ready.");
    return;
  }
  if (mine.over) return;
  await mine.connect();
  if (mine.over) return;
  say(`Recognising ${file.name}.`);
  const size = Math.round(FILE_SECONDS * mine.rate);
  for (let start = 0; start < samples.length && mine.ready && !mine.ended; start += size) {
    while (mine.socket.bufferedAmount > MAX_WAITING && mine.ready && !mine.ended) await sleep(0.02);
    if (mine.ready && !mine.ended) mine.socket.send(samples.slice(start, start + size));
  }
  if (mine.ready && !mine.ended) { mine.ended = true; mine.flush(); }
}

$("talk").onclick = () => { if (run) run.end(); else talk(); };
$("file").onchange = (event) => { play(event.target.files[0]); event.target.value = ""; };
$("clear").onclick = () => {
  $("final").replaceChildren();
  $("partial").replaceChildren();
  beginCaptions(recording);
  complain("");
  if (!run) say("Ready.");
};
$("copy").onclick = async () => {
  const text = [...$("final").children, $("partial")].map((line) => line.textContent).join("\n").trim();
  try { await navigator.clipboard.writeText(text); say("Copied."); } catch { complain("The browser does not let this page copy."); }
};
for (const form in CAPTIONS) $(form).onclick = () => saveCaptions(form);
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("paper").classList.toggle("over", name === "dragover");
    if (name === "drop") play(event.dataTransfer.files[0]);
  });
}
