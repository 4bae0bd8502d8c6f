// Log of a build: follow its end while the reader is there, and find the line of the address.
(() => {
  "use strict";
  // Parts of the page that the server sends: each names its target and how it is inserted.
  const live = document.querySelector("[data-stream]");
  if (live) {
    const source = new EventSource(live.dataset.stream);
    source.addEventListener("finished", () => source.close());
    source.addEventListener("message", (message) => {
      const parts = new DOMParser().parseFromString(message.data, "text/html");
      for (const part of parts.querySelectorAll("hx-partial")) {
        const target = document.querySelector(part.getAttribute("hx-target"));
        if (!target) continue;
        const nodes = [...part.childNodes];
        if (part.getAttribute("hx-swap") === "outerHTML") target.replaceWith(...nodes);
        else if (part.getAttribute("hx-swap") === "innerHTML") target.replaceChildren(...nodes);
        else target.append(...nodes.filter((node) => !node.id || !document.getElementById(node.id)));
      }
    });
  }

  const box = document.getElementById("log-scroll");
  if (!box) return;
  const NEAR = 40; // pixels from the end that count as the end
  const more = document.querySelector("[data-new-lines]");
  let atEnd = true;
  let unseen = 0;
  const toEnd = () => { box.scrollTop = box.scrollHeight; };

  const wanted = () => {
    const line = /^#L(\d+)$/.exec(location.hash);
    if (!line) return false;
    const row = document.getElementById(`L${line[1]}`);
    if (row) {
      row.scrollIntoView({ block: "center" });
    } else if (Number(line[1]) >= 1 && Number(line[1]) <= Number(box.dataset.total)
               && new URLSearchParams(location.search).get("line") !== line[1]) {
      location.replace(`?line=${line[1]}#L${line[1]}`);
    }
    return true;
  };
  if (wanted()) atEnd = false; else if ("follow" in box.dataset) toEnd();
  window.addEventListener("hashchange", wanted);

  box.addEventListener("scroll", () => {
    atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
    if (atEnd && more) { unseen = 0; more.hidden = true; }
  });
  if (more) more.addEventListener("click", (event) => { event.preventDefault(); toEnd(); });
  new MutationObserver((changes) => {
    unseen += changes.reduce((sum, change) => sum + [...change.addedNodes].filter((node) => node.nodeName === "LI").length, 0);
    if (atEnd) { toEnd(); unseen = 0; }
    if (more) { more.hidden = !unseen; more.textContent = `${unseen} new ${unseen === 1 ? "line" : "lines"}`; }
  }).observe(document.getElementById("log-lines"), { childList: true });

  // Announce changes of the state, never the progress.
  let state = "";
  new MutationObserver(() => {
    const now = document.getElementById("build-state")?.textContent.trim();
    if (now && state && now !== state) window.condastore.announce(`Build: ${now}.`);
    state = now || state;
  }).observe(document.querySelector(".head-title"), { childList: true });
  state = document.getElementById("build-state").textContent.trim();
})();
