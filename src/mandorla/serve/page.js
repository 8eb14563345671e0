// The page: forms over the HTTP API. The address holds the view and the fields of its form, so that a link restores both.
// Text from the server enters the page as text alone, never as markup.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const output = $("#output"), state = $("#state");
let model, running;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function say(text, wrong = false) {
  state.textContent = text;
  state.className = wrong ? "wrong" : "";
}

async function ask(path, options = {}) {
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({ detail: `${response.status} ${response.statusText}` }));
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

// ------------------------------------------------------------------------------------------------ a sample in a form

// A fieldset that names a sample: of the test part, drawn, or uploaded. The hidden field has what the API is asked for.
function samplePicker(box) {
  const hidden = el("input", { type: "hidden", name: box.dataset.sample, value: box.dataset.first ?? (box.dataset.sample === "b" ? "test:1" : "test:0") });
  const kind = el("select", {}, ...[["test", "test sample"], ["seed", "drawn"], ["upload", "uploaded"]].map(([value, text]) => el("option", { value }, text)));
  const number = (text, extra = {}) => {
    const field = el("input", { type: "number", min: 0, value: 0, ...extra });
    return { field, label: el("label", {}, text, field) };
  };
  const test = number("Number"), seed = number("Seed"), drawn = number("Number");
  const slice = el("select"), sliceLabel = el("label", {}, "Slice", slice);
  let upload = null;
  const files = Object.keys(model.modalities).map((name) => {
    const field = el("input", { type: "file", accept: model.accepted.join(","), "data-modality": name, onchange: () => send(field) });
    return el("label", {}, name, field);
  });
  const parts = { test: [test.label], seed: [seed.label, drawn.label], upload: [...files, sliceLabel] };
  box.append(el("legend", {}, box.dataset.legend), el("label", {}, "Sample", kind), ...Object.values(parts).flat(), hidden);

  function show() {
    for (const [name, nodes] of Object.entries(parts)) for (const node of nodes) node.hidden = name !== kind.value;
    sliceLabel.hidden = kind.value !== "upload" || !upload?.slices;
    // what is not shown must not keep the form from being sent
    for (const node of Object.values(parts).flat()) $("input, select", node).disabled = node.hidden;
  }
  function write() {
    const how = hidden.value.split(":").slice(3).join(":"); // steps, guidance, labels of one picked from a table
    hidden.value = {
      test: `test:${test.field.value}`,
      seed: `seed:${seed.field.value}:${drawn.field.value}${hidden.value.startsWith("seed:") && how ? `:${how}` : ""}`,
      upload: upload ? `upload:${upload.token}${upload.slices ? `:${slice.value}` : ""}` : "upload:",
    }[kind.value];
    show();
  }
  function read() {
    const [name, first, second] = hidden.value.split(":");
    kind.value = name;
    if (name === "test") test.field.value = first;
    if (name === "seed") [seed.field.value, drawn.field.value] = [first, second];
    if (name === "upload" && upload?.token !== first) upload = { token: first, slices: second ? [second] : null };
    if (name === "upload" && upload.slices) fillSlices(second);
    show();
  }
  function fillSlices(chosen) {
    slice.replaceChildren(...upload.slices.map((value) => el("option", { value }, value)));
    slice.value = chosen ?? upload.slices[Math.floor(upload.slices.length / 2)];
  }
  // The sample is what all fields show, sent anew with every change: a file that is taken away is gone.
  async function send(changed) {
    const shown = files.map((label) => $("input", label)).filter((field) => field.files.length);
    let sent = null;
    const notes = [];
    try {
      for (const field of shown) {
        const file = field.files[0];
        if (file.size > model.largest) throw new Error(`${file.name}: larger than ${model.largest / 2 ** 20} MiB`);
        say(`reading ${file.name} …`);
        const query = new URLSearchParams({ name: file.name });
        if (sent) query.set("token", sent.token);
        const options = { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file };
        sent = await ask(`api/uploads/${encodeURIComponent(field.dataset.modality)}?${query}`, options);
        notes.push(`${field.dataset.modality} of ${file.name}. ${sent.note}`);
      }
    } catch (error) {
      changed.value = "";
      return say(error.message, true);
    }
    upload = sent;
    if (upload?.slices) fillSlices();
    say(notes.length ? `uploaded: ${notes.join(" ")}` : "no file is uploaded");
    write();
  }
  box.addEventListener("input", (event) => event.target.type !== "file" && write());
  hidden.addEventListener("restore", read);
  read();
}

