/** Numbers and times as people read them. */

const MOST_NAMES = 20;

const UNITS = ["B", "kB", "MB", "GB", "TB"];
const MEMORY_UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count: number | null | undefined): string {
  return quantity(count, 1000, UNITS);
}

/** Limits of memory are set in powers of 1024, and so are the messages about them. */
export function memory(count: number | null | undefined): string {
  return quantity(count, 1024, MEMORY_UNITS);
}

function quantity(count: number | null | undefined, step: number, units: string[]): string {
  if (count === null || count === undefined) return "–";
  let [value, unit] = [count, 0];
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / step, unit + 1];
  return `${unit === 0 ? value : value.toPrecision(3)} ${units[unit]}`;
}

export function count(number: number | null | undefined): string {
  return number === null || number === undefined ? "–" : number.toLocaleString("en-US");
}

export function doneOf(done: number, total: number | null): string {
  return total ? `${count(done)} of ${count(total)} (${Math.round((100 * done) / total)} %)` : count(done);
}

export function plural(number: number, word: string): string {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** Names in one line: a wide table has more of them than anybody reads. */
export function names(all: readonly string[]): string {
  const rest = all.length - MOST_NAMES;
  return all.slice(0, MOST_NAMES).join(", ") + (rest > 0 ? ` and ${count(rest)} more` : "");
}

export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (value < 0.0000995) return `${Math.round(1e6 * value)} µs`;
  if (value < 0.0995) return `${(1000 * value).toPrecision(value < 0.00995 ? 2 : 3).replace(/\.0+$/, "")} ms`;
  if (value < 9.995) return `${value.toFixed(2)} s`;
  if (value < 59.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  const [minutes, rest] = [Math.floor(whole / 60), whole % 60];
  if (minutes < 60) return `${minutes} min ${rest} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A line as a terminal leaves it: without colours, and of what a progress bar wrote over itself only the last state. */
export function shownLine(text: string): string {
  if (!/[\x1b\r]/.test(text)) return text;
  const plain = text.replace(/\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])/g, "");
  return plain.replace(/\r+$/, "").replace(/^.*\r/s, "");
}

/** A time that grows, in whole seconds. */
export function clock(value: number): string {
  return value < 60 ? `${Math.floor(value)} s` : seconds(value).replace(/ 0 (s|min)$/, "");
}

export function ago(then: number, now: number): string {
  const passed = Math.max(0, (now - then) / 1000);
  if (passed < 10) return "just now";
  if (passed < 60) return `${Math.floor(passed / 10) * 10} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86_400) return `${Math.floor(passed / 3600)} h ago`;
  return `${Math.floor(passed / 86_400)} d ago`;
}

/** The date and time in the viewer's zone; the date is left out for today. */
export function localTime(iso: string, now: Date): string {
  const moment = new Date(iso);
  const time = moment.toLocaleTimeString("en-GB");
  if (moment.toDateString() === now.toDateString()) return time;
  const year = moment.getFullYear() === now.getFullYear() ? {} : ({ year: "numeric" } as const);
  return `${moment.toLocaleDateString("en-GB", { day: "numeric", month: "short", ...year })}, ${time}`;
}

export function utcTime(iso: string): string {
  return `${new Date(iso).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}
