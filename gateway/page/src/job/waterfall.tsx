/** The stages of a job as bars on one axis of time, as the gateway lays them out. */
import { seconds } from "../core/format.ts";
import type { StageSpan } from "../core/types.ts";

/** A bar that is shorter could not be seen. */
const LEAST_PERCENT = 0.3;

export function Waterfall({ spans }: { spans: readonly StageSpan[] }) {
  const start = Math.min(...spans.map((span) => span.begin));
  const total = Math.max(1e-6, ...spans.map((span) => span.end - start));
  return (
    <ol class="waterfall">
      {spans.map(({ name, begin, end, parent }) => (
        <li key={name} class={parent ? "inner" : ""}>
          <span>{name}</span>
          <span class="track"><span class="bar" style={{ marginLeft: `${Math.min(100 - LEAST_PERCENT, (100 * (begin - start)) / total)}%`, width: `${Math.max(LEAST_PERCENT, (100 * (end - begin)) / total)}%` }} /></span>
          <span class="number">{seconds(end - begin)}</span>
        </li>
      ))}
    </ol>
  );
}
