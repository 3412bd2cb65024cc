"use strict";
// The page's script: it decides anew when a slider moves, and draws what has too many parts for SVG.
// Decoding goes as minibert/spans.py and probabilities.py do, sums in float32 where it has them.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const f = Math.fround;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const TEXT = 1, MINE = 2, MAY_START = 4, MAY_END = 8, BEGINS = 16, ENDS = 32, IN_WORD = 64;
  // Characters are counted in code points, JavaScript's in half surrogate pairs.
  const texts = Object.fromEntries(
    Object.entries(data.texts).map(([key, text]) => [key, Array.from(text)]));
  const windows = data.windows.map((w) => ({
    ...w,
    start: new Float32Array(bytes(w.start)),
    end: new Float32Array(bytes(w.end)),
    startProbability: new Float32Array(bytes(w.startProbability)),
    endProbability: new Float32Array(bytes(w.endProbability)),
    flags: new Uint8Array(bytes(w.flags)),
    starts: new Int32Array(bytes(w.starts)),
    ends: new Int32Array(bytes(w.ends)),
    characters: new Int32Array(bytes(w.characters)),
  }));
  const slice = (document, begin, end) => texts[document].slice(begin, end).join("");
  const has = (w, token, bits) => (w.flags[token] & bits) === bits;

  // ---------------------------------------------------------------- decoders

  // The best n of what is offered: highest score first, of equals the earlier one.
  class Best {
    constructor(n) { this.n = n; this.list = []; }
    offer(score, value) {
      const list = this.list;
      if (list.length === this.n && !(score > list[list.length - 1].score)) return;
      let at = list.length;
      while (at > 0 && score > list[at - 1].score) at -= 1;
      list.splice(at, 0, { score, ...value });
      if (list.length > this.n) list.pop();
    }
  }

  function decodeSums(longest, threshold, align) {
    const nulls = windows.map((w) => f(w.start[0] + w.end[0]));
    const nullScore = Math.min(...nulls);
    const t = data.temperature;
    let logTotal = nullScore / t;
    const best = new Best(data.listed);
    windows.forEach((w, number) => {
      let top = -Infinity;
      const each = (visit) => {
        for (let i = w.offset; i < w.stop; i++) {
          if (!has(w, i, MINE | MAY_START)) continue;
          for (let j = i; j < Math.min(i + longest, w.stop); j++) {
            if (has(w, j, MAY_END)) visit(i, j, f(w.start[i] + w.end[j]));
          }
        }
      };
      each((i, j, score) => { if (score > top) top = score; });
      if (top === -Infinity) return;
      let sum = 0;
      each((i, j, score) => { sum += Math.exp(f(f(score - top) / f(t))); });
      const total = f(top / f(t)) + Math.log(sum);
      const high = Math.max(logTotal, total), low = Math.min(logTotal, total);
      logTotal = high + Math.log1p(Math.exp(low - high));
      each((i, j, score) => {
        if (!align || (has(w, i, BEGINS) && has(w, j, ENDS))) best.offer(score, { number, i, j });
      });
    });
    if (align && !best.list.length) return decodeSums(longest, threshold, false);
    const found = best.list.map(({ score, number, i, j }) => {
      const w = windows[number];
      const start = w.starts[i], end = w.ends[j];
      return { text: slice(w.document, start, end), start, end, score, number, i, j };
    });
    const rank = found.filter((a) => !(nullScore - a.score > threshold)).length;
    const none = { text: "", start: 0, end: 0, score: nullScore, number: nulls.indexOf(nullScore) };
    found.splice(rank, 0, none);
    for (const a of found) a.probability = Math.exp(a.score / t - logTotal);
    return found.slice(0, data.listed);
  }

  function decodeProducts(longest, align) {
    const k = align ? 2 * data.listed + 10 : data.listed;
    const merged = new Map();
    let nullScore = 1000000;
    windows.forEach((w, number) => {
      const start = w.startProbability.slice(), end = w.endProbability.slice();
      nullScore = Math.min(nullScore, f(start[0] * end[0]));
      start[0] = end[0] = 0;
      const best = new Best(k);
      for (let i = 0; i < w.size; i++) {
        for (let j = i; j < Math.min(i + longest, w.size); j++) {
          const score = f(start[i] * end[j]);
          if (score > 0) best.offer(score, { i, j });
        }
      }
      for (const { score, i, j } of best.list) {
        if (i < w.offset || j >= w.stop) continue;
        const words = align && has(w, i, IN_WORD) && has(w, j, IN_WORD);
        const from = w.characters[(words ? 2 : 0) * w.size + i];
        const to = w.characters[(words ? 3 : 1) * w.size + j];
        const text = slice(w.document, from, to);
        const same = merged.get(text.toLowerCase());
        if (same) same.score += score;
        else merged.set(text.toLowerCase(), { text, start: from, end: to, score, number, i, j });
      }
    });
    const found = [...merged.values(), { text: "", start: 0, end: 0, score: nullScore, number: 0 }];
    return found.sort((a, b) => b.score - a.score).slice(0, data.listed);
  }

  // ---------------------------------------------------------------- the span matrix

  // viridis, by Stefan van der Walt and Nathaniel Smith: nine of its colours.
  const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
    [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
  function colour(value) {
    const at = Math.max(0, Math.min(1, value)) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    return VIRIDIS[low].map((c, n) => c + (VIRIDIS[low + 1][n] - c) * (at - low));
  }

  function rule(w, i, j, longest, align) {
    if (!has(w, i, TEXT) || !has(w, j, TEXT)) return 1;
    if (j < i) return 2;
    if (j - i >= longest) return 3;
    if (!has(w, i, MINE)) return 4;
    if (!has(w, i, MAY_START) || !has(w, j, MAY_END)) return 5;
    if (align && !(has(w, i, BEGINS) && has(w, j, ENDS))) return 6;
    return 0;
  }

  function paint(canvas, size, pixel) {
    const image = new ImageData(size, size);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) image.data.set([...pixel(i, j), 255], 4 * (i * size + j));
    }
    const small = document.createElement("canvas");
    small.width = small.height = size;
    small.getContext("2d").putImageData(image, 0, 0);
    canvas.width = canvas.height = size * Math.max(1, Math.floor(640 / size));
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    context.scale(canvas.width / size, canvas.height / size);
    return context;
  }

  function drawMatrix(w, answers, longest, align, number) {
    const canvas = $("matrix");
    if (!canvas) return;
    let low = Infinity, high = -Infinity;
    const scores = new Float32Array(w.size * w.size);
    const rules = new Uint8Array(w.size * w.size);
    for (let i = 0; i < w.size; i++) {
      for (let j = 0; j < w.size; j++) {
        const at = i * w.size + j;
        scores[at] = w.start[i] + w.end[j];
        rules[at] = rule(w, i, j, longest, align);
        if (!rules[at]) { low = Math.min(low, scores[at]); high = Math.max(high, scores[at]); }
      }
    }
    const context = paint(canvas, w.size, (i, j) => {
      const at = i * w.size + j;
      if (rules[at]) return Array(3).fill(data.greys[rules[at] - 1]);
      return colour((scores[at] - low) / Math.max(high - low, 1e-9));
    });
    const around = Math.max(2, w.size / 40);
    const outline = (draw) => { // white within black, so that it is seen on every colour
      context.beginPath();
      draw();
      for (const [part, style] of [[80, "#000"], [200, "#fff"]]) {
        context.lineWidth = w.size / part;
        context.strokeStyle = style;
        context.stroke();
      }
    };
    const first = w.start.indexOf(Math.max(...w.start)), last = w.end.indexOf(Math.max(...w.end));
    outline(() => context.rect(last + 0.5 - around, first + 0.5 - around, 2 * around, 2 * around));
    const best = answers.find((a) => a.text && a.number === number);
    if (best) outline(() => context.arc(best.j + 0.5, best.i + 0.5, around, 0, 2 * Math.PI));
    canvas.setAttribute("aria-label", "Span matrix: rows are starts, columns ends. " + (best
      ? `The best allowed pair of window ${number} is “${best.text}”, with ${best.score.toFixed(2)}.`
      : `No pair of window ${number} is among the answers.`));
    const counts = data.rules.map(() => 0);
    for (const r of rules) counts[r] += 1;
    $("matrix-note").textContent = `${w.size} x ${w.size} pairs: ` +
      data.rules.map((name, n) => `${counts[n]} ${name}`).join(", ") + ".";
  }

  // ---------------------------------------------------------------- sliders

  function row(cells) {
    const line = document.createElement("tr");
    for (const text of cells) {
      const cell = document.createElement("td");
      cell.textContent = text;
      line.append(cell);
    }
    return line;
  }

  // The model's own, which need be no step of the slider's, until that is moved.
  let threshold = data.threshold;

  function decide() {
    const longest = Number($("longest").value);
    const align = $("align").checked;
    const sums = $("decoder").value === "sums";
    const answers = sums ? decodeSums(longest, threshold, align) : decodeProducts(longest, align);
    $("longest-value").textContent = longest;
    const lead = Math.abs(threshold) < 1e30 ? Number(threshold.toFixed(3)) : "any number";
    $("threshold-value").textContent = sums ? lead : "not used";
    $("threshold").disabled = !sums;
    const digits = (value) =>
      (sums ? value.toFixed(3) : value.toPrecision(4)).replace(/^-/, "−");
    $("decided").replaceChildren(...answers.map((a, n) => row([
      n + 1, a.text || "(no answer)", digits(a.score),
      sums ? a.probability.toFixed(4) : "", a.text ? `${a.start} to ${a.end}` : "",
      ...(windows.length > 1 ? [a.number] : [])])));
    $("decided").dataset.answers = JSON.stringify(answers);
    $("decision").textContent = answers[0].text
      ? `The answer is now: ${answers[0].text}` : "The answer is now: no answer";
    const number = Number($("window").value);
    drawMatrix(windows[number], answers, longest, align, number);
  }

  // ---------------------------------------------------------------- attention

  const shares = new Float32Array(bytes(data.shares));
  const keys = new Uint16Array(bytes(data.keys));
  const weights = new Uint8Array(bytes(data.weights));
  const groups = new Uint8Array(bytes(data.groups));
  const covered = new Float32Array(bytes(data.covered));
  const SPECIAL = 2; // groups from here on are [CLS] and [SEP]
  const cells = [...document.querySelectorAll("#heads tbody td")];
  let chosen = Math.max(0, cells.findIndex((cell) => cell.tabIndex === 0));

  function shareOf(head, kind) {
    const n = data.kinds.length;
    const mine = shares.subarray(head * n, head * n + n);
    if (!$("no-specials").checked) return mine[kind];
    const first = kind < 2 ? 0 : 2; // the two kinds of the same readers
    const rest = mine[first] + mine[first + 1];
    return kind < 4 && rest > 0 ? mine[kind] / rest : 0;
  }

  function drawHeads() {
    const kind = Number($("kind").value);
    cells.forEach((cell, head) => {
      const share = shareOf(head, kind);
      const [r, g, b] = colour(share).map(Math.round);
      cell.style.background = `rgb(${r} ${g} ${b})`;
      cell.style.color = r + 2 * g + b > 420 ? "#000" : "#fff";
      cell.textContent = Math.round(100 * share);
    });
  }

  const SVG = "http://www.w3.org/2000/svg";
  function shape(name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function drawLines() {
    const size = groups.length, per = data.strongest;
    const leave = $("no-specials").checked;
    const readers = [];
    const best = windows[data.shown];
    const answer = decodeSums(data.longest, data.threshold, data.align)
      .find((a) => a.text && a.number === data.shown);
    for (let i = 0; i < best.size && readers.length < 40; i++) {
      if (groups[i] === 0 || (answer && i >= answer.i && i <= answer.j)) readers.push(i);
    }
    const links = [];
    for (const i of readers) {
      for (let n = 0; n < per; n++) {
        const at = (chosen * size + i) * per + n;
        if (leave && groups[keys[at]] >= SPECIAL) continue;
        if (weights[at] >= 8) links.push([i, keys[at], weights[at] / 255]);
      }
    }
    const read = [...new Set(links.map((link) => link[1]))].sort((a, b) => a - b);
    const height = 20 * Math.max(readers.length, read.length, 1) + 30;
    const y = (list, token) => 34 + 20 * list.indexOf(token);
    const picture = $("lines");
    picture.setAttribute("viewBox", `0 0 400 ${height}`);
    const parts = [
      shape("title", {}, `What the question and the answer read, layer ${
        Math.floor(chosen / data.heads)}, head ${chosen % data.heads}`),
      shape("text", { x: 130, y: 14, "text-anchor": "end", class: "small" }, "reads"),
      shape("text", { x: 270, y: 14, class: "small" }, "is read"),
      ...links.map(([i, j, weight]) => shape("line", {
        class: "line c0", x1: 136, x2: 264, y1: y(readers, i) - 4, y2: y(read, j) - 4,
        style: `stroke-width: ${(0.4 + 4 * weight).toFixed(1)}; stroke-opacity: ${
          (0.25 + 0.75 * weight).toFixed(2)}` })),
      ...readers.map((i) => shape("text",
        { x: 130, y: y(readers, i), "text-anchor": "end" }, data.names[i])),
      ...read.map((j) => shape("text", { x: 270, y: y(read, j) }, data.names[j])),
    ];
    picture.replaceChildren(...parts);
    const [reader, source, most] = links.reduce((a, b) => (b[2] > a[2] ? b : a), [0, 0, 0]);
    const named = links.length ? ` The strongest: ${data.names[reader]} reads ${
      data.names[source]}, ${Math.round(100 * most)}%.` : "";
    $("lines-note").textContent = `Layer ${Math.floor(chosen / data.heads)}, head ${
      chosen % data.heads}: ${links.length} readings.${named} The ${per} strongest of each token are ${
      Math.round(100 * covered[chosen])}% of what it reads here, on average.`;
  }

  function choose(head) {
    cells[chosen].tabIndex = -1;
    cells[chosen].setAttribute("aria-selected", "false");
    chosen = head;
    cells[chosen].tabIndex = 0;
    cells[chosen].setAttribute("aria-selected", "true");
    drawLines();
  }

  // ---------------------------------------------------------------- begin

  if ($("longest")) {
    $("threshold").addEventListener("input", () => { threshold = Number($("threshold").value); });
    for (const id of ["longest", "threshold", "align", "decoder", "window"]) {
      $(id).addEventListener("input", decide);
    }
    decide();
  }
  if (cells.length) {
    for (const id of ["kind", "no-specials"]) {
      $(id).addEventListener("input", () => { drawHeads(); drawLines(); });
    }
    $("heads").addEventListener("click", (event) => {
      const at = cells.indexOf(event.target);
      if (at >= 0) choose(at);
    });
    $("heads").addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: data.heads, ArrowUp: -data.heads };
      const step = steps[event.key];
      const column = chosen % data.heads + (Math.abs(step) === 1 ? step : 0);
      const next = chosen + step;
      if (step === undefined || column < 0 || column >= data.heads || !cells[next]) return;
      event.preventDefault();
      choose(next);
      cells[next].focus();
    });
    drawHeads();
    drawLines();
  }
  data.maps.forEach(({ map }, n) => {
    const values = new Uint8Array(bytes(map)), size = groups.length;
    paint($(`map-${n}`), size, (i, j) => colour(Math.sqrt(values[i * size + j] / 255)));
  });
})();
