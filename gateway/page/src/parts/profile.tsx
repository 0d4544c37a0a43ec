/** What the columns of a result contain, in the gateway's own figures. */
import { count } from "../core/format.ts";
import type { Profile } from "../core/types.ts";

const HEAD = ["Column", "Type", "Nulls", "Distinct", "Min", "25 %", "50 %", "75 %", "Max", "Distribution"];
const FIGURES = new Set(["Nulls", "Distinct", "25 %", "50 %", "75 %"]);

export function ProfileTable({ profile, rows }: { profile: Profile; rows: number }) {
  return (
    <>
      {profile.rows < rows && <p class="faint">Of the first {count(profile.rows)} of {count(rows)} rows.</p>}
      <div class="table profile" tabIndex={0} role="region" aria-label="Columns of the result">
        <table>
          <thead><tr>{HEAD.map((name) => <th key={name} scope="col" class={FIGURES.has(name) ? "number" : ""}>{name}</th>)}</tr></thead>
          <tbody>
            {profile.columns.map(({ name, base_type, nulls, distinct, smallest, largest, quartiles, histogram }) => (
              <tr key={name}>
                <th scope="row">{name}</th><td>{base_type}</td>
                <td class="number">{count(nulls)}{nulls > 0 && ` (${Math.round((100 * nulls) / profile.rows)} %)`}</td>
                <td class="number">{count(distinct)}</td><td class={quartiles ? "number" : ""}>{smallest}</td>
                {[0, 1, 2].map((at) => <td key={at} class="number">{quartiles?.[at]}</td>)}
                <td class={quartiles ? "number" : ""}>{largest}</td><td>{histogram && <Histogram counts={histogram} />}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function Histogram({ counts }: { counts: readonly number[] }) {
  const most = Math.max(1, ...counts);
  const text = `${counts.length} bins: ${counts.join(", ")}`;
  return <span class="histogram" role="img" aria-label={text} title={text}>{counts.map((each, at) => <span key={at} style={{ height: `${(100 * each) / most}%` }} />)}</span>;
}
