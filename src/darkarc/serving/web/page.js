// The page of `darkarc serve`: files go up one by one, answers come back as cards and as lines of the table.

import { bar, minus, posteriorFigure } from "/posterior.js";

const CLASSES = [["axion", "axion"], ["cdm", "CDM"], ["no_sub", "no substructure"]];
const AT_ONCE = 2, PATIENCE = 20, MOST_NOTICES = 8;
const $ = (id) => document.getElementById(id);

let model = null, counted = null, waiting = [], running = 0, generation = 0;
let lines = [];  // of the table, in the order in which the files were given

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function reset() {
  generation += 1;
  waiting = [];
  lines = [];
  counted = { files: 0, given: 0, images: 0, mass: 0, other: 0, withheld: 0, unreadable: 0, flagged: 0 };
  $("results").replaceChildren();
  $("notices").replaceChildren();
  report();
}

function notice(text) {
  const notices = $("notices");
  if (notices.children.length === MOST_NOTICES) text = "more files were refused or cut short";
  if (notices.children.length <= MOST_NOTICES) notices.append(element("p", "notice", text));
}

function report() {
  const c = counted, busy = c.files < c.given, parts = [];
  const say = (n, text) => { if (n) parts.push(`${n} ${text}`); };
  say(c.mass, c.flagged ? `with a mass (${c.flagged} of them flagged)` : "with a mass");
  say(c.other, "of another class");
  say(c.withheld, "withheld");
  say(c.unreadable, "not readable");
  const files = busy ? `${c.files} of ${c.given} files` : `${c.given} ${c.given === 1 ? "file" : "files"}`;
  const images = `${c.images} ${c.images === 1 ? "image" : "images"}`;
  $("summary").textContent = c.given ? `${files}, ${images}${parts.length ? ": " + parts.join(", ") : ""}` : "No files yet.";
  $("progress").hidden = !busy;
  $("progress").max = Math.max(c.given, 1);
  $("progress").value = c.files;
  $("download").disabled = busy || c.images === 0;
  $("clear").disabled = c.given === 0 && $("notices").children.length === 0;
}

function count(row) {
  counted.images += 1;
  if (row.log10_mass_median !== null) {
    counted.mass += 1;
    if (row.flag) counted.flagged += 1;
  } else if (row.p_axion !== null) counted.other += 1;
  else if (row.flag.startsWith("not readable: ")) counted.unreadable += 1;
  else counted.withheld += 1;
}

function massLine({ row, posterior }) {
  const line = [];
  const { log10_mass_median: median, q16, q84 } = row;
  if (median === null) {
    line.push(element("span", "range", row.p_axion === null ? "no numbers given" : "no mass given"));
    return line;
  }
  const said = (value) => minus(value.toFixed(posterior.decimals)), pair = element("span", "pair");
  pair.append(element("span", "", `+${said(q84 - median)}`), element("span", "", `\u2212${said(median - q16)}`));
  line.push(`${model.unit} = ${said(median)}`, pair, element("br"));
  line.push(element("span", "range", `68%: ${said(q16)} to ${said(q84)}`));
  return line;
}

function card(answer) {
  const made = $("card").content.cloneNode(true).firstElementChild, { row } = answer;
  const picture = made.querySelector(".picture");
  if (answer.picture) { picture.src = answer.picture; picture.alt = `Image ${row.path}`; }
  else picture.classList.add("none");
  made.querySelector("h2").textContent = row.path;
  made.querySelector(".mass").append(...massLine(answer));
  made.querySelector(".flag").textContent = row.flag;
  made.classList.toggle("flagged", Boolean(row.flag));
  if (row.p_axion !== null) {
    for (const [name, label] of CLASSES) {
      const share = row[`p_${name}`], item = element("li");
      item.append(element("span", "", label), bar(share, name), element("span", "value", `${(100 * share).toFixed(1)}%`));
      made.querySelector(".classes").append(item);
    }
  }
  if (answer.posterior) {
    const named = { q05: row.log10_mass_q05, q16: row.q16, q84: row.q84, q95: row.q95, median: row.log10_mass_median };
    made.querySelector(".posterior").append(posteriorFigure(answer.posterior, named, model.unit));
  }
  return made;
}

