/** What a run made: first rows, a plot, and how it differs from the run before. */
import { count, names, plural, seconds } from "../core/format.ts";
import { jobLink } from "../core/router.ts";
import { Badge } from "../parts/job_parts.tsx";
import { RowsTable } from "../parts/rows_table.tsx";
import { Plot } from "./plot.tsx";
import { differenceOf, type Difference } from "./difference.ts";
import type { Outcome } from "./run.ts";

const SHOWN_ROWS = 50;

export function OutcomeView({ outcome, before }: { outcome: Outcome; before: Outcome | null }) {
  const { job, manifest, rows } = outcome;
  return (
    <section class="card" aria-label="Result">
      <div class="row"><h2>Result</h2><Badge job={job} /><span class="faint">{seconds(job.duration)}</span><a href={jobLink(job.job_id)}>Job</a></div>
      {job.error && <p class="bad-text">{job.error}</p>}
      {manifest && (
        <>
          <p>{plural(job.rows ?? 0, "row")}, {plural(manifest.fields.length, "column")}{rows.length < (job.rows ?? 0) && `; the comparison is of the first ${count(rows.length)} rows`}</p>
          <RowsTable fields={manifest.fields} rows={rows.slice(0, SHOWN_ROWS)} />
          <h3>Plot</h3>
          <Plot key={job.job_id} fields={manifest.fields} rows={rows} />
          {before?.manifest && <Compared difference={differenceOf({ fields: before.manifest.fields, rows: before.rows }, { fields: manifest.fields, rows })} />}
        </>
      )}
    </section>
  );
}

function Compared({ difference }: { difference: Difference }) {
  const { columnsAdded, columnsRemoved, typesChanged, rowsAdded, rowsRemoved, rowsChanged, key } = difference;
  const parts = [
    columnsAdded.length > 0 && `columns added: ${names(columnsAdded)}`,
    columnsRemoved.length > 0 && `columns removed: ${names(columnsRemoved)}`,
    typesChanged.length > 0 && `types changed: ${names(typesChanged)}`,
    rowsAdded > 0 && `${plural(rowsAdded, "row")} added`,
    rowsRemoved > 0 && `${plural(rowsRemoved, "row")} removed`,
    rowsChanged > 0 && `${plural(rowsChanged, "row")} changed (key: ${key.join(", ")})`,
  ].filter((part) => part);
  return <p class="notice" role="status"><b>Compared with the run before:</b> {parts.join("; ") || "no difference"}</p>;
}
