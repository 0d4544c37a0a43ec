/** How two results differ. */
import type { ManifestField } from "../core/types.ts";

export type Row = Record<string, unknown>;

export interface Difference {
  columnsAdded: string[];
  columnsRemoved: string[];
  typesChanged: string[];
  rowsAdded: number;
  rowsRemoved: number;
  rowsChanged: number;
  /** The columns that tell which row is which; without them a changed row is one removed and one added. */
  key: string[];
}

interface Table {
  fields: readonly ManifestField[];
  rows: readonly Row[];
}

/** Rows are compared in the columns that both results have. */
export function differenceOf(before: Table, after: Table): Difference {
  const [old, now] = [typesOf(before), typesOf(after)];
  const common = [...now.keys()].filter((name) => old.has(name));
  const key = keyOf(common, before.rows, after.rows);
  return {
    columnsAdded: [...now.keys()].filter((name) => !old.has(name)),
    columnsRemoved: [...old.keys()].filter((name) => !now.has(name)),
    typesChanged: common.filter((name) => old.get(name) !== now.get(name)),
    key,
    ...(key.length > 0 ? byKey(key, common, before.rows, after.rows) : asWholes(common, before.rows, after.rows)),
  };
}

/** Return the fewest columns from the left that name each row of both results; none if it takes all of them. */
function keyOf(common: string[], before: readonly Row[], after: readonly Row[]): string[] {
  const isKey = (length: number): boolean => {
    const key = common.slice(0, length);
    return [before, after].every((rows) => new Set(rows.map((row) => valuesOf(row, key))).size === rows.length);
  };
  // rows that differ in some columns differ in more of them: halving looks at large results a few times, not once a column
  let [least, most] = [1, common.length - 1];
  if (most < least || !isKey(most)) return [];
  while (least < most) {
    const middle = Math.floor((least + most) / 2);
    if (isKey(middle)) most = middle;
    else least = middle + 1;
  }
  return common.slice(0, least);
}

function byKey(key: string[], common: string[], before: readonly Row[], after: readonly Row[]) {
  const old = new Map(before.map((row) => [valuesOf(row, key), valuesOf(row, common)]));
  const found = after.map((row) => [old.get(valuesOf(row, key)), valuesOf(row, common)] as const);
  const kept = found.filter(([then]) => then !== undefined);
  return { rowsAdded: after.length - kept.length, rowsRemoved: before.length - kept.length, rowsChanged: kept.filter(([then, now]) => then !== now).length };
}

function asWholes(common: string[], before: readonly Row[], after: readonly Row[]) {
  const counts = new Map<string, number>();
  for (const row of before) counts.set(valuesOf(row, common), (counts.get(valuesOf(row, common)) ?? 0) + 1);
  let rowsAdded = 0;
  for (const row of after) {
    const left = counts.get(valuesOf(row, common)) ?? 0;
    if (left > 0) counts.set(valuesOf(row, common), left - 1);
    else rowsAdded += 1;
  }
  return { rowsAdded, rowsRemoved: [...counts.values()].reduce((sum, count) => sum + count, 0), rowsChanged: 0 };
}

function valuesOf(row: Row, names: string[]): string {
  return JSON.stringify(names.map((name) => row[name] ?? null));
}

function typesOf(table: Table): Map<string, string> {
  return new Map(table.fields.map((field) => [field.name, field.base_type]));
}
