/** A failed job in the playground: its script, modules and tables, as far as the gateway kept them. */
import { call, getJson, retried } from "../core/api.ts";
import { bytes } from "../core/format.ts";
import type { Bundle, BundledTable } from "../core/types.ts";
import { columnsOf, HEAD_BYTES, type PlaygroundTable } from "./tables.ts";

/** What a run takes of the failed job besides script and tables. */
export interface Setup {
  jobId: string;
  library: Record<string, string>;
  outputSchema: unknown;
  timeout: number;
  /** Tables that the run needs and the gateway does not have. */
  lost: { name: string; reason: string }[];
}

export interface Again {
  code: string;
  tables: PlaygroundTable[];
  setup: Setup;
}

export async function loadBundle(jobId: string): Promise<Again> {
  const path = `/v1/jobs/${encodeURIComponent(jobId)}/bundle`;
  const bundle = await getJson<Bundle>(path);
  const whole = bundle.tables.filter((table) => table.kept === "whole");
  const tables = await Promise.all(whole.map((table) => loadTable(path, table)));
  const lost = bundle.tables.filter((table) => table.used && table.kept !== "whole").map(lostTable);
  const { code, library, output_schema, timeout } = bundle;
  return { code, tables, setup: { jobId, library, outputSchema: output_schema, timeout, lost } };
}

async function loadTable(path: string, table: BundledTable): Promise<PlaygroundTable> {
  const data = await retried(async () => (await call(`${path}/${encodeURIComponent(table.name)}`)).blob());
  const source = new File([data], `${table.name}.${table.data_format}`);
  const described = table.manifest?.fields ?? table.columns;
  const columns = described.length > 0 ? described.map((field) => field.name) : columnsOf(source.name, await source.slice(0, HEAD_BYTES).text());
  return { name: table.name, source, columns, manifest: table.manifest };
}

function lostTable(table: BundledTable): { name: string; reason: string } {
  const reason = table.bytes === null ? "it was not fetched" : `it has ${bytes(table.bytes)}`;
  const place = table.table_id === null ? "" : `, table ${table.table_id} of Metabase`;
  return { name: table.name, reason: reason + place };
}
