/** The page's computations, without a browser. */
import { bytes, clock, doneOf, memory, seconds, shownLine } from "../../gateway/page/src/core/format.ts";
import { arrayToLines, parseRow } from "../../gateway/page/src/core/json.ts";
import { failures, jobName, lineOf, tracebackOf } from "../../gateway/page/src/core/names.ts";
import { EventParser } from "../../gateway/page/src/core/sse.ts";
import { addEnds, applyEvent, ends, followed, live, queued, recent } from "../../gateway/page/src/core/store.ts";
import { firstRows } from "../../gateway/page/src/job/result.tsx";
import { historyQuery } from "../../gateway/page/src/jobs/history_query.ts";
import { commonPackages } from "../../gateway/page/src/now/members.tsx";
import { expectedWait } from "../../gateway/page/src/now/expected_wait.ts";
import { differenceOf } from "../../gateway/page/src/playground/difference.ts";
import { positionsOf } from "../../gateway/page/src/playground/plot.tsx";
import { ratesOf } from "../../gateway/page/src/system/figures.tsx";
import { columnsOf, guessOf, numbered, tableName } from "../../gateway/page/src/playground/tables.ts";
import { selectLines } from "../../gateway/page/src/parts/log_view.tsx";

const line = (stream: "stdout" | "stderr", message: string) => ({ timestamp: "2026-01-01T00:00:00.000Z", stream, message });
const job = (job_id: string, state: string, more = {}) => ({ job_id, state, created_at: "2026-01-01T00:00:00Z", code: null, ...more });

test("events are found however the text is cut, and comments are not events", () => {
  const sent = ':\n\nevent: log\nid: a-1-0\ndata: {"x": "é\\n"}\n\n:\n\nevent: changes\nid: a-2-0\ndata: {}\n\n';
  for (const size of [1, 3, 7, 1000]) {
    const parser = new EventParser();
    const events = [];
    for (let at = 0; at < sent.length; at += size) events.push(...parser.push(sent.slice(at, at + size)));
    expect(events.map((event) => [event.name, event.id])).toEqual([["log", "a-1-0"], ["changes", "a-2-0"]]);
    expect(events[0]?.data).toEqual({ x: "é\n" });
  }
});

test("jobs enter, change and leave by events, and a snapshot replaces all", () => {
  applyEvent("snapshot", { jobs: [job("a", "running"), job("b", "queued")] });
  applyEvent("changes", { jobs: [job("a", "finished", { code: "ok", finished_at: "2026-01-01T00:00:01Z" })] });
  expect([...live.value.keys()]).toEqual(["b"]);
  expect(queued.value.map((each) => each.job_id)).toEqual(["b"]);
  expect(recent.value[0]?.job_id).toBe("a");
  applyEvent("snapshot", { jobs: [] });
  expect(live.value.size).toBe(0);
});

test("the progress of a script is told with its total, if it has one", () => {
  expect(doneOf(1500, 3000)).toBe("1,500 of 3,000 (50 %)");
  expect(doneOf(0, 0)).toBe("0");
  expect(doneOf(2.5, null)).toBe("2.5");
});

test("lines are appended, and lines from the beginning replace what was shown", () => {
  applyEvent("log", { job_id: "a", offset: 0, next_offset: 1, events: [line("stdout", "one")] });
  applyEvent("log", { job_id: "a", offset: 1, next_offset: 2, events: [line("stdout", "two")] });
  expect(followed.value?.lines.map((each) => each.message)).toEqual(["one", "two"]);
  applyEvent("log", { job_id: "a", offset: 0, next_offset: 1, events: [line("stdout", "again")] });
  expect(followed.value?.lines.map((each) => each.message)).toEqual(["again"]);
});

test("a stage of microseconds is shown in microseconds", () => {
  expect([0, 0.000003, 0.0000999, 0.00054, 0.0199].map(seconds)).toEqual(["0 s", "3 µs", "0.10 ms", "0.54 ms", "19.9 ms"]);
});

test("a job is named by its label, else by its tables, else by its id", () => {
  expect(jobName({ label: "Daily", tables: ["a"], request_id: 7 })).toBe("Daily");
  expect(jobName({ label: null, tables: ["a", "b"], request_id: 7 })).toBe("a, b");
  expect(jobName({ label: null, tables: [], request_id: 7 })).toBe("request 7");
});

test("the traceback is the last one, without what was printed around it", () => {
  const lines = ["noise", "Traceback (most recent call last):", "  old", "ValueError: old", "ERROR: Transform function failed: x", "Traceback (most recent call last):", '  File "script.py", line 7, in transform', "    return f(0)", "ZeroDivisionError: x", "The kernel of this job is held"].map((text) => line("stderr", text));
  expect(tracebackOf(lines)).toEqual(["Traceback (most recent call last):", '  File "script.py", line 7, in transform', "    return f(0)", "ZeroDivisionError: x"]);
  expect(tracebackOf([line("stdout", "Traceback (most recent call last):")])).toEqual([]);
  expect(lineOf("KeyError: 'a' in f() (script.py, line 12)")).toBe(12);
});

