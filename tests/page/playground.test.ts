/** The playground in a real browser: from a dropped file to a result and a plot, through a failure and its repair. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { gzipSync } from "node:zlib";
import type { Browser, Page, Route } from "playwright-core";
import { faults, launch, openTab, violations } from "./browser.ts";
import { Gateway, PYTHON, ROOT, TOKEN } from "./gateway.ts";

const CSV = "day,visits\n2024-01-01,10\n2024-01-02,\n2024-01-03,30\n";
const GOOD = `def transform(visits):
    print(len(visits), "rows")
    return visits.assign(twice=2 * visits.visits)`;
const BAD = `def transform(visits):
    return visits.nosuch`;
const SLOW = `import time
def transform(visits):
    for step in range(40):
        print("step", step)
        time.sleep(0.1)
    return visits`;

const gateway = new Gateway({ KEEP_FAILED_JOBS: "true" });
let browser: Browser;
let page: Page;

beforeAll(async () => {
  [browser] = await Promise.all([launch(), gateway.start()]);
});
afterAll(async () => {
  await browser.close();
  await gateway.close();
});
beforeEach(async () => {
  page = await openTab(browser, gateway);
  await page.getByRole("link", { name: "Playground" }).click();
  await page.getByLabel("Script").waitFor();
});
afterEach(async () => {
  await Promise.all(browser.contexts().map((context) => context.close()));
  expect(faults.splice(0)).toEqual([]);
});

async function drop(name: string, content: string): Promise<void> {
  await dropAll({ [name]: content });
}

async function dropAll(contents: Record<string, string>): Promise<void> {
  const files = await page.evaluateHandle((all) => {
    const transfer = new DataTransfer();
    for (const [name, text] of Object.entries(all)) transfer.items.add(new File([text], name));
    return transfer;
  }, contents);
  await page.getByLabel("Script").dispatchEvent("drop", { dataTransfer: files });
}

/** Wait until a file is read: a run takes only the tables that are listed. */
async function listed(table: string): Promise<void> {
  await page.getByRole("button", { name: `Remove ${table}`, exact: true }).waitFor();
}

async function addUrl(url: string): Promise<void> {
  await page.getByRole("button", { name: "By URL" }).click();
  await page.getByLabel("URL, which the gateway fetches").fill(url);
  await page.getByRole("button", { name: "Add table" }).click();
}

const script = () => page.getByLabel("Script").textContent();

/** Paste a script over the present one. Playwright's `fill` has Chromium edit the lines, with inline styles. */
async function write(code: string): Promise<void> {
  await page.getByLabel("Script").focus();
  await page.keyboard.press("Control+A");
  await page.getByLabel("Script").evaluate((element, text) => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", text);
    element.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
  }, code);
}

/** What `%%transform` shows of a job: the profile and the stages, as HTML. */
async function notebookHtml(jobId: string): Promise<string[]> {
  const code = `import json, sys
from transform_shim.displays.pictures import profile_html, waterfall_html
from transform_shim.displays.values import StageSpan, displays_from
job, shown = json.load(sys.stdin)
spans = [StageSpan(**span) for span in job["waterfall"]]
print(json.dumps([profile_html(displays_from(shown["displays"]).profile, job["rows"]), waterfall_html(spans)]))`;
  const headers = { Authorization: `Bearer ${TOKEN}` };
  const path = `${gateway.url}/v1/jobs/${jobId}`;
  const answers = await Promise.all([path, `${path}/displays`].map(async (each) => (await fetch(each, { headers })).json()));
  return JSON.parse(execFileSync(PYTHON, ["-c", code], { cwd: ROOT, input: JSON.stringify(answers), encoding: "utf8" })) as string[];
}

const cellsOf = (html: string) => [...html.matchAll(/<tr>(.*?)<\/tr>/g)].map(([, row]) => [...row!.matchAll(/<t[dh][^>]*>(.*?)<\/t[dh]>/g)].map(([, cell]) => cell!.replace(/<[^>]*>/g, "").replaceAll("\u00a0", " "))); // JupyterLab breaks lines in cells
const numbersIn = (html: string, part: RegExp) => [...html.matchAll(part)].map(([, number]) => Number(number));

const result = () => page.getByRole("region", { name: "Result" });

