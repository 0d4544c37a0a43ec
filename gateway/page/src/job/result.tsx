/** The kept result of a job: the columns with their types, and the first rows. */
import { useEffect, useState } from "preact/hooks";
import { call, getJson, Refusal, retried } from "../core/api.ts";
import { count, plural } from "../core/format.ts";
import { parseRow } from "../core/json.ts";
import type { JobDetail, Manifest } from "../core/types.ts";
import { RowsTable } from "../parts/rows_table.tsx";

const SHOWN_ROWS = 20;
const READ_BYTES = 1_000_000;

/** Return the first rows of JSON lines; the last line of a piece may be cut off. */
export function firstRows(text: string, isWhole: boolean): Record<string, unknown>[] {
  const lines = text.split("\n");
  if (!isWhole) lines.pop();
  return lines.filter((line) => line).slice(0, SHOWN_ROWS).map(parseRow);
}

async function readRows(path: string): Promise<Record<string, unknown>[]> {
  const reader = (await call(path)).body?.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (reader && text.length < READ_BYTES) {
    const { done, value } = await reader.read();
    if (done) return firstRows(text, true);
    text += value;
  }
  await reader?.cancel();
  return firstRows(text, false);
}

export function Result({ job }: { job: JobDetail }) {
  const [manifest, setManifest] = useState<Manifest | null>(null);
  const [rows, setRows] = useState<Record<string, unknown>[]>([]);
  const [refusal, setRefusal] = useState("");
  const links = job.result?.results;
  const format = job.result?.data_format;
  const onError = (error: unknown) => setRefusal(error instanceof Refusal && error.status === 403 ? error.message : "");
  useEffect(() => {
    if (links?.manifest) getJson<Manifest>(links.manifest).then(setManifest, onError);
    const output = links?.output;
    if (output && format === "jsonl") retried(() => readRows(output)).then(setRows, onError);
  }, [links?.manifest, links?.output]);
  if (job.rows === null) return null;
  return (
    <section class="card">
      <h2>Result</h2>
      <p>{plural(job.rows, "row")}, {plural(job.result?.fields ?? 0, "column")}{!links?.output && ". It went to the storage that the request named, or is no longer kept."}</p>
      {refusal && <p class="faint">{refusal}</p>}
      {!manifest && job.columns.length > 0 && <ul class="schema">{job.columns.map((column) => <li key={column.name}>{column.name} <span class="faint">{column.base_type}</span></li>)}</ul>}
      {manifest && <RowsTable fields={manifest.fields} rows={rows} />}
      {links?.output && format !== "jsonl" && <p class="faint">The page shows rows of JSON lines only; this result is {format}.</p>}
      {rows.length > 0 && rows.length < job.rows && <p class="faint">The first {rows.length} of {count(job.rows)} rows.</p>}
    </section>
  );
}
