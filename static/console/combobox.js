// Package suggestions below the name fields of the editor: an ARIA combobox with a list box.
(() => {
  "use strict";
  const form = document.querySelector("[data-suggestions]");
  if (!form) return;
  const PAUSE = 150; // ms after the last key
  let timer = 0;
  let field = null; // with the open list
  let list = null;
  let request = null;

  const close = () => {
    clearTimeout(timer);
    request?.abort();
    request = null;
    list?.remove();
    list = null;
    field?.setAttribute("aria-expanded", "false");
    field?.removeAttribute("aria-activedescendant");
    field?.removeAttribute("aria-controls");
  };

  const options = () => (list ? [...list.querySelectorAll('[role="option"]:not([aria-disabled])')] : []);

  const select = (option) => {
    for (const one of options()) one.setAttribute("aria-selected", String(one === option));
    if (!option) { field.removeAttribute("aria-activedescendant"); return; }
    field.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  };

  const take = (option) => {
    const target = field;
    close();
    target.value = option.dataset.value;
    target.dispatchEvent(new InputEvent("input", { bubbles: true, inputType: "insertReplacementText" }));
    target.closest("li").querySelector("[data-versions]")?.focus();
  };

  const open = async (input) => {
    request?.abort();
    request = new AbortController();
    const query = new URLSearchParams({ q: input.value.trim() });
    query.set("namespace", form.elements.namespace?.value || form.dataset.namespace);
    query.set("channels", form.elements.channels?.value || "");
    for (const box of form.querySelectorAll("[name=platform]:checked")) query.append("platform", box.value);
    let markup = "";
    try {
      const answer = await fetch(`${form.dataset.suggestions}?${query}`, { signal: request.signal, redirect: "manual" });
      if (answer.status !== 200) return;
      markup = await answer.text();
    } catch { return; } // aborted by the next key, or no connection: the field works without a list
    if (document.activeElement !== input) return;
    close();
    field = input;
    if (!markup.trim()) return;
    list = document.createElement("ul");
    list.className = "ac floating";
    list.id = "suggestions";
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "Packages");
    list.innerHTML = markup; // rendered and escaped by the server
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the field keeps the focus
      const option = event.target.closest('[role="option"]:not([aria-disabled])');
      if (option) take(option);
    });
    input.closest("li").append(list);
    input.setAttribute("aria-expanded", "true");
    input.setAttribute("aria-controls", list.id);
    window.condastore?.announce(`${options().length} packages.`);
  };

  form.addEventListener("focusin", (event) => {
    if (!event.target.matches("[data-names]")) { close(); return; }
    if (event.target !== field) close();
    event.target.setAttribute("role", "combobox");
    event.target.setAttribute("aria-autocomplete", "list");
    if (!list) event.target.setAttribute("aria-expanded", "false");
  });
  form.addEventListener("focusout", (event) => { if (event.target === field) close(); });

  form.addEventListener("input", (event) => {
    if (!event.target.matches("[data-names]") || event.inputType === "insertReplacementText") return;
    clearTimeout(timer);
    const input = event.target;
    if (!input.value.trim()) { close(); return; }
    timer = setTimeout(() => open(input), PAUSE);
  });

  form.addEventListener("keydown", (event) => {
    if (!list || event.target !== field || event.isComposing) return;
    const all = options();
    const at = all.findIndex((one) => one.getAttribute("aria-selected") === "true");
    if (event.key === "ArrowDown") { event.preventDefault(); select(all[(at + 1) % all.length]); }
    else if (event.key === "ArrowUp") { event.preventDefault(); select(all[(at <= 0 ? all.length : at) - 1]); }
    else if (event.key === "Enter" && at >= 0) { event.preventDefault(); take(all[at]); }
    else if (event.key === "Escape") { event.preventDefault(); close(); }
  });
})();
