/** The profile of a job's result, and what it displayed: images, in which scripts of an SVG do not run, and tables as text, never HTML of the job. */
import { useEffect, useState } from "preact/hooks";
import { getJson } from "../core/api.ts";
import type { Profile } from "../core/types.ts";
import { ProfileTable } from "./profile.tsx";

interface DisplayedImage {
  type: "image";
  media_type: string;
  data: string;
  text: string;
}

interface DisplayedTable {
  type: "table";
  header: string[][];
  rows: string[][];
  index_columns: number;
}

type Display = DisplayedImage | DisplayedTable | Profile;

export function Displays({ jobId, rows }: { jobId: string; rows: number }) {
  const [displays, setDisplays] = useState<Display[]>([]);
  useEffect(() => {
    getJson<{ displays: Display[] }>(`/v1/jobs/${encodeURIComponent(jobId)}/displays`).then((found) => setDisplays(found.displays), () => undefined);
  }, [jobId]);
  const profile = displays.find((each) => each.type === "profile");
  const figures = displays.filter((each) => each.type !== "profile");
  return (
    <>
      {profile && <section class="card" aria-label="Profile"><h2>Columns that Metabase creates</h2><ProfileTable profile={profile} rows={rows} /></section>}
      {figures.length > 0 && <Figures figures={figures} />}
    </>
  );
}

function Figures({ figures }: { figures: readonly (DisplayedImage | DisplayedTable)[] }) {
  return (
    <section class="card" aria-label="Figures">
      <h2>Figures</h2>
      {figures.map((each, at) =>
        each.type === "image" ? (
          <img key={at} class="figure" src={`data:${each.media_type};base64,${each.data}`} alt={each.text} />
        ) : (
          <Cells key={at} table={each} name={`Displayed table ${at + 1}`} />
        ),
      )}
    </section>
  );
}

function Cells({ table: { header, rows, index_columns }, name }: { table: DisplayedTable; name: string }) {
  return (
    <div class="table rows" tabIndex={0} role="region" aria-label={name}>
      <table>
        <thead>{header.map((row, at) => <tr key={at}>{row.map((cell, column) => (cell ? <th key={column} scope="col">{cell}</th> : <td key={column} />))}</tr>)}</thead>
        <tbody>
          {rows.map((row, at) => <tr key={at}>{row.map((cell, column) => (column < index_columns ? <th key={column} scope="row">{cell}</th> : <td key={column}>{cell}</td>))}</tr>)}
        </tbody>
      </table>
    </div>
  );
}
