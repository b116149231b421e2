"use strict";
// The browser of examples. Texts are set as text, never as markup.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters").elements;
  const list = document.getElementById("list"), count = document.getElementById("count"), more = document.getElementById("more");
  const PAGE = 10;
  let found = [], shown = 0;

  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const fill = (select, values, chosen) => {
    select.replaceChildren(...values.map((value) => new Option(value, value, value === chosen, value === chosen)));
  };
  const run = () => runs[form.run.selectedIndex];
  const percent = (share) => (100 * share).toFixed(1) + " %";

  // How the latents did in comparison: win, loss, right (both wholly), wrong (both wholly), same, or "" without both.
  const outcome = (answers) => {
    const latent = answers.latent, other = answers[form.against.value];
    if (!latent || !other) return "";
    if (latent[1] !== other[1]) return latent[1] > other[1] ? "win" : "loss";
    return latent[1] === 1 ? "right" : latent[1] === 0 ? "wrong" : "same";
  };
  const VERDICTS = { win: "latents better", loss: "latents worse", right: "both right", wrong: "both wrong", same: "no difference" };

  const passageOf = (example) => (example.passage === undefined ? null : run().passages[example.passage]);
  const matches = (example, receiver, words) => {
    const wanted = form.outcome.value, answers = example.answers[receiver];
    if (!answers) return false;
    if (wanted === "attention" ? !(example.attention || {})[receiver] : wanted !== "all" && outcome(answers) !== wanted) return false;
    if (!words.length) return true;
    const said = Object.values(answers).map((answer) => answer[0]);
    const text = [example.question, ...example.gold, ...said, (passageOf(example) || []).join("")].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  };

  const passage = (pieces, attention) => {
    const box = make("details"), text = make("p", undefined, "passage");
    const most = attention ? Math.max(...attention) : 0;
    const total = attention ? attention.reduce((a, b) => a + b, 0) : 0;
    box.append(make("summary", "Passage and its " + pieces.length + " latents"));
    if (attention) {
      box.open = true;
      box.append(make("p", "While it answered, " + percent(total) + " of the receiver's attention was on the latents; the stronger the colour, the more. The rest was on the prompt and the answer itself."));
    }
    pieces.forEach((piece, i) => {
      const window = make("span", piece, "window");
      window.title = "latent " + (i + 1) + (attention ? ": " + percent(attention[i]) + " of attention" : "");
      if (most) window.style.setProperty("--a", (0.55 * attention[i] / most).toFixed(3));
      text.append(window);
    });
    const each = make("details"), table = make("div", undefined, "latents");
    each.append(make("summary", "What each latent covers"));
    table.setAttribute("role", "table");
    pieces.forEach((piece, i) => {
      const row = make("div"), cells = [make("span", i + 1, "num"), make("span", piece.trim() || "(nothing of its own)")];
      if (attention) {
        const meter = make("span", undefined, "meter"), bar = make("i");
        bar.style.width = (most ? 100 * attention[i] / most : 0) + "%";
        meter.append(bar);
        cells.push(meter, make("span", percent(attention[i]), "num"));
      } else cells.push(make("span"), make("span"));
      row.setAttribute("role", "row");
      cells.forEach((cell) => cell.setAttribute("role", "cell"));
      row.append(...cells);
      table.append(row);
    });
    each.append(table);
    box.append(text, each);
    return box;
  };

  const card = (example) => {
    const receiver = form.receiver.value, answers = example.answers[receiver], kind = outcome(answers);
    const box = make("article", undefined, kind), table = make("dl", undefined, "answers");
    const gold = make("p", undefined, "gold");
    gold.append(make("span", "gold: "), make("b", example.gold.join(" / ")));
    box.append(make("h3", example.question), ...(kind ? [make("p", VERDICTS[kind], "verdict")] : []), gold);
    for (const mode of run().modes) {
      if (!answers[mode]) continue;
      const key = mode === "latent" || mode === form.against.value;
      table.append(make("dt", mode, key ? "key" : ""), make("dd", answers[mode][0] || "(nothing)", answers[mode][0] ? "" : "empty"));
      const score = make("dd", answers[mode][1].toFixed(2));
      score.title = "F1";
      table.append(score);
    }
    box.append(table);
    const pieces = passageOf(example);
    if (pieces) box.append(passage(pieces, (example.attention || {})[receiver]));
    return box;
  };

  const next = () => {
    list.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
  };
  const update = () => {
    const receiver = form.receiver.value;
    const words = form.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = run().examples.filter((example) => matches(example, receiver, words));
    shown = 0;
    count.textContent = found.length + " of " + run().examples.length + " questions";
    list.replaceChildren();
    next();
  };
  const chooseReceiver = () => {
    const chosen = run().against[form.receiver.value], others = run().modes.filter((mode) => mode !== "latent");
    fill(form.against, others, others.includes(chosen) ? chosen : others[0]);
    update();
  };
  const chooseRun = () => {
    const before = form.receiver.value;
    fill(form.receiver, run().receivers, before);
    chooseReceiver();
  };

  fill(form.run, runs.map((one) => one.run), runs[0].run);
  form.run.addEventListener("change", chooseRun);
  form.receiver.addEventListener("change", chooseReceiver);
  for (const name of ["against", "outcome"]) form[name].addEventListener("change", update);
  form.search.addEventListener("input", update);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", next);
  chooseRun();
})();