// A field for a label that tuples can be asked for. What the API is asked for is NAME=VALUE, or nothing.
function labelField(name, classes) {
  if (classes.length) {
    const options = classes.map((value) => el("option", { value: `${name}=${value}` }, value));
    return el("label", {}, name, el("select", { name: "label", "data-label": name }, el("option", { value: "" }, "any"), ...options));
  }
  const hidden = el("input", { type: "hidden", name: "label", "data-label": name });
  const number = el("input", { type: "number", step: "any", placeholder: "any" });
  number.addEventListener("input", () => (hidden.value = number.value && `${name}=${number.value}`));
  hidden.addEventListener("restore", () => (number.value = hidden.value.slice(name.length + 1)));
  return el("label", {}, name, number, hidden);
}

function useAs(name, sample) {
  for (const field of $$(`input[type=hidden][name=${name}]`)) {
    field.value = sample;
    field.dispatchEvent(new Event("restore"));
  }
  say(`${sample} is now sample ${name.toUpperCase()} in every view`);
}

// ----------------------------------------------------------------------------------------------------------- results

const fileName = (settings, end) =>
  Object.entries(settings)
    .filter(([key]) => !["weights", "mandorla", "synthetic"].includes(key))
    .map(([key, value]) => (key === "question" || key === "run" ? value : `${key}-${value}`))
    .concat(end)
    .join("_")
    .replace(/[^\w.+-]+/g, "-") + ".png";

function showPanel(panel, query) {
  const size = ({ target }) => target.classList.toggle("large", target.naturalWidth > 64); // smooth, where not a few pixels
  const head = panel.columns.map(({ title, sample }) =>
    el("th", { scope: "col" }, title, sample && el("div", { class: "use" }, ...["a", "b"].map((name) =>
      el("button", { type: "button", "aria-label": `use ${sample} as sample ${name.toUpperCase()}`, title: `use as sample ${name.toUpperCase()}`, onclick: () => useAs(name, sample) }, name.toUpperCase())))));
  const body = panel.rows.map((row, i) =>
    el("tr", {}, el("th", { scope: "row" }, row), ...panel.images[i].map((image, j) => {
      if (!image) return el("td");
      const source = `data:image/png;base64,${image}`, title = panel.columns[j].title;
      const link = { href: source, download: fileName(panel.settings, [row, title]), title: `save ${row}, ${title}` };
      return el("td", {}, el("a", link, el("img", { src: source, alt: `${row}, ${title}`, onload: size })));
    })));
  const whole = new URLSearchParams(query);
  whole.set("format", "png");
  output.replaceChildren(
    el("div", { class: "pictures" }, el("table", {}, el("thead", {}, el("tr", {}, el("td"), ...head)), el("tbody", {}, ...body))),
    ...panel.notes.map((note) => el("p", { class: "soft" }, note)),
    el("div", { class: "actions" },
      el("a", { class: "download", id: "save", href: `api/${panel.settings.question}?${whole}`, download: fileName(panel.settings, []) }, "Save as one picture"),
      el("button", { type: "button", onclick: copyLink }, "Copy link"),
      el("span", { class: "soft" }, "A click on a picture saves it. Every file says with which settings it was made.")),
  );
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("the link is copied");
  } catch {
    say(location.href);
  }
}

const figure = (value) => (value == null ? "" : Math.abs(value) >= 100 ? value.toFixed(0) : value && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3));

function tableOf(records) {
  const keys = ["value", "error", "chance", "ceiling", "control"];
  const cell = (label, text) => el("td", { "data-label": label, class: label === "value" && "value" }, text);
  return el("div", { class: "table" }, el("table", {},
    el("thead", {}, el("tr", {}, ...["figure", "value", "±", "chance", "ceiling", "control", "n", "better"].map((text) => el("th", { scope: "col" }, text)), el("th", { scope: "col", class: "definition" }, "definition"))),
    el("tbody", {}, ...records.map((record) => el("tr", {},
      el("th", { scope: "row" }, record.name),
      ...keys.map((key) => cell(key === "error" ? "±" : key, figure(record[key]) + (key === "value" && record.unit ? ` ${record.unit}` : ""))),
      cell("n", record.n), cell("better", record.better), el("td", { class: "definition" }, record.definition))))));
}

async function showFigures(options) {
  const records = await ask("api/metrics", options);
  const single = records.filter(({ name }) => name.split("/").length > 2); // of one view or one route
  output.replaceChildren(
    tableOf(records.filter((record) => !single.includes(record))),
    ...(single.length ? [el("details", {}, el("summary", {}, `${single.length} more, one by one`), tableOf(single))] : []),
  );
}

const plain = (text = "") => text.replaceAll("`", "");

async function showApi(options) {
  const { paths } = await ask("api/openapi.json", options);
  const entries = Object.entries(paths).flatMap(([path, verbs]) => Object.entries(verbs).map(([verb, operation]) => {
    const parameters = (operation.parameters ?? []).map(({ name, required, schema, description }) => {
      const standard = schema.default === undefined ? "" : ` = ${JSON.stringify(schema.default)}`;
      return el("dd", {}, el("code", {}, name + (required ? "" : standard)), description ? `: ${plain(description)}` : "");
    });
    return [el("dt", {}, el("code", {}, `${verb.toUpperCase()} ${path}`), ` ${plain(operation.summary)}`), ...parameters];
  }));
  output.replaceChildren(el("dl", {}, ...entries.flat()));
}

