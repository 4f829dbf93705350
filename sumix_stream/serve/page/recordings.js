"use strict";
// Samples of recordings, bit by bit where the browser can give them so.
const FILE_RATE = 48000;  // of files that do not tell theirs

// {rate, bits} of a WAV or FLAC file: at its own rate the browser need not resample it, and the server hears the file.
function headerOf(buffer) {
  const view = new DataView(buffer), bytes = new Uint8Array(buffer);
  const tag = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (tag(0) === "fLaC" && bytes.length > 22) return { rate: view.getUint32(18) >>> 12, bits: (view.getUint16(20) >>> 4 & 31) + 1 };
  for (let at = 12; tag(0) === "RIFF" && at + 24 <= bytes.length; at += 8 + 2 * Math.ceil(view.getUint32(at + 4, true) / 2)) {
    if (tag(at) === "fmt ") return { rate: view.getUint32(at + 12, true), bits: view.getUint16(at + 22, true) };
  }
  return { rate: FILE_RATE, bits: 0 };
}

// Some browsers divide positive 16-bit samples by 32767, negative ones by 32768. What the file holds is a 32768th of an
// integer; the divisor that leaves integers is the one.
function exact(samples) {
  const some = samples.subarray(0, 1 << 20);
  const misfit = (scale) => some.reduce((sum, v) => v > 0 ? sum + Math.abs(scale * v - Math.round(scale * v)) : sum, 0);
  const scale = misfit(32767) < misfit(32768) ? 32767 : 32768;
  return samples.map((value) => Math.round((value > 0 ? scale : 32768) * value) / 32768);
}

async function decode(buffer, { rate, bits }) {
  const sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(buffer);
  const mono = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c++) {
    const channel = bits === 16 ? exact(sound.getChannelData(c)) : sound.getChannelData(c);
    for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / sound.numberOfChannels;
  }
  return mono;
}
