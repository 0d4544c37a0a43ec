/** The tables of a run: choose files, name a URL, or take the sample. */
import { useState } from "preact/hooks";
import { bytes, names } from "../core/format.ts";
import { FORMATS } from "./formats.ts";
import { endingsOf, GZIP_ENDING, guessOf, sampleTable, type PlaygroundTable } from "./tables.ts";

const ENDINGS = endingsOf(FORMATS);

interface Props {
  tables: PlaygroundTable[];
  add: (files: Iterable<File>) => Promise<void>;
  take: (tables: PlaygroundTable[]) => void;
  remove: (name: string) => void;
}

export function TablesCard({ tables, add, take, remove }: Props) {
  const [hasForm, setForm] = useState(false);
  function choose({ currentTarget }: { currentTarget: HTMLInputElement }): void {
    void add(currentTarget.files ?? []);
    currentTarget.value = ""; // else the choice of the same file, which was changed, is no event
  }
  return (
    <section class="card drop" aria-label="Tables">
      <div class="row">
        <h2>Tables</h2>
        <label class="button">Choose files<input class="hidden" type="file" multiple accept={[...ENDINGS, GZIP_ENDING].join(",")} onChange={choose} /></label>
        <button onClick={() => void add([sampleTable()])}>Sample: orders</button>
        <button aria-expanded={hasForm} onClick={() => setForm(!hasForm)}>By URL</button>
        <span class="faint">or drop {ENDINGS.join(", ")} files anywhere here, also with {GZIP_ENDING}</span>
      </div>
      {hasForm && <UrlForm take={(table) => (take([table]), setForm(false))} />}
      {tables.length > 0 && (
        <ul class="progress">
          {tables.map((table) => (
            <li key={table.name}><b>{table.name}</b> <About table={table} /> <button class="plain" aria-label={`Remove ${table.name}`} onClick={() => remove(table.name)}>remove</button></li>
          ))}
        </ul>
      )}
    </section>
  );
}

function About({ table: { source, columns } }: { table: PlaygroundTable }) {
  if (source instanceof File) return <>{bytes(source.size)} <span class="faint">{names(columns)}</span></>;
  return <>{source.format} <span class="faint">from {new URL(source.url).host}</span></>;
}

function UrlForm({ take }: { take: (table: PlaygroundTable) => void }) {
  const [url, setUrl] = useState("");
  const [typed, setTyped] = useState({ name: "", format: "" });
  const guess = guessOf(url.trim(), FORMATS);
  const name = typed.name || guess.name;
  const format = typed.format || guess.format || "csv";
  function submit(event: Event): void {
    event.preventDefault();
    take({ name, source: { url: url.trim(), format }, columns: [] });
  }
  return (
    <form class="filters" onSubmit={submit}>
      <label class="wide">URL, which the gateway fetches<input type="url" required pattern="https?://.+" placeholder="https://" value={url} onInput={(event) => setUrl(event.currentTarget.value)} /></label>
      <label>Name of the table<input required pattern="[\p{XID_Start}_]\p{XID_Continue}*" value={name} onInput={(event) => setTyped({ ...typed, name: event.currentTarget.value })} /></label>
      <label>Format<select value={format} onChange={(event) => setTyped({ ...typed, format: event.currentTarget.value })}>{Object.keys(FORMATS).map((each) => <option key={each}>{each}</option>)}</select></label>
      <button>Add table</button>
    </form>
  );
}
