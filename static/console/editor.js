// Editor of an environment: keeps form, YAML and preview in step. The page works without it.
(() => {
  "use strict";
  const form = document.querySelector("[data-editor]");
  if (!form) return;
  const text = document.getElementById("text");
  const build = document.getElementById("build-button");
  const key = `condastore-draft:${location.pathname}`;
  const PAUSE = 300; // ms after the last key
  let version = 0; // of the draft; answers to older ones are dropped
  let timer = 0;
  let side = "yaml";

  const byId = (id) => document.getElementById(id);
  const inForm = (element) => Boolean(element.closest("#editor-form"));
  // The textarea stays the field of the form; CodeMirror stands in front of it.
  const mount = () => {
    if (!window.condastoreCodeMirror) return null;
    const host = document.createElement("div");
    text.before(host);
    const label = document.querySelector("label[for=text]").textContent;
    const mounted = window.condastoreCodeMirror(host, {
      text: text.value,
      label,
      changed: (value) => { text.value = value; changed("yaml"); },
    });
    text.hidden = true;
    return mounted;
  };
  const yaml = {
    code: null,
    get: () => text.value,
    set: (value) => { text.value = value; yaml.code?.set(value); },
    focus: () => (yaml.code ?? text).focus(),
    mark: () => yaml.code?.mark([...document.querySelectorAll("#yaml-messages [data-lines]")].flatMap((one) =>
      one.dataset.lines.split(" ").filter(Boolean).map((line) => ({ line: Number(line), message: one.querySelector("p").textContent })))),
  };

  // --- draft in this browser

  const save = () => {
    try {
      localStorage.setItem(key, JSON.stringify({ text: text.value, at: Date.now() }));
      byId("draft-saved").hidden = false;
    } catch { /* private mode, or full */ }
  };
  const forget = () => { try { localStorage.removeItem(key); } catch { /* private mode */ } };

  const offer = () => {
    let draft = null;
    try { draft = JSON.parse(localStorage.getItem(key) || "null"); } catch { return; }
    if (!draft || typeof draft.text !== "string" || draft.text === text.value) return;
    if ("posted" in form.dataset) { save(); return; }
    const note = document.createElement("section");
    note.className = "note is-info draft-note";
    note.innerHTML = '<div><h2></h2><p></p><div class="acts"><button class="btn" type="button" data-size="sm">Restore the draft</button><button class="btn" type="button" data-variant="ghost" data-size="sm">Discard it</button></div></div>';
    note.querySelector("h2").textContent = "This browser has a draft that was not built.";
    note.querySelector("p").textContent = `Last changed ${new Date(draft.at).toLocaleString()}.`;
    const [restore, drop] = note.querySelectorAll("button");
    restore.addEventListener("click", () => { yaml.set(draft.text); note.remove(); changed("yaml"); yaml.focus(); });
    drop.addEventListener("click", () => { forget(); note.remove(); yaml.focus(); });
    form.before(note);
  };

  // --- in step

  const changed = (where) => {
    version += 1;
    side = where;
    save();
    clearTimeout(timer);
    timer = setTimeout(() => send("sync"), PAUSE);
  };

  const send = async (action, extra = {}) => {
    const sent = version;
    const body = new FormData(form);
    body.delete("file");
    body.set("action", action);
    for (const [name, value] of Object.entries(extra)) body.set(name, value);
    let page = null;
    try {
      const answer = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { "HX-Request": "true" }, redirect: "manual" });
      if (answer.status === 200) page = new DOMParser().parseFromString(await answer.text(), "text/html");
      else if (answer.status === 401 || answer.type === "opaqueredirect") { say("Your session has ended. The draft is saved in this browser: sign in and open this page again."); return; }
      else { say("The preview is not available at the moment. The draft is saved."); return; }
    } catch { say("The server cannot be reached. The draft is saved in this browser."); return; }
    if (sent !== version) return; // something was typed since
    show(page, action, "repair" in extra || "remove" in extra);
  };

  const say = (message) => {
    const preview = byId("preview");
    preview.querySelectorAll(":scope > :not(header)").forEach((one) => one.remove());
    const paragraph = document.createElement("p");
    paragraph.className = "body";
    paragraph.textContent = message;
    preview.append(paragraph);
  };

  const show = (page, action, both) => {
    if (action !== "result") {
      const written = page.getElementById("text-new").value;
      if (yaml.get() !== written && (side === "form" || both)) yaml.set(written);
      const newer = page.getElementById("editor-form");
      if (side === "yaml" || both) swap("editor-form", newer);
      else follow(newer);
      if (both) save();
    } else follow(page.getElementById("editor-form"));
    swap("yaml-messages", page.getElementById("yaml-messages"));
    text.setAttribute("aria-invalid", String(byId("yaml-messages").children.length > 0));
    swap("preview", page.getElementById("preview"));
    const preview = byId("preview");
    const conflicts = "conflicts" in preview.dataset;
    if (conflicts) { build.setAttribute("aria-disabled", "true"); build.setAttribute("aria-describedby", "why-not"); }
    else { build.removeAttribute("aria-disabled"); build.removeAttribute("aria-describedby"); }
    yaml.mark();
    if ("pending" in preview.dataset) wait();
  };

  const wait = (pause = 150) => { const now = version; setTimeout(() => { if (now === version) send("result"); }, pause); };

  const swap = (id, newer) => {
    const older = byId(id);
    const focused = document.activeElement;
    const inside = focused && older.contains(focused) && focused.id;
    const open = [...older.querySelectorAll("details")].map((one) => one.open);
    const range = inside && "selectionStart" in focused ? [focused.selectionStart, focused.selectionEnd] : null;
    older.replaceWith(newer);
    newer.querySelectorAll("details").forEach((one, index) => { if (open[index] !== undefined) one.open = open[index]; });
    if (inside && byId(focused.id)) {
      byId(focused.id).focus();
      if (range && byId(focused.id).setSelectionRange) { try { byId(focused.id).setSelectionRange(...range); } catch { /* a checkbox */ } }
    }
  };

  // The person types in the form: take over its base and what is said about its rows, not its values.
  const follow = (newer) => {
    const base = form.querySelector("[name=base]"), newBase = newer.querySelector("[name=base]");
    if (!base || !newBase) { if (!base && newBase) swap("editor-form", newer); return; }
    base.value = newBase.value;
    const said = new Map([...newer.querySelectorAll(".reqs > li[data-package]")].map((row) => [row.dataset.package, row]));
    for (const row of form.querySelectorAll(".reqs > li")) {
      row.querySelector(".said")?.remove();
      const version = row.querySelector("[name=version]");
      version.removeAttribute("aria-invalid");
      version.removeAttribute("aria-describedby");
      const other = said.get(row.querySelector("[name=package]").value.trim());
      const message = other?.querySelector(".said");
      if (!message) continue;
      message.id = version.id.replace("v", "e");
      row.append(message);
      version.setAttribute("aria-describedby", message.id);
      if (message.querySelector(".err")) version.setAttribute("aria-invalid", "true");
    }
  };

  // A blank row follows the last one.
  const blank = () => {
    const last = form.querySelector(".reqs > li:last-child");
    if (!last || !last.querySelector("[name=package]").value) return;
    const next = last.cloneNode(true);
    const number = form.querySelectorAll(".reqs > li").length;
    next.querySelector(".said")?.remove();
    for (const input of next.querySelectorAll("input")) { input.value = ""; input.id = input.id.replace(/\d+/, String(number)); }
    for (const label of next.querySelectorAll("label")) label.htmlFor = label.htmlFor.replace(/\d+/, String(number));
    next.dataset.blank = "";
    delete last.dataset.blank;
    last.after(next);
  };

  form.addEventListener("input", (event) => {
    const target = event.target;
    if (target.type === "file" || target.name === "from" || target.name === "reason") return;
    if (target !== text && !target.name) return; // CodeMirror reports its changes itself
    if (inForm(target)) { if (target.name === "package") blank(); changed("form"); } else changed("yaml");
  });

  form.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.name === "repair" || button.name === "remove") {
      event.preventDefault();
      version += 1;
      clearTimeout(timer);
      side = "form";
      send("sync", { [button.name]: button.value });
    } else if (button.name === "action" && button.value === "preview") {
      event.preventDefault();
      version += 1;
      clearTimeout(timer);
      send("preview");
    } else if (button === build && build.getAttribute("aria-disabled") === "true") {
      event.preventDefault();
      byId("preview").scrollIntoView({ block: "nearest" });
    }
  });

  document.addEventListener("click", (event) => { if (event.target.closest("[data-discard]")) forget(); });
  form.addEventListener("submit", (event) => {
    if (event.submitter?.value === "build") forget();
  });

  if (location.hash === "#start") byId("start").open = true;
  yaml.code = mount();
  blank();
  offer();
  yaml.mark();
  if (!("posted" in form.dataset)) send("sync");
  else if ("pending" in byId("preview").dataset) wait();
})();
