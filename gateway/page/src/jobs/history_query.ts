const PAGE_JOBS = 50;

/** Return the query of `/v1/jobs` for the filters in the URL, which has a period where the gateway takes a time. */
export function historyQuery(query: URLSearchParams, nowMs: number): URLSearchParams {
  const sent = new URLSearchParams({ limit: String(PAGE_JOBS) });
  for (const [name, value] of query) {
    if (value && name !== "hours") sent.set(name, value);
  }
  const hours = Number(query.get("hours"));
  if (hours > 0) sent.set("since", String(Math.floor(nowMs / 1000 - 3600 * hours)));
  return sent;
}