test("filters of the URL become the gateway's query", () => {
  const sent = historyQuery(new URLSearchParams("code=failed&hours=1&label="), 7_200_000);
  expect(sent.toString()).toBe("limit=50&code=failed&since=3600");
});

test("the log is filtered by stream and text", () => {
  const lines = [line("stdout", "Alpha"), line("stderr", "alpha"), line("stdout", "beta")];
  expect(selectLines(lines, "stdout", "ALPHA").map((each) => each.message)).toEqual(["Alpha"]);
  expect(selectLines(lines, "all", "")).toBe(lines);
});

test("rows of a result are read up to a line that is cut off", () => {
  expect(firstRows('{"a":1}\n{"a":2}\n{"a', false)).toEqual([{ a: 1 }, { a: 2 }]);
  expect(firstRows('{"a":1}', true)).toEqual([{ a: 1 }]);
});

test("a number keeps the digits that JavaScript would round", () => {
  const digits = (text: string) => String(parseRow(`{"n":${text}}`).n);
  const long = ["9007199254740993", "-9007199254740993", "1180591620717411303424", "0.12345678901234567890", "12345678901234567.25", "9007199254740993.5"];
  expect(long.map(digits)).toEqual(long);
  expect(["9007199254740991", "0.1", "1e22", "172.85999999999999", "0.30000000000000004", "1000000000000000.0"].map((text) => parseRow(`{"n":${text}}`).n)).toEqual([9007199254740991, 0.1, 1e22, 172.85999999999999, 0.30000000000000004, 1e15]);
  const [before, after] = ["9007199254740993", "9007199254740992"].map((n) => ({ fields: [{ name: "n", base_type: "BigInteger" }], rows: [parseRow(`{"n":${n}}`)] }));
  expect(differenceOf(before!, after!)).toMatchObject({ rowsAdded: 1, rowsRemoved: 1 });
});

test("a JSON array becomes JSON lines, character by character", () => {
  const text = '\ufeff [ {"n": 9007199254740993, "x": 1.0, "t": "a, ]}\\"\\n"},\r\n  {"o": {"a": [1, [2]]},\n   "t": ""}\n]\n';
  expect(arrayToLines(text)).toBe('{"n": 9007199254740993, "x": 1.0, "t": "a, ]}\\"\\n"}\n{"o": {"a": [1, [2]]},    "t": ""}\n');
  for (const open of [`[{"a": "${"x".repeat(60)}`, '[{"a": 1},', '[{"a": 1}', "["]) expect(() => arrayToLines(open)).toThrow("has no end"); // a file that is cut off
  expect(["[]", "[ ]", "[1,2]", '[{"a":1}] x'].map(arrayToLines)).toEqual(["", "", "1\n2\n", '{"a":1}\nx\n']);
});

test("quantities read well", () => {
  expect([0, 999, 1000, 122_000_000, null].map(bytes)).toEqual(["0 B", "999 B", "1.00 kB", "122 MB", "–"]);
  expect([1 << 30, 300 << 20, 0].map(memory)).toEqual(["1.00 GiB", "300 MiB", "0 B"]);
  expect([0.0008, 0.0683, 0.2, 12.34, 75, 7260].map(seconds)).toEqual(["0.80 ms", "68.3 ms", "0.20 s", "12.3 s", "1 min 15 s", "2 h 1 min"]);
  expect([6, 900].map(clock)).toEqual(["6 s", "15 min"]);
  expect([1, 2, 3].map((position) => expectedWait(position, 2, 10))).toEqual([10, 10, 20]);
});

const member = (name: string, packages: string, slots = 1) => ({ name, packages, slots, version: "1", tier: "B", busy: 0, healthy: true, waiting: 0, accepts: true });

test("packages differ from those that most members with slots have", () => {
  expect(commonPackages([member("a", "x"), member("b", "y"), member("c", "y"), member("d", "x", 0)])).toBe("y");
  expect(commonPackages([])).toBe("");
});

test("results differ by columns, types and rows, each row as often as it occurs", () => {
  const before = { fields: [{ name: "a", base_type: "Integer" }, { name: "b", base_type: "Text" }], rows: [{ a: 1 }, { a: 1 }, { a: 2 }] };
  const after = { fields: [{ name: "a", base_type: "Float" }, { name: "c", base_type: "Text" }], rows: [{ a: 1 }, { a: 3 }] };
  expect(differenceOf(before, after)).toEqual({ columnsAdded: ["c"], columnsRemoved: ["b"], typesChanged: ["a"], rowsAdded: 1, rowsRemoved: 2, rowsChanged: 0, key: [] });
});

test("a row that the first columns name is changed, and not removed and added", () => {
  const fields = ["day", "shop", "sold"].map((name) => ({ name, base_type: "Text" }));
  const before = { fields, rows: [{ day: 1, shop: "a", sold: 1 }, { day: 1, shop: "b", sold: 2 }, { day: 2, shop: "a", sold: 3 }] };
  const after = { fields, rows: [{ day: 2, shop: "a", sold: 3 }, { day: 1, shop: "b", sold: 9 }, { day: 3, shop: "a", sold: 3 }] };
  expect(differenceOf(before, after)).toMatchObject({ rowsAdded: 1, rowsRemoved: 1, rowsChanged: 1, key: ["day", "shop"] });
});

