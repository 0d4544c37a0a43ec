/** The tables that a job read, with their columns, and the memory that it took. */
import { useEffect, useState } from "preact/hooks";
import { getJson } from "../core/api.ts";
import { bytes, memory, plural } from "../core/format.ts";
import type { InputTable, JobDetail, Status } from "../core/types.ts";
import { Progress } from "../parts/job_parts.tsx";

export function Inputs({ job }: { job: JobDetail }) {
  const [limit, setLimit] = useState<number | null>(null);
  useEffect(() => {
    getJson<Status>("/v1/status").then((status) => setLimit(status.limits.memory_bytes ?? null), () => undefined);
  }, []);
  const peak = job.peak_memory_bytes;
  return (
    <section class="card" aria-label="Data and memory">
      <h2>Data and memory</h2>
      <dl class="facts">
        <div><dt>Tables</dt><dd>{job.tables.join(", ") || "none"}</dd></div>
        <div><dt>Read</dt><dd>{bytes(job.bytes_in)}</dd></div>
        <div><dt>Written</dt><dd>{bytes(job.bytes_out)}</dd></div>
      </dl>
      {job.inputs.map((table) => <Table key={table.name} table={table} />)}
      {peak !== null && limit !== null && (
        <p><label>Peak memory {memory(peak)} of {memory(limit)}<meter min={0} max={limit} high={0.8 * limit} value={peak} /></label></p>
      )}
      {job.state !== "finished" && <Progress progress={job.progress} />}
    </section>
  );
}

function Table({ table: { name, rows, bytes: size, columns } }: { table: InputTable }) {
  return (
    <details>
      <summary><b>{name}</b>: {plural(rows, "row")}, {plural(columns.length, "column")}, {bytes(size)}</summary>
      <ul class="schema">{columns.map((column) => <li key={column.name}>{column.name} <span class="faint">{column.base_type}</span></li>)}</ul>
    </details>
  );
}
