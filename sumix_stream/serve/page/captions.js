"use strict";
// Captions of words, by the rule of `bin/decode --format srt|vtt` (streaming/captions.py) to the last byte: a test holds both to it.
// A word is {text, start, end, space}, with whole milliseconds; `space` says whether the text has a space before it.
const COLUMNS = 42, LINES = 2, MAX_MS = 6000, PAUSE_MS = 1000, LINGER_MS = 300, SHORTEST_MS = 1000;
const CAPTION_COST = 1000000;
const SENTENCE = ".!?…。！？．｡؟།။។", CLAUSE = ",;:，、；：､،";
const NO_COLUMN = /[\p{Mn}\p{Me}\p{Cf}]/u;
// Characters that take two columns, as ranges (Unicode's East Asian Width W and F).
const WIDE = `
1100-115f 231a-231b 2329-232a 23e9-23ec 23f0 23f3 25fd-25fe 2614-2615 2648-2653 267f 2693 26a1 26aa-26ab 26bd-26be 26c4-26c5 26ce
26d4 26ea 26f2-26f3 26f5 26fa 26fd 2705 270a-270b 2728 274c 274e 2753-2755 2757 2795-2797 27b0 27bf 2b1b-2b1c 2b50 2b55 2e80-303e
3041-3247 3250-4dbf 4e00-a4c6 a960-a97c ac00-d7a3 f900-fad9 fe10-fe6b ff01-ff60 ffe0-ffe6 16fe0-1b2fb 1f004 1f0cf 1f18e 1f191-1f19a
1f200-1f320 1f32d-1f335 1f337-1f37c 1f37e-1f393 1f3a0-1f3ca 1f3cf-1f3d3 1f3e0-1f3f0 1f3f4 1f3f8-1f43e 1f440 1f442-1f4fc 1f4ff-1f53d
1f54b-1f54e 1f550-1f567 1f57a 1f595-1f596 1f5a4 1f5fb-1f64f 1f680-1f6c5 1f6cc 1f6d0-1f6d2 1f6d5-1f6df 1f6eb-1f6ec 1f6f4-1f6fc
1f7e0-1f7f0 1f90c-1f93a 1f93c-1f945 1f947-1f9ff 1fa70-1faf6 20000-3134a`.trim().split(/\s+/).map((range) => {
  const [first, last = first] = range.split("-");
  return [parseInt(first, 16), parseInt(last, 16)];
});

function columnsOf(text) {
  let columns = 0;
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code < 0x300) columns += code === 0xad ? 0 : 1;
    else if (!NO_COLUMN.test(character)) columns += WIDE.some(([first, last]) => first <= code && code <= last) ? 2 : 1;
  }
  return columns;
}

function joinWords(words) {
  const text = words.map((word) => word.space ? ` ${word.text}` : word.text).join("");
  return text.startsWith(" ") ? text.slice(1) : text;
}

const endOf = (word) => Math.max(word.start, word.end);

// `count` lines with the least sum of squared widths; null where they do not fit.
function balanced(words, widths, count) {
  let best = new Map([[0, [0, [0]]]]);  // words so far -> cost, places of the breaks
  for (let line = 0; line < count; line++) {
    const longer = new Map();
    for (const [begin, [cost, places]] of best) {
      let width = begin < words.length && words[begin].space ? -1 : 0;
      for (let end = begin + 1; end <= words.length; end++) {
        width += widths[end - 1];
        if (width > COLUMNS) break;
        const total = cost + width * width;
        if (!longer.has(end) || total < longer.get(end)[0]) longer.set(end, [total, [...places, end]]);
      }
    }
    best = longer;
  }
  const places = best.get(words.length)?.[1];
  return places ? places.slice(1).map((end, n) => words.slice(places[n], end)) : null;
}

// The fewest lines, of widths as equal as can be; null where they are too many or too wide.
function breakLines(words) {
  const widths = words.map((word) => word.columns + (word.space ? 1 : 0));
  const total = widths.reduce((sum, width) => sum + width, 0) - (words[0].space ? 1 : 0);
  if (total <= COLUMNS) return [words];
  for (let count = 2; count <= LINES; count++) {
    const found = balanced(words, widths, count);
    if (found) return found;
  }
  return null;
}

function cutCost(words, place) {
  if (place === words.length) return 0;
  const last = [...words[place - 1].text].at(-1) ?? "", gap = Math.max(0, words[place].start - endOf(words[place - 1])) / 1000;
  const bySign = SENTENCE.includes(last) ? 0 : CLAUSE.includes(last) ? 0.4 : 1;
  return Math.round(CAPTION_COST * bySign * Math.exp(-2 * gap));
}

// Words between pauses as captions of the least cost: few, and cut where speech is.
function divide(words) {
  const best = [0, ...words.map(() => Infinity)], back = [0, ...words.map(() => 0)];
  for (let begin = 0; begin < words.length; begin++) {
    for (let end = begin + 1; end <= words.length; end++) {
      const fits = () => endOf(words[end - 1]) - words[begin].start <= MAX_MS && breakLines(words.slice(begin, end));
      if (end > begin + 1 && !fits()) break;
      const cost = best[begin] + CAPTION_COST + cutCost(words, end);
      if (cost < best[end]) [best[end], back[end]] = [cost, begin];
    }
  }
  const found = [];
  for (let end = words.length; end; end = back[end]) found.push(words.slice(back[end], end));
  return found.reverse();
}

function captionsOf(words) {
  const spoken = [];
  for (const word of words.map((one) => ({ ...one, columns: columnsOf(one.text) }))) {
    if (!spoken.length || word.start - endOf(spoken.at(-1).at(-1)) >= PAUSE_MS) spoken.push([]);
    spoken.at(-1).push(word);
  }
  const groups = spoken.flatMap(divide);
  return groups.map((group, n) => {
    const start = group[0].start, following = groups[n + 1]?.[0].start ?? Infinity, last = endOf(group.at(-1));
    const end = Math.max(last, Math.min(Math.max(last + LINGER_MS, start + SHORTEST_MS), following));
    const lines = (breakLines(group) ?? [group]).map((line) => joinWords([{ ...line[0], space: true }, ...line.slice(1)]));
    return { start, end: Math.min(end, Math.max(following, start)), lines };
  });
}

function timeOf(milliseconds, point) {
  const two = (number) => String(number).padStart(2, "0"), seconds = Math.floor(milliseconds / 1000);
  const clock = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map(two).join(":");
  return `${clock}${point}${String(milliseconds % 1000).padStart(3, "0")}`;
}

function toSrt(words) {
  const cue = ({ start, end, lines }, n) => `${n + 1}\n${timeOf(start, ",")} --> ${timeOf(end, ",")}\n${lines.join("\n")}\n`;
  return captionsOf(words).map(cue).join("\n");
}

function toVtt(words) {
  const escaped = (line) => line.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const cue = ({ start, end, lines }) => `\n${timeOf(start, ".")} --> ${timeOf(end, ".")}\n${lines.map(escaped).join("\n")}\n`;
  return `WEBVTT\n${captionsOf(words).map(cue).join("")}`;
}