test("the sample runs as it is, and its result is shown, profiled and plotted", async () => {
  await page.getByRole("button", { name: "Sample: orders" }).click();
  await page.getByText("order_id, day, country").waitFor();
  await page.getByRole("button", { name: "Run" }).click();
  await page.getByText("500 orders", { exact: true }).waitFor();
  await result().getByText(/^\d+ rows, 3 columns$/).waitFor();
  const columns = page.getByRole("region", { name: "Columns of the result" });
  await columns.getByRole("row", { name: /^country Text 0 4 DE PL$/ }).waitFor();
  await page.locator(".plot canvas").waitFor();
  const isDrawn = await page.locator(".plot canvas").evaluate((canvas: HTMLCanvasElement) => {
    const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value) => value > 0);
  });
  expect(isDrawn).toBe(true);
  await page.getByLabel("x", { exact: true }).selectOption("country");
  expect(await violations(page)).toEqual([]);
  // the plot follows the colours and the width of the page
  const box = page.locator(".plot");
  const brightest = () => box.locator("canvas").evaluate((canvas: HTMLCanvasElement) => canvas.getContext("2d")!.getImageData(0, canvas.height - 40, canvas.width, 40).data.reduce((most, value, at) => (at % 4 < 3 ? Math.max(most, value) : most), 0));
  expect(await brightest()).toBeLessThan(235);
  await page.emulateMedia({ colorScheme: "dark" });
  await expect.poll(brightest).toBeGreaterThan(235);
  await page.setViewportSize({ width: 320, height: 640 });
  await expect.poll(() => box.evaluate((element) => element.scrollWidth - element.clientWidth)).toBe(0);
  expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(320);
});

