/** Times in the viewer's zone, with UTC on hover, and a clock for what grows with time. */
import { signal } from "@preact/signals";
import { ago, clock, localTime, utcTime } from "../core/format.ts";

const now = signal(Date.now());
setInterval(() => document.hidden || (now.value = Date.now()), 1000);

export function When({ iso, relative }: { iso: string | null; relative?: boolean }) {
  if (!iso) return <>–</>;
  const text = relative ? ago(Date.parse(iso), now.value) : localTime(iso, new Date(now.value));
  return <time dateTime={iso} title={relative ? `${localTime(iso, new Date())} · ${utcTime(iso)}` : utcTime(iso)}>{text}</time>;
}

export function Elapsed({ since, limit }: { since: string; limit?: number | null }) {
  const passed = Math.max(0, Math.floor((now.value - Date.parse(since)) / 1000));
  return <span class="number">{clock(passed)}{limit ? ` of ${clock(limit)}` : ""}</span>;
}
