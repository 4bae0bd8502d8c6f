// Behaviour of all pages: theme, copy buttons, keys, dismissing messages. Pages work without it.
(() => {
  "use strict";
  const root = document.documentElement;
  root.dataset.js = "";

  // Theme: the attribute and the stored value are those of Django's admin.
  const stored = () => { try { return localStorage.getItem("theme") || "auto"; } catch { return "auto"; } };
  const show = (theme) => { root.dataset.theme = theme; };
  show(stored());

  document.addEventListener("click", async (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      const source = copy.dataset.copy ? document.getElementById(copy.dataset.copy) : copy.parentElement.querySelector("code");
      const text = source.value ?? source.textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch { // not a secure origin: select the text, so that the keys of the system copy it
        const range = document.createRange();
        range.selectNodeContents(source);
        const selection = window.getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        document.execCommand("copy");
      }
      copy.dataset.copied = "";
      announce("Copied.");
      setTimeout(() => { delete copy.dataset.copied; }, 1500);
      return;
    }
    const theme = event.target.closest("[data-theme-next]");
    if (theme) {
      const order = ["auto", "light", "dark"];
      const next = order[(order.indexOf(stored()) + 1) % order.length];
      try { localStorage.setItem("theme", next); } catch { /* private mode */ }
      show(next);
      announce(`Theme: ${next === "auto" ? "system" : next}.`);
      return;
    }
    const close = event.target.closest("[data-dismiss]");
    if (close) { event.preventDefault(); close.closest(".toast-line").remove(); return; }
    // A menu closes when something else is clicked.
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      const menu = document.querySelector("details.menu[open]");
      if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
    }
    const typing = event.composedPath()[0].closest?.("input, textarea, select, [contenteditable], .cm-editor");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const search = document.querySelector("[data-search-key]");
      if (search && search.offsetParent) { event.preventDefault(); search.focus(); search.select(); }
    }
  });

  // One polite message for screen readers.
  const announce = (text) => {
    const region = document.getElementById("announcements");
    if (region) { region.textContent = ""; region.textContent = text; }
  };
  window.condastore = { announce };
})();
