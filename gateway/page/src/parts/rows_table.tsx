import { LongNumber } from "../core/json.ts";
import type { ManifestField } from "../core/types.ts";

export const NUMBERS = new Set(["Integer", "BigInteger", "Float", "Decimal", "Number"]);

export function RowsTable({ fields, rows }: { fields: readonly ManifestField[]; rows: readonly Record<string, unknown>[] }) {
  return (
    <div class="table rows" tabIndex={0} role="region" aria-label="First rows of the result">
      <table>
        <thead><tr>{fields.map((field) => <th key={field.name} scope="col" class={NUMBERS.has(field.base_type) ? "number" : ""}>{field.name}<span class="faint type">{field.base_type}</span></th>)}</tr></thead>
        <tbody>{rows.map((row, at) => <tr key={at}>{fields.map(({ name, base_type }) => <Cell key={name} value={row[name]} type={base_type} />)}</tr>)}</tbody>
      </table>
    </div>
  );
}

function Cell({ value, type }: { value: unknown; type: string }) {
  if (value === null || value === undefined) return <td class={NUMBERS.has(type) ? "faint number" : "faint"}>null</td>;
  if (typeof value === "number" || value instanceof LongNumber) return <td class="number">{String(value)}</td>;
  return <td class={/^(Date|Time)/.test(type) ? "time" : ""}>{typeof value === "string" ? value : JSON.stringify(value)}</td>;
}
