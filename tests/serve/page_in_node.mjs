// Runs the page's script in node with as much of a browser as it touches, and gives it a recording or a microphone.
// node --experimental-websocket page_in_node.mjs SCRIPT ADDRESS AUDIO(f32le, 16 kHz) file|microphone
import fs from "node:fs";
import vm from "node:vm";

const [script, address, audio, way] = process.argv.slice(2);
const bytes = fs.readFileSync(audio);
const samples = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);

class Element {
  constructor() {
    this.children = []; this.own = ""; this.attributes = {};
    this.classList = { toggle() {} };
  }
  get textContent() { return this.own + this.children.map((child) => child.textContent ?? child).join(""); }
  set textContent(text) { this.children = []; this.own = text; }
  append(...parts) { this.children.push(...parts); }
  replaceChildren(...parts) { this.own = ""; this.children = parts; }
  setAttribute(name, value) { this.attributes[name] = value; }
}
const elements = {};
const document = {
  getElementById: (id) => (elements[id] ??= new Element()),
  createElement: () => new Element(),
  addEventListener() {},
};
let tap;
class AudioContext {
  sampleRate = 16000;
  audioWorklet = { addModule: async () => {} };
  createMediaStreamSource() { return { connect: () => speak() }; }
  async close() {}
}
class AudioWorkletNode { constructor() { this.port = {}; tap = this.port; } }
class OfflineAudioContext {
  async decodeAudioData() { return { length: samples.length, numberOfChannels: 1, getChannelData: () => samples }; }
}
function speak() {
  let start = 0;
  const timer = setInterval(() => {
    for (let n = 0; n < 200 && start < samples.length; n++, start += 128) tap.onmessage({ data: samples.subarray(start, start + 128) });
    if (start >= samples.length) { clearInterval(timer); elements.talk.onclick(); }
  }, 5);
}
const location = { href: address, protocol: "http:", search: "" };
const navigator = { mediaDevices: { getUserMedia: async () => ({ getTracks: () => [{ stop() {} }] }) } };
const window = { AudioWorkletNode };
const URLs = Object.assign(URL, { createObjectURL: () => "blob:", revokeObjectURL() {} });
vm.runInNewContext(fs.readFileSync(script, "utf8"), {
  document, location, navigator, window, URL: URLs, URLSearchParams, WebSocket, AudioContext, AudioWorkletNode,
  OfflineAudioContext, Blob, performance, setTimeout, DataView, ArrayBuffer, Float32Array,
  fetch: (path) => fetch(new URL(path, address)),
});
if (way === "file") await elements.file.onchange({ target: { files: [{ name: "a.wav", arrayBuffer: async () => null }] } });
else elements.talk.onclick();
for (let n = 0; n < 400 && !/^Done/.test(elements.state?.textContent) && !elements.fault?.own; n++) {
  await new Promise((next) => setTimeout(next, 50));
}
const pick = (id) => elements[id]?.textContent ?? "";
console.log(JSON.stringify({
  state: pick("state"), fault: pick("fault"), latency: pick("lagtext"), partial: pick("partial"),
  lines: elements.final ? elements.final.children.map((line) => line.textContent) : [],
}));
process.exit(0);
