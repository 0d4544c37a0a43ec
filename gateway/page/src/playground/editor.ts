/** The editor: Python with highlighting, completion of tables and columns, and a mark at the line of a failure. */
import { autocompletion, completionKeymap, type CompletionContext, type CompletionResult } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { python, pythonLanguage } from "@codemirror/lang-python";
import { bracketMatching, HighlightStyle, indentOnInput, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { lintGutter, setDiagnostics } from "@codemirror/lint";
import { EditorState, Prec } from "@codemirror/state";
import { EditorView, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";

export interface Editor {
  element: HTMLElement;
  text(): string;
  replace(text: string): void;
  mark(line: number | null, message: string): void;
}

const COLORS = HighlightStyle.define([
  { tag: [tags.keyword, tags.operatorKeyword], color: "var(--run)", fontWeight: "600" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--ok)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--number)" },
  { tag: tags.comment, color: "var(--faint)", fontStyle: "italic" },
  { tag: tags.definition(tags.function(tags.variableName)), color: "var(--accent)" },
]);

const THEME = EditorView.theme({
  "&": { maxHeight: "26rem", backgroundColor: "var(--card)", color: "var(--text)", fontSize: "14px" },
  ".cm-scroller": { fontFamily: "ui-monospace, monospace" },
  ".cm-content, .cm-gutter": { minHeight: "12rem" },
  ".cm-content": { caretColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "var(--log)", color: "var(--faint)", border: "0" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "var(--log)" },
  "&.cm-focused": { outline: "2px solid var(--accent)" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  ".cm-tooltip": { backgroundColor: "var(--card)", color: "var(--text)", border: "1px solid var(--edge)" },
});

interface Options {
  text: string;
  words: () => string[];
  onChange: (text: string) => void;
  onRun: () => void;
}

export function createEditor({ text, words, onChange, onRun }: Options): Editor {
  const nonce = document.querySelector<HTMLMetaElement>("meta[name=style-nonce]")?.content ?? "";
  function complete(context: CompletionContext): CompletionResult | null {
    const word = context.matchBefore(/\w+/);
    if (!word && !context.explicit) return null;
    return { from: word?.from ?? context.pos, options: words().map((label) => ({ label, type: "variable" })), validFor: /^\w*$/ };
  }
  const view = new EditorView({
    state: EditorState.create({
      doc: text,
      extensions: [
        EditorView.cspNonce.of(nonce),
        Prec.highest(keymap.of([{ key: "Mod-Enter", run: () => (onRun(), true) }])),
        lineNumbers(), history(), indentOnInput(), bracketMatching(), highlightActiveLine(), lintGutter(), autocompletion(),
        indentUnit.of("    "),
        keymap.of([...completionKeymap, ...defaultKeymap, ...historyKeymap, indentWithTab]),
        python(), pythonLanguage.data.of({ autocomplete: complete }),
        syntaxHighlighting(COLORS), THEME,
        EditorView.contentAttributes.of({ "aria-label": "Script" }),
        // CodeMirror would insert the text of a dropped file into the script; the view takes it as a table
        EditorView.domEventHandlers({ drop: (event) => (event.dataTransfer?.files.length ?? 0) > 0 }),
        EditorView.updateListener.of((update) => {
          if (update.docChanged) onChange(update.state.doc.toString());
        }),
      ],
    }),
  });
  view.scrollDOM.tabIndex = 0; // long lines are scrolled by keyboard too
  return {
    element: view.dom,
    text: () => view.state.doc.toString(),
    replace: (next) => view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: next } }),
    mark(line, message) {
      const found = line !== null && line <= view.state.doc.lines ? view.state.doc.line(line) : null;
      const marks = found ? [{ from: found.from, to: found.to, severity: "error" as const, message }] : [];
      view.dispatch(setDiagnostics(view.state, marks));
      if (found) view.dispatch({ effects: EditorView.scrollIntoView(found.from, { y: "center" }) });
    },
  };
}
