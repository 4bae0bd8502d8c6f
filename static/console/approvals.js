// Keys of the approval queue: j and k move, x selects, Enter opens, a approves, r rejects.
(() => {
  "use strict";
  const rows = () => [...document.querySelectorAll("#queue [data-row]")];
  let at = -1;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]")) return;
    const all = rows();
    const move = { j: 1, k: -1 }[event.key];
    if (move && all.length) {
      at = Math.max(0, Math.min(all.length - 1, at + move));
      all[at].querySelector("a.name").focus();
      event.preventDefault();
    } else if (event.key === "x" && all[at]) {
      all[at].querySelector("input[type=checkbox]")?.click();
    } else if (event.key === "a" || event.key === "r") {
      const button = document.querySelector(`#queue [data-key="${event.key}"]`);
      if (button && document.querySelector("#queue input[type=checkbox]:checked")) button.click();
    }
  });
})();
