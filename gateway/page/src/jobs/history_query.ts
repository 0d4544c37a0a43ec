const PAGE_JOBS = 50;
/** The gateway answers with no more at once. */
const MOST_JOBS = 500;

/** Return the query of `/v1/jobs` for the filters in the URL, which has a period where the gateway takes a time. It asks for whole pages, so that `shown` jobs stay in sight beside a new one. */
export function historyQuery(query: URLSearchParams, nowMs: number, shown = 0): URLSearchParams {
  const sent = new URLSearchParams({ limit: String(Math.min(MOST_JOBS, PAGE_JOBS * Math.max(1, Math.ceil(shown / PAGE_JOBS)))) });
  for (const [name, value] of query) {
    if (value && name !== "hours") sent.set(name, value);
  }
  const hours = Number(query.get("hours"));
  if (hours > 0) sent.set("since", String(Math.floor(nowMs / 1000 - 3600 * hours)));
  return sent;
}
