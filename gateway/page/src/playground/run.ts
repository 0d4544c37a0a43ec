/** A run of the playground is a job like any other: `/v1/execute`, then the stream, then the kept result. */
import { call, getJson, retried } from "../core/api.ts";
import { parseRow } from "../core/json.ts";
import type { JobDetail, Manifest } from "../core/types.ts";
import type { Setup } from "./bundle.ts";
import type { Row } from "./difference.ts";
import type { PlaygroundTable } from "./tables.ts";

/** Rows and bytes of a result that the page reads; more would not fit into a tab. */
export const MOST_ROWS = 100_000;
const MOST_CHARACTERS = 50_000_000;

export interface Outcome {
  job: JobDetail;
  manifest: Manifest | null;
  rows: Row[];
}

/** Submit a job and return its job_id. */
export async function submit(code: string, tables: readonly PlaygroundTable[], setup: Setup | null): Promise<string> {
  const form = new FormData();
  const urls = tables.flatMap(({ name, source }) => (source instanceof File ? [] : [{ name, ...source }]));
  const request = {
    request_id: `page-${randomId()}`,
    code,
    output_format: "jsonl",
    profile: true,
    table_mapping: Object.fromEntries(urls.map(({ name, url }) => [name, url])),
    data_format: Object.fromEntries(urls.map(({ name, format }) => [name, format])),
    ...(setup && { library: setup.library, timeout: setup.timeout }),
    ...(setup?.outputSchema ? { output_schema: setup.outputSchema } : {}),
  };
  form.set("request", new Blob([JSON.stringify(request)], { type: "application/json" }));
  for (const { name, source, manifest } of tables) {
    if (manifest) form.set(`manifest:${name}`, new File([JSON.stringify(manifest)], "manifest.json"));
    if (source instanceof File) form.set(`table:${name}`, source, source.name.replace(/\.json$/i, ".jsonl"));
  }
  const response = await call("/v1/execute", { method: "POST", body: form, headers: { Prefer: "respond-async" } }).catch(async (error: unknown) => {
    for (const { source } of tables) if (source instanceof File) await checkReadable(source);
    throw error;
  });
  return ((await response.json()) as { execution_id: string }).execution_id;
}

/** A browser does not send a file that was written since it was chosen, and reports that as a lost connection. */
async function checkReadable(file: File): Promise<void> {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Error(`${file.name} was changed, moved or removed since it was chosen: drop or choose it again.`);
  }
}

/** `crypto.randomUUID` is missing where the page comes by plain HTTP from another machine. */
function randomId(): string {
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Return what a finished job made, as much as the page shows. */
export async function outcomeOf(jobId: string): Promise<Outcome> {
  const job = await getJson<JobDetail>(`/v1/jobs/${jobId}`);
  const { manifest, output } = job.result?.results ?? {};
  if (!manifest || !output) return { job, manifest: null, rows: [] };
  return { job, manifest: await getJson<Manifest>(manifest), rows: await retried(() => readRows(output)) };
}

async function readRows(path: string): Promise<Row[]> {
  const reader = (await call(path)).body?.pipeThrough(new TextDecoderStream()).getReader();
  const rows: Row[] = [];
  let [rest, characters] = ["", 0];
  while (reader && rows.length < MOST_ROWS && characters < MOST_CHARACTERS) {
    const { done, value } = await reader.read();
    if (done) break;
    characters += value.length;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) rows.push(parseRow(line));
  }
  await reader?.cancel();
  return rows.slice(0, MOST_ROWS);
}