// -------------------------------------------------------------------------------------------------- address and forms

const formOf = (view) => $(`form[data-view="${CSS.escape(view)}"]`);

// What a form asks: its fields, less those that are empty.
function queryOf(form) {
  return new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== "" && typeof value === "string"));
}

// Bring a form to what an address says; what it does not speak of is as at first, but for the samples.
function restore(form, query) {
  const speaks = [...query.keys()].some((key) => key !== "view"); // then a tick that is not in it is off
  form.reset();
  for (const field of form.elements) {
    if (field.type === "checkbox" && speaks) field.checked = query.getAll(field.name).includes(field.value);
    else if (field.dataset.label) field.value = query.getAll("label").find((text) => text.startsWith(`${field.dataset.label}=`)) ?? "";
    else if (field.name && query.has(field.name)) field.value = query.get(field.name);
    if (field.type === "hidden") field.dispatchEvent(new Event("restore"));
  }
}

async function show(form) {
  const view = form.dataset.view, query = queryOf(form);
  running?.abort();
  const mine = (running = new AbortController()), options = { signal: mine.signal };
  for (const other of $$("form")) other.classList.toggle("current", other === form);
  for (const link of $$("#views a")) {
    link.removeAttribute("aria-current");
    if (link.search === `?view=${view}`) link.setAttribute("aria-current", "page");
  }
  output.classList.add("old");
  say("computing …");
  try {
    if (view === "figures") await showFigures(options);
    else if (view === "api") await showApi(options);
    else showPanel(await ask(`api/${view}?${query}`, options), query);
    say("");
  } catch (error) {
    if (mine !== running) return; // another answer is waited for by now
    output.replaceChildren();
    say(error.message, true);
  } finally {
    if (mine === running) output.classList.remove("old");
  }
}

function go(form, push = true) {
  const query = queryOf(form);
  const address = new URLSearchParams([["view", form.dataset.view], ...query]);
  if (push) history.pushState(null, "", `?${address}`);
  return show(form);
}

function follow() {
  const query = new URLSearchParams(location.search);
  const form = formOf(query.get("view") ?? "generate") ?? formOf("generate");
  restore(form, query);
  return show(form);
}

async function start() {
  model = await ask("api/model");
  document.title = `${model.run} · Mandorla`;
  $("#run").textContent = model.run;
  const facts = Object.entries(model.modalities).map(([name, shape]) => `${name} ${shape.join(" × ")}`);
  for (const [name, shape] of Object.entries(model.components)) facts.push(`${name === "shared" ? "shared" : `private ${name}`} ${shape.join(" × ")}`);
  facts.push(model.mode ? `stage 2: ${model.mode}` : "stage 2 is not trained: nothing can be drawn");
  $("#facts").append(...facts.map((text) => el("li", {}, text)));
  for (const name of ["steps", "guidance"]) for (const field of $$(`.${name}`)) field.placeholder = model[name] ?? "";
  for (const box of $$("[data-sample]")) samplePicker(box);
  for (const box of $$("[data-modalities]")) {
    const ticks = Object.keys(model.modalities).map((name) => el("label", { class: "tick" }, el("input", { type: "checkbox", name: box.dataset.modalities, value: name }), name));
    box.append(el("legend", {}, box.dataset.legend), ...ticks);
  }
  const labels = Object.entries(model.labels);
  $("#guidance").before(...labels.map(([name, classes]) => labelField(name, classes)));
  $("#guidance").hidden = !labels.length; // it pushes towards what is asked for
  for (const list of $$(".modality")) list.append(...Object.keys(model.modalities).map((name) => el("option", { value: name }, name)));
  $("#component").append(...Object.keys(model.components).map((name) => el("option", { value: name }, name === "shared" ? "shared part" : `private part of ${name}`)));
  for (const form of $$("form")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      go(form);
    });
  }
  for (const link of $$("#views a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      go(formOf(new URLSearchParams(link.search).get("view")));
    });
  }
  for (const slider of $$("input[type=range]")) slider.addEventListener("change", () => go(slider.form));
  $(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // an address of its own would be followed, and everything computed again
    $("#result").focus();
  });
  addEventListener("popstate", follow);
  await follow();
  try {
    const { test } = await ask("api/data");
    for (const box of $$("[data-sample]")) $("input[type=number]", box).max = test - 1;
  } catch {
    // the data are elsewhere: drawn and uploaded samples can be explored all the same
  }
}

start().catch((error) => say(error.message, true));