function show(file, place, box) {
  const kept = [];
  for (const answer of file.images) {
    count(answer.row);
    kept.push(answer.line);
    box.append(card(answer));
  }
  lines[place] = kept.join("") + file.rest;
  if (file.more) notice(`${file.name}: the first ${model.limits.max_images} images are shown; \`darkarc predict\` answers all of them`);
}

async function send(file) {
  const form = new FormData();
  form.append("files", file, file.name);
  for (let tries = 0; ; tries += 1) {
    let answer;
    try {
      answer = await fetch("/api/answer", { method: "POST", body: form });
    } catch {
      throw new Error("the connection broke; does `darkarc serve` still run?");
    }
    const said = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
    if (answer.ok) return said.files[0];
    if (answer.status !== 503 || tries === PATIENCE) throw new Error(said.error);
    await new Promise((resume) => setTimeout(resume, 1000));
  }
}

async function work() {
  const mine = generation;
  running += 1;
  while (waiting.length && mine === generation) {
    const { file, place, box } = waiting.shift();
    try {
      const answered = await send(file);
      if (mine === generation) show(answered, place, box);
    } catch (error) {
      if (mine === generation) notice(`${file.name}: ${error.message}`);
    }
    if (mine === generation) { counted.files += 1; report(); }
  }
  running -= 1;
  if (waiting.length && running < AT_ONCE) work();
}

function take(files) {
  for (const file of files) {
    const { max_files: most, max_file_mb: largest } = model.limits;
    if (counted.given >= most) {
      notice(`only the first ${most} files are taken; \`darkarc predict\` has no such limit`);
      break;
    }
    if (file.size > largest * 1e6) {
      notice(`${file.name}: ${(file.size / 1e6).toFixed(1)} MB, more than the ${largest} MB that a file on this page may have`);
      continue;
    }
    // Answers may overtake each other; their cards do not.
    const box = element("div", "file");
    $("results").append(box);
    waiting.push({ file, place: counted.given, box });
    counted.given += 1;
  }
  report();
  while (running < AT_ONCE && running < waiting.length) work();
}

function download() {
  const url = URL.createObjectURL(new Blob([model.header, ...lines.filter(Boolean)], { type: "text/csv" }));
  const link = element("a");
  link.href = url;
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function describe() {
  const [height, width] = model.shape, [low, high] = model.prior.map((edge) => minus(String(edge)));
  const facts = [
    ["Model", model.model],
    ["SHA-256", model.sha256.slice(0, 16)],
    ["Trained on", `${model.instrument}, ${height} × ${width} pixels`],
    ["Gives", `${model.target_name}, ${model.unit} in [${low}, ${high}]`],
  ];
  for (const [name, value] of facts) {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", value));
    $("model").append(pair);
  }
  const { max_files: files, max_file_mb: size, max_images: images } = model.limits;
  $("accepted").textContent = `${model.endings.join(", ")}; at most ${files} files, ${size} MB and ${images} images each`;
  // A browser looks at the last part of a name alone.
  $("files").accept = model.endings.map((ending) => ending.slice(ending.lastIndexOf("."))).join(",");
  document.querySelector(".unit").textContent = model.unit;
  document.querySelector(".gate").textContent = String(model.gate);
}

function listen() {
  const drop = $("drop");
  $("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
  $("download").addEventListener("click", download);
  $("clear").addEventListener("click", reset);
  $("doubtful").addEventListener("change", (event) => {
    $("results").classList.toggle("doubtful", event.target.checked);
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) {
    document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
  }
  document.addEventListener("drop", (event) => take(event.dataTransfer.files));
}

reset();
try {
  const answer = await fetch("/api/model");
  if (!answer.ok) throw new Error((await answer.json()).error);
  model = await answer.json();
  describe();
  listen();
} catch (error) {
  notice(`the page cannot be used: ${error.message}`);
}
