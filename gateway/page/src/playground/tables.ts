/** The tables of a run: files that were dropped, and URLs that the gateway fetches as it does for Metabase. */
import { messageOf } from "../core/api.ts";
import { arrayToLines } from "../core/json.ts";
import type { Manifest } from "../core/types.ts";

export interface PlaygroundTable {
  name: string;
  source: File | UrlSource;
  /** Names of the columns, where a text file tells them. */
  columns: string[];
  /** Metabase's description of the columns, for a table of a failed job. */
  manifest?: Manifest | null;
}

export interface UrlSource {
  url: string;
  format: string;
}

/** Each data format with the endings of its files. */
export type Formats = Record<string, string[]>;

/** A file with this ending holds an array or JSON lines, and is sent as JSON lines under another name. */
const JSON_ENDING = ".json";

/** The compression that browsers can unpack; the gateway takes plain files. */
export const GZIP_ENDING = ".gz";

export const HEAD_BYTES = 65_536;

/** Python's words that cannot name a parameter. */
const KEYWORDS = new Set("and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield".split(" "));

/** A file's name as a parameter of transform(): `Orders 2024.csv` is `orders_2024`, and `class.csv` is `class_`. */
export function tableName(fileName: string): string {
  const stem = fileName.replace(/\.[^.]*$/, "").normalize("NFKC").toLowerCase().replace(/[^\p{XID_Continue}]+/gu, "_").replace(/^_+|_+$/g, "");
  if (!stem) return "table";
  if (KEYWORDS.has(stem)) return `${stem}_`;
  return /^\p{XID_Start}/u.test(stem) ? stem : `table_${stem}`;
}

export function endingsOf(formats: Formats): string[] {
  return [...Object.values(formats).flat(), JSON_ENDING];
}

export function columnsOf(fileName: string, head: string): string[] {
  const line = head.split(/\r?\n/, 1)[0] ?? "";
  if (/\.csv$/i.test(fileName)) return [...line.matchAll(/(?:^|,)(?:\s*"((?:[^"]|"")*)"\s*|([^,]*))/g)].map(([, quoted, plain]) => (quoted?.replaceAll('""', '"') ?? plain ?? "").trim());
  try {
    return Object.keys(JSON.parse(line) as object);
  } catch {
    return [];
  }
}

export async function readTable(chosen: File, formats: Formats): Promise<PlaygroundTable> {
  const endings = endingsOf(formats);
  const isPacked = chosen.name.toLowerCase().endsWith(GZIP_ENDING);
  const name = isPacked ? chosen.name.slice(0, -GZIP_ENDING.length) : chosen.name;
  if (!endings.some((ending) => name.toLowerCase().endsWith(ending))) {
    const remedy = /\.(xlsx?|ods)$/i.test(name) ? "; save the sheet as CSV" : "";
    throw new Error(`${chosen.name}: expected a file that ends in ${endings.join(", ")}, also with ${GZIP_ENDING}${remedy}`);
  }
  const file = isPacked ? await unpack(chosen, name) : chosen;
  const head = await file.slice(0, HEAD_BYTES).text();
  if (file.name.toLowerCase().endsWith(JSON_ENDING) && head.trimStart().startsWith("[")) return fromArray(file);
  return { name: tableName(file.name), source: file, columns: columnsOf(file.name, head) };
}

async function unpack(file: File, name: string): Promise<File> {
  try {
    return new File([await new Response(file.stream().pipeThrough(new DecompressionStream("gzip"))).blob()], name);
  } catch {
    throw new Error(`${file.name}: the browser cannot unpack it: unpack it yourself, if it is a gzip file`);
  }
}

async function fromArray(file: File): Promise<PlaygroundTable> {
  const text = await file.text();
  let lines = "";
  try {
    lines = arrayToLines(text);
  } catch (error) {
    throw new Error(`${file.name}: ${messageOf(error)}`);
  }
  return { name: tableName(file.name), source: new File([lines], file.name), columns: columnsOf(file.name, lines) };
}

/** Return tables of different names: files of one name and two formats, or of two folders, may come together. */
export function numbered(tables: readonly PlaygroundTable[]): PlaygroundTable[] {
  const taken = new Set<string>();
  return tables.map((table) => {
    let name = table.name;
    for (let number = 2; taken.has(name); number += 1) name = `${table.name}_${number}`;
    taken.add(name);
    return { ...table, name };
  });
}

/** Return the name and the format that the path of a URL suggests, as far as it does; its query may be a signature. */
export function guessOf(text: string, formats: Formats): { name: string; format: string } {
  const file = ((URL.canParse(text) && new URL(text).pathname.split("/").at(-1)) || "").replace(/\.(gz|zst)$/i, "");
  const ending = /\.[^.]+$/.exec(file)?.[0].toLowerCase() ?? "";
  const format = ending === JSON_ENDING ? "jsonl" : Object.keys(formats).find((each) => formats[each]?.includes(ending));
  return { name: file ? tableName(file.replace(/%[0-9a-f]{2}/gi, " ")) : "", format: format ?? "" };
}

/** Orders of a small shop: the same ones each time. */
export function sampleTable(): File {
  const rows = ["order_id,day,country,product,quantity,price,discount"];
  let seed = 7;
  const next = (most: number): number => (seed = (seed * 48_271) % 2_147_483_647) % most;
  for (let id = 1; id <= 500; id += 1) {
    const day = new Date(Date.UTC(2024, 0, 1 + next(90))).toISOString().slice(0, 10);
    const [country, product] = [["DE", "FR", "NL", "PL"][next(4)], ["lamp", "chair", "desk"][next(3)]];
    rows.push(`${id},${day},${country},${product},${1 + next(5)},${(5 + next(9500) / 100).toFixed(2)},${next(3) ? "" : "0.1"}`);
  }
  return new File([rows.join("\n") + "\n"], `${SAMPLE_NAME}.csv`, { type: "text/csv" });
}

/** The script that stands in the editor until somebody changes it; it takes the tables that are there. */
export function firstScript(tables: readonly PlaygroundTable[]): string {
  const [first] = tables;
  if (!first || tables.some((table) => table.name === SAMPLE_NAME)) return SAMPLE_SCRIPT;
  return `def transform(${tables.map((table) => table.name).join(", ")}):\n    print(f"{len(${first.name})} rows")\n    return ${first.name}\n`;
}

const SAMPLE_NAME = "orders";

const SAMPLE_SCRIPT = `"""Revenue by day and country."""


def transform(orders):
    print(f"{len(orders)} orders")
    orders["revenue"] = orders.quantity * orders.price * (1 - orders.discount.fillna(0))
    return orders.groupby(["day", "country"], as_index=False).revenue.sum()
`;
