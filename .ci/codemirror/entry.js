// CodeMirror for YAML in a shadow root: style sheets are constructed, which the policy allows.
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { yaml } from "@codemirror/lang-yaml";
import { HighlightStyle, syntaxHighlighting } from "@codemirror/language";
import { lintGutter, setDiagnostics } from "@codemirror/lint";
import { EditorState } from "@codemirror/state";
import { EditorView, drawSelection, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";

const highlight = HighlightStyle.define([
  { tag: [tags.propertyName, tags.definition(tags.propertyName)], color: "light-dark(#5b2fa6, #c4a9ff)" },
  { tag: tags.comment, color: "var(--text-3)" },
  { tag: [tags.string, tags.number, tags.bool], color: "light-dark(#0b5c86, #7ec8f0)" },
]);
const theme = EditorView.theme({
  "&": { color: "var(--text)", backgroundColor: "var(--surface)", fontSize: ".8125rem", minHeight: "24rem", border: "1px solid var(--control)", borderRadius: "6px" },
  "&.cm-focused": { outline: "2px solid var(--accent)", outlineOffset: "-1px" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.6", minHeight: "24rem" },
  ".cm-content": { caretColor: "var(--text)", padding: ".5rem 0" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "var(--surface)", color: "var(--text-3)", border: "0" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "color-mix(in srgb, var(--sunken) 70%, transparent)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": { backgroundColor: "light-dark(#cfe0fb, #27456f)" },
  ".cm-tooltip": { backgroundColor: "var(--surface)", color: "var(--text)", border: "1px solid var(--bad-line)", borderRadius: "6px", fontFamily: "var(--sans)" },
  ".cm-diagnostic-error": { borderLeftColor: "var(--bad)" },
  ".cm-lintRange-error": { backgroundImage: "none", textDecoration: "underline wavy var(--bad)", textUnderlineOffset: ".25em" },
});

// Mount an editor; returns { get, set, mark, focus }. `changed` is called after each edit of a person.
window.condastoreCodeMirror = (host, { text, label, changed }) => {
  const root = host.attachShadow({ mode: "open" });
  let silent = false;
  const view = new EditorView({
    root,
    parent: root,
    state: EditorState.create({
      doc: text,
      extensions: [
        lineNumbers(), lintGutter(), history(), drawSelection(), highlightActiveLine(), yaml(), theme,
        syntaxHighlighting(highlight), keymap.of([...defaultKeymap, ...historyKeymap]),
        EditorView.contentAttributes.of({ "aria-label": label, spellcheck: "false", autocapitalize: "none" }),
        EditorView.updateListener.of((update) => { if (update.docChanged && !silent) changed(update.state.doc.toString()); }),
      ],
    }),
  });
  return {
    get: () => view.state.doc.toString(),
    // Replace only what differs: cursor, scrolling and undo history stay.
    set: (next) => {
      const now = view.state.doc.toString();
      if (now === next) return;
      let start = 0, end = 0;
      while (start < Math.min(now.length, next.length) && now[start] === next[start]) start += 1;
      while (end < Math.min(now.length, next.length) - start && now[now.length - 1 - end] === next[next.length - 1 - end]) end += 1;
      silent = true;
      view.dispatch({ changes: { from: start, to: now.length - end, insert: next.slice(start, next.length - end) } });
      silent = false;
    },
    // Underline lines: [{ line, message }], lines from 1.
    mark: (messages) => {
      const known = messages.filter((one) => one.line >= 1 && one.line <= view.state.doc.lines);
      view.dispatch(setDiagnostics(view.state, known.map(({ line, message }) => {
        const { from, to, text: written } = view.state.doc.line(line);
        return { from: from + written.length - written.trimStart().length, to, severity: "error", message };
      })));
    },
    focus: () => view.focus(),
  };
};