test.each([1, 2, 3, 4, 5])("the key of rows that differ first in column %i ends there", (length) => {
  const fields = [..."abcdef"].map((name) => ({ name, base_type: "Integer" }));
  const rows = [1, 2].map((value) => Object.fromEntries(fields.map(({ name }, at) => [name, at < length - 1 ? 0 : value])));
  expect(differenceOf({ fields, rows }, { fields, rows }).key).toEqual([..."abcdef"].slice(0, length));
});

test("a job that somebody cancelled is no failure", () => {
  const codes = ["ok", "cancelled", "timeout"];
  addEnds(codes.map((code) => job(`end-${code}`, "finished", { code }) as never));
  expect(ends.value.filter((end) => end.id.startsWith("end-")).map((end) => end.failed)).toEqual([false, false, true]);
  expect(failures({ failed: 5, failures_by_code: { cancelled: 2, timeout: 3 } })).toBe(3);
});

test("jobs are counted by the minute of their end", () => {
  const end = (id: string, secondsAgo: number, seconds: number, failed = false) => ({ id, at: 10_000_000 - 1000 * secondsAgo, seconds, failed });
  const { minutes, jobs, median, slowest } = ratesOf([end("a", 1, 4), end("b", 59, 1, true), end("c", 61, 2), end("d", 3601, 9)], 10_000_000);
  expect(minutes.slice(-2)).toEqual([{ jobs: 1, failed: 0 }, { jobs: 2, failed: 1 }]);
  expect([jobs, median, slowest]).toEqual([3, 2, 4]);
  expect(ratesOf([], 0)).toMatchObject({ jobs: 0, median: null });
});

const FORMATS = { jsonl: [".jsonl", ".ndjson"], csv: [".csv"], parquet: [".parquet"] };

test("the path of a URL suggests name and format, whatever its signature", () => {
  expect(guessOf("https://s3.test/b/Daily%20Orders.csv?X-Amz-Signature=a/b.parquet", FORMATS)).toEqual({ name: "daily_orders", format: "csv" });
  expect(guessOf("https://s3.test/orders.jsonl.gz?X=1", FORMATS)).toEqual({ name: "orders", format: "jsonl" });
  expect(["https://s3.test/x.json", "http://s3.test:9000/b/key", "https://s3.test", "typing"].map((url) => guessOf(url, FORMATS))).toEqual([
    { name: "x", format: "jsonl" }, { name: "key", format: "" }, { name: "", format: "" }, { name: "", format: "" },
  ]);
});

test("a file becomes a parameter, and its first line tells the columns", () => {
  expect(["Orders 2024.csv", "2024.jsonl", "a-b.parquet"].map(tableName)).toEqual(["orders_2024", "table_2024", "a_b"]);
  expect(["Umsätze.csv", "заказы.csv", "данные 2.csv", "class.csv", "!.csv"].map(tableName)).toEqual(["umsätze", "заказы", "данные_2", "class_", "table"]);
  expect(columnsOf("x.csv", 'a,"b"\r\n1,2')).toEqual(["a", "b"]);
  expect(columnsOf("x.jsonl", '{"a": 1, "b": 2}\n')).toEqual(["a", "b"]);
  expect(columnsOf("x.parquet", "PAR1")).toEqual([]);
});

test("a day of a result is plotted at that day, wherever the viewer is", () => {
  vi.stubEnv("TZ", "America/New_York");
  const values = [{ d: "2024-01-01" }, { d: "2024-01-01T12:00:00" }, { d: "2024-01-01T12:00:00Z" }, { d: null }];
  const { positions } = positionsOf({ name: "d", base_type: "Date" }, values);
  expect(positions).toEqual(["2024-01-01T05:00:00Z", "2024-01-01T17:00:00Z", "2024-01-01T12:00:00Z"].map((text) => Date.parse(text) / 1000).concat([null as never]));
  vi.unstubAllEnvs();
});

test("a line is shown as a terminal leaves it, and found by that", () => {
  expect(shownLine("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07")).toBe("red link");
  expect(shownLine("\r 1 %\r 2 %\r100 %\r")).toBe("100 %");
  expect(shownLine("as it is")).toBe("as it is");
  expect(selectLines([line("stdout", "a \x1b[1mbold\x1b[0m word")], "all", "bold word")).toHaveLength(1);
});

test("columns of a CSV file are named as its reader names them", () => {
  expect(columnsOf("a.csv", '"a,b","say ""hi""",,plain ,"last"\n1,2,3,4,5')).toEqual(["a,b", 'say "hi"', "", "plain", "last"]);
});

test("tables that come together have different names", () => {
  const tables = ["a", "b", "a", "a"].map((name) => ({ name, source: { url: "http://x", format: "csv" }, columns: [] }));
  expect(numbered(tables).map((table) => table.name)).toEqual(["a", "b", "a_2", "a_3"]);
});