test("a dropped CSV, a failure at its line, the repair, and the difference of two runs", async () => {
  await drop("Visits.csv", CSV);
  await listed("visits");
  await page.getByText("day, visits", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Run", exact: true }).click(); // what stands in the editor takes the table that was dropped
  await result().getByText("3 rows, 2 columns").waitFor();
  await write(BAD);
  await page.keyboard.press("Control+Enter");
  await result().getByText(/AttributeError.*nosuch.*line 2/).waitFor();
  await page.locator(".cm-lint-marker-error").waitFor();
  await write(GOOD);
  await page.keyboard.press("Control+Enter");
  await result().getByText("3 rows, 3 columns").waitFor();
  expect(await page.locator(".cm-lint-marker-error").count()).toBe(0);
  await page.getByRole("row", { name: /^visits Integer 1 \(33 %\) 2 10 15 20 25 30 12 bins: 1, 0, .* 0, 1$/ }).waitFor();
  await write(GOOD.replace("twice=", "more="));
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.getByText("columns added: more; columns removed: twice").waitFor();
  await result().getByRole("link", { name: "Job" }).click();
  await page.getByText("visits: 3 rows, 2 columns").click();
  await page.getByRole("listitem").filter({ hasText: /^day Date$/ }).waitFor();
  await page.getByRole("region", { name: "Profile" }).getByRole("row", { name: /^visits Integer 1 \(33 %\) 2 10 / }).waitFor();
  expect(await page.locator(".waterfall li.inner > span:first-child").allTextContents()).toEqual(["import", "read", "transform", "write", "profile"]);
  // a bar is as long as its stage took: nothing beyond its share of the track
  const [bar, track, share] = await page.locator(".waterfall li.inner .bar").first().evaluate((element: HTMLElement) => [element.getBoundingClientRect().width, element.parentElement!.clientWidth, parseFloat(element.style.width)]);
  expect(Math.abs(bar! - (track! * share!) / 100)).toBeLessThan(1);
  expect(await violations(page)).toEqual([]);
});

test("a notebook draws the profile and the stages of a run as the page does", async () => {
  const code = `import pandas as pd\ndef transform():\n    return pd.DataFrame({"n": [1, 2.5, None, 40], "word": ["a", "b", "b", None], "day": pd.to_datetime(["2024-01-01"] * 4)})`;
  const { execution_id } = await gateway.execute(code, { request_id: "drawn", profile: true });
  await page.goto(`${gateway.url}/#/jobs/${String(execution_id)}`);
  const profile = page.getByRole("region", { name: "Profile" });
  await profile.getByRole("row", { name: /^word Text 1 \(25 %\) 2 / }).waitFor();
  const [table = "", bars = ""] = await notebookHtml(String(execution_id));
  const rows = await profile.getByRole("row").evaluateAll((found) => found.map((row) => [...(row as HTMLTableRowElement).cells].map((cell) => cell.textContent)));
  expect(cellsOf(table)).toEqual(rows);
  const heights = await profile.locator(".histogram > span").evaluateAll((found) => found.map((each) => parseFloat((each as HTMLElement).style.height)));
  // of 20 pixels, with one decimal
  expect(numbersIn(table, /height: ([\d.]+)px/g).map((pixels) => 5 * pixels)).toEqual(heights.map((each) => expect.closeTo(each, 0)));
  const stages = page.locator(".waterfall li");
  const texts = await stages.evaluateAll((found) => found.map((each) => [...each.children].map((part) => part.textContent)));
  expect(cellsOf(bars)).toEqual(texts);
  for (const [name, part] of [["marginLeft", /margin-left: ([\d.]+)%/g], ["width", /; width: ([\d.]+)%/g]] as const) {
    const drawn = await stages.locator(".bar").evaluateAll((found, key) => found.map((each) => parseFloat((each as HTMLElement).style[key])), name);
    expect(numbersIn(bars, part)).toEqual(drawn.map((each) => expect.closeTo(each, 1)));
  }
});

test("a table that is removed leaves the script that was written for it", async () => {
  await drop("wrong.csv", "a\n1\n");
  await listed("wrong");
  expect(await script()).toContain("def transform(wrong):");
  await page.getByRole("button", { name: "Remove wrong" }).click();
  await drop("visits.csv", "a\n1\n");
  await listed("visits");
  expect(await script()).toContain("def transform(visits):");
});

test("Parquet is read as a table", async () => {
  const code = "import io, sys, pyarrow as pa, pyarrow.parquet as pq; b = io.BytesIO(); pq.write_table(pa.table({'n': [1, 2, 3]}), b); sys.stdout.buffer.write(b.getvalue())";
  const buffer = execFileSync(PYTHON, ["-c", code]);
  await page.getByLabel("Choose files").setInputFiles({ name: "numbers.parquet", mimeType: "", buffer });
  await listed("numbers");
  await write("def transform(numbers):\n    return numbers");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result().getByText("3 rows, 1 column", { exact: true }).waitFor();
});

test("a table is fetched by its URL with its query as it is, and a URL that is refused says why", async () => {
  const asked: (string | undefined)[] = [];
  const storage = createServer((request, answer) => (asked.push(request.url), answer.end(CSV)));
  await new Promise<void>((resolve) => storage.listen(0, "127.0.0.1", resolve));
  try {
    const address = `http://127.0.0.1:${(storage.address() as AddressInfo).port}/bucket/Visits.csv?sign=a%2Fb`;
    await addUrl(address);
    await listed("visits");
    await write(GOOD);
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await result().getByText("3 rows, 3 columns").waitFor();
    expect(new Set(asked)).toEqual(new Set(["/bucket/Visits.csv?sign=a%2Fb"]));
  } finally {
    storage.close();
  }
  await addUrl("http://169.254.169.254/visits.csv");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.getByRole("alert").filter({ hasText: /visits.*metadata address/ }).waitFor();
  expect(await violations(page)).toEqual([]);
});

test("a reload in the middle loses neither the script nor the run", async () => {
  await drop("visits.csv", CSV);
  await listed("visits");
  await write(SLOW);
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.getByText("step 2", { exact: true }).waitFor();
  await page.reload();
  await page.getByText("step 0", { exact: true }).waitFor();
  await result().getByText("3 rows, 2 columns").waitFor();
  expect(await script()).toContain("for step in range");
});

test("a file that is dropped on the editor leaves a script that was written as it is", async () => {
  await write(GOOD);
  const before = await script();
  await drop("visits.csv", CSV);
  await listed("visits");
  // a reader that starts later ends later than one that the editor may have started
  await page.evaluate(() => new Promise((resolve) => {
    const reader = new FileReader();
    reader.onloadend = resolve;
    reader.readAsText(new File(["x"], "x.csv"));
  }));
  expect(await script()).toBe(before);
});

test("a run that ends while another view is open is shown, not the one before", async () => {
  await write("import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]})");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result().getByText("1 row, 1 column").waitFor();
  await write("import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1], 'b': [2]})");
  const answers: Route[] = []; // held back until `unroute`, so that the view is left before it knows the end
  await page.route(/\/v1\/jobs\/[0-9a-f]+$/, (route) => void answers.push(route));
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await expect.poll(() => answers.length).toBeGreaterThan(0);
  await page.getByRole("link", { name: "Jobs", exact: true }).click();
  await page.getByRole("heading", { name: "Jobs", level: 1 }).waitFor();
  await page.unroute(/\/v1\/jobs\/[0-9a-f]+$/);
  await page.getByRole("link", { name: "Playground" }).click();
  await result().getByText("1 row, 2 columns").waitFor();
});

test("a wide table and a wide difference name some of their columns", async () => {
  const names = Array.from({ length: 100 }, (_, at) => `column_${at}`);
  await drop("wide.csv", `${names.join(",")}\n${names.map((_, at) => at).join(",")}\n`);
  await page.getByText("column_19 and 80 more", { exact: false }).waitFor();
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result().getByText("1 row, 100 columns").waitFor();
  await write("def transform(wide):\n    return wide[['column_0']]");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.getByText(/columns removed: column_1, .*column_20 and 79 more$/).waitFor();
});

test("names of tables and columns are completed", async () => {
  await drop("visits.csv", "day,unusual_column\n1,2\n");
  await listed("visits");
  await write("# nothing else\n");
  await page.keyboard.type("unus");
  await page.keyboard.press("Control+Space");
  await page.getByRole("option", { name: "unusual_column" }).waitFor();
});

test("a failed job runs again with its script, modules and tables, also when its storage is gone", async () => {
  const storage = createServer((_, answer) => answer.end(CSV));
  await new Promise<void>((resolve) => storage.listen(0, "127.0.0.1", resolve));
  const code = "from counting import twice\ndef transform(visits):\n    return visits.assign(more=twice(visits.nosuch))";
  const address = `http://127.0.0.1:${(storage.address() as AddressInfo).port}/visits.csv`;
  const request = {
    request_id: "kept", library: { "counting.py": "def twice(column):\n    return 2 * column" },
    table_mapping: { visits: address }, data_format: { visits: "csv" }, timeout: 45,
  };
  const { execution_id } = await gateway.execute(code, request);
  storage.close();
  await page.goto(`${gateway.url}/#/jobs/${String(execution_id)}`);
  await page.getByText("The script").click();
  await page.getByText("return 2 * column").waitFor();
  expect(await violations(page)).toEqual([]);
  await page.getByRole("link", { name: "Run again in the playground" }).click();
  await expect.poll(script).toContain("visits.nosuch");
  await listed("visits");
  await page.getByRole("status").filter({ hasText: "From the failed job: module counting, timeout 45 s." }).waitFor();
  expect(await violations(page)).toEqual([]);
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result().getByText(/AttributeError.*nosuch.*line 3/).waitFor();
  await write(code.replace("nosuch", "visits"));
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result().getByText("3 rows, 3 columns").waitFor();
  await result().getByRole("cell", { name: "60", exact: true }).first().waitFor();
  await page.reload();
  await page.getByLabel("Script").waitFor();
  expect(await script()).toContain("visits.visits"); // not the one of the failed job again
});

test("a failed job whose table was not kept names it, and the script is saved as a file", async () => {
  const request = { request_id: "unkept", table_mapping: { gone: "http://127.0.0.1:9/gone.csv" }, data_format: { gone: "csv" } };
  const { execution_id } = await gateway.execute("def transform(gone):\n    return gone", request);
  await page.goto(`${gateway.url}/#/playground?job=${String(execution_id)}`);
  await page.getByText("Not kept: gone (it was not fetched)").waitFor();
  await drop("gone.csv", CSV);
  await listed("gone");
  expect(await page.getByText("Not kept").count()).toBe(0);
  expect(await script()).toContain("return gone");
  const saved = page.waitForEvent("download");
  await page.getByRole("button", { name: "Download script" }).click();
  expect((await saved).suggestedFilename()).toBe("transform.py");
});

test("a file of another kind is refused with its name, and those that came with it are taken", async () => {
  await dropAll({ "visits.csv": CSV, "notes.docx": "x", "users.csv": "id\n1\n" });
  await page.getByRole("alert").filter({ hasText: "notes.docx: expected a file that ends in" }).waitFor();
  await listed("visits");
  await listed("users");
});

test("a JSON array that is cut off is refused, as the command line does", async () => {
  await drop("cut.json", '[{"a": 1}, {"a": 2},');
  await page.getByRole("alert").filter({ hasText: "cut.json: the JSON array has no end, so rows may be missing" }).waitFor();
});

test("files of one name are all taken, and a file that replaces a table says so", async () => {
  await dropAll({ "visits.csv": CSV, "visits.jsonl": '{"more": 1}\n' });
  await listed("visits");
  await listed("visits_2");
  const told = page.getByText("Replaced by the new file: visits");
  expect(await told.count()).toBe(0);
  await drop("Visits.csv", "other\n1\n");
  await told.waitFor();
  await page.getByText("other", { exact: true }).waitFor();
  await listed("visits_2");
  expect(await violations(page)).toEqual([]);
  await page.getByRole("button", { name: "Remove visits", exact: true }).click();
  expect(await told.count()).toBe(0);
});

test("a file that was changed since it was chosen is named, and can be chosen again", async () => {
  const directory = mkdtempSync("/tmp/tg-files-");
  const path = `${directory}/visits.csv`;
  try {
    writeFileSync(path, CSV);
    utimesSync(path, 1_700_000_000, 1_700_000_000); // a browser compares whole seconds
    await page.getByLabel("Choose files").setInputFiles(path);
    await listed("visits");
    expect(await page.getByLabel("Choose files").inputValue()).toBe(""); // else the same choice is no change
    writeFileSync(path, `${CSV}2024-01-04,40\n`);
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.getByRole("alert").filter({ hasText: "visits.csv was changed, moved or removed since it was chosen" }).waitFor();
    await page.getByLabel("Choose files").setInputFiles(path);
    await page.getByText("Replaced by the new file: visits").waitFor();
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await result().getByText("4 rows, 2 columns").waitFor();
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("each answer is lost once, and no view lacks anything", async () => {
  const lost = new Set<string>();
  await page.route("**/v1/**", (route) => {
    const url = route.request().url();
    if (route.request().method() !== "GET" || url.includes("/v1/stream") || lost.has(url)) return route.continue();
    lost.add(url);
    return route.abort("connectionreset");
  });
  await page.getByRole("button", { name: "Sample: orders" }).click();
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result().getByText(/^\d+ rows, 3 columns$/).waitFor();
  const columns = page.getByRole("region", { name: "Columns of the result" });
  await columns.getByRole("row", { name: /^country Text 0 4 DE PL$/ }).waitFor();
  lost.clear();
  await result().getByRole("link", { name: "Job" }).click();
  await page.getByRole("region", { name: "First rows of the result" }).getByRole("row").nth(20).waitFor();
  await columns.getByRole("row", { name: /^country Text 0 4 DE PL$/ }).waitFor();
  await page.getByRole("meter", { name: /^Peak memory / }).waitFor();
  await page.getByRole("link", { name: "System" }).click();
  await page.getByRole("listitem").filter({ hasText: /^pandas \d/ }).waitFor();
  await page.getByRole("link", { name: "Now" }).click();
  await page.getByRole("heading", { name: "Recently finished" }).waitFor();
  expect(lost.size).toBeGreaterThan(6);
  expect(await page.getByRole("alert").count()).toBe(0);
});

test("a run that the page cannot ask about for long is shown when it can", async () => {
  await page.route(/\/v1\/jobs\/[0-9a-f]+$/, (route) => route.abort("connectionreset"));
  const answers = { lost: 0 };
  page.on("requestfailed", () => (answers.lost += 1));
  await write("import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]})");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await expect.poll(() => answers.lost).toBeGreaterThan(7);
  await page.unrouteAll();
  await result().getByText("1 row, 1 column").waitFor();
});

test("the mark of a failure, and what was written, can be undone after a look at another view", async () => {
  await write(BAD.replace("nosuch", "missing"));
  await write(BAD);
  await drop("visits.csv", CSV);
  await listed("visits");
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.locator(".cm-lint-marker-error").waitFor();
  await page.getByRole("link", { name: "Jobs", exact: true }).click();
  await page.getByRole("heading", { name: "Jobs", level: 1 }).waitFor();
  await page.getByRole("link", { name: "Playground" }).click();
  await page.locator(".cm-lint-marker-error").waitFor();
  await page.getByLabel("Script").focus();
  await page.keyboard.press("Control+z");
  expect(await script()).toContain("visits.missing");
});

test("a file that is compressed with gzip is a table, and a workbook is told what to do", async () => {
  const buffer = gzipSync(CSV);
  const mimeType = "application/gzip";
  await page.getByLabel("Choose files").setInputFiles({ name: "Visits.csv.gz", mimeType, buffer });
  await page.getByText("day, visits", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result().getByText("3 rows, 2 columns").waitFor();
  await page.getByLabel("Choose files").setInputFiles({ name: "cut.csv.gz", mimeType, buffer: buffer.subarray(0, 20) });
  await page.getByRole("alert").filter({ hasText: "cut.csv.gz: the browser cannot unpack it" }).waitFor();
  await drop("book.xlsx", "x");
  await page.getByRole("alert").filter({ hasText: /book\.xlsx: expected .* save the sheet as CSV/ }).waitFor();
});
