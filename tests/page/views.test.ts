/** The page in a real browser, against a real gateway with real kernels. */
import type { Browser, Page, Route } from "playwright-core";
import { faults, launch, openTab, violations } from "./browser.ts";
import { Gateway, TOKEN } from "./gateway.ts";
import { Storage } from "./nats.ts";

const GOOD = `"""Squares of numbers."""
import pandas as pd
def transform():
    return pd.DataFrame({"n": range(30), "square": [n * n for n in range(30)]})`;
const BAD = `def ratio(x):
    return 1 / x

def transform():
    print("before")
    return ratio(0)`;
const LONG = `import time
def transform():
    for step in range(6000):
        print(f"step {step}")
        time.sleep(0.1)`;
/** Any line of LONG: the first ones have left the document when a slow machine looks for them. */
const STEP = /^step \d+$/;
const FIGURE = `import pandas as pd
from IPython.display import display
import matplotlib.pyplot as plt
def transform():
    plt.plot([1, 3, 2])
    plt.show()
    display(pd.DataFrame({"share": [0.25]}, index=["north"]))
    return pd.DataFrame({"a": [1]})`;
const CHATTY = `import pandas as pd
def transform():
    for number in range(20_000):
        print("line", number)
    return pd.DataFrame({"a": [1]})`;

const gateway = new Gateway({ SLOTS: "1", HOLD_FAILED: "1", KEEP_FAILED_JOBS: "true" });
let browser: Browser;

beforeAll(async () => {
  [browser] = await Promise.all([launch(), gateway.start()]);
});
afterAll(async () => {
  await browser.close();
  await gateway.close();
});
afterEach(async () => {
  await gateway.cancelAll(); // a test that failed leaves its slot to the next one
  await Promise.all(browser.contexts().map((context) => context.close()));
  expect(faults.splice(0)).toEqual([]);
});

const text = (page: Page, content: string | RegExp) => page.getByText(content).first();

async function jobPage(page: Page, jobId: unknown): Promise<void> {
  await page.goto(`${gateway.url}/#/jobs/${String(jobId)}`);
}

test("a stranger sees an idle gateway", async () => {
  const page = await openTab(browser, gateway);
  await text(page, "No job runs or waits").waitFor();
  await text(page, "0 of 1").waitFor();
});

test("a running job appears with its log, waits are shown, and both are cancelled", async () => {
  const page = await openTab(browser, gateway);
  await text(page, "No job runs or waits").waitFor();
  await gateway.execute(LONG, { request_id: 1, label: "nightly", timeout: 600 }, false);
  await text(page, STEP).waitFor();
  await gateway.execute(GOOD, { request_id: 2 }, false);
  const waiting = page.getByRole("listitem").filter({ hasText: "waits" });
  const cancel = waiting.getByRole("button", { name: "Cancel", exact: true });
  expect(await cancel.evaluate((button) => document.getElementById(button.getAttribute("aria-describedby") ?? "")?.textContent)).toBe("Squares of numbers.");
  await cancel.click();
  // a job that is cancelled while it waits is shown as running for the moment of its delivery
  await expect.poll(() => page.locator(".ended .cancelled").count()).toBe(1);
  await page.getByRole("article").getByRole("button", { name: "Cancel", exact: true }).click();
  await text(page, "No job runs or waits").waitFor();
  await expect.poll(() => page.locator(".ended .cancelled").count()).toBe(2);
});

test("a job's view follows it over a reload to its end", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(LONG, { request_id: 3, label: "long", timeout: 600 }, false);
  await jobPage(page, execution_id);
  await text(page, STEP).waitFor();
  await page.reload();
  await text(page, STEP).waitFor();
  await page.getByLabel("Search the log").fill("step 0");
  await text(page, /^1 of \d+ lines$/).waitFor();
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  await page.getByRole("heading", { name: "Stages" }).waitFor();
  await page.locator(".badge.cancelled").waitFor();
  await page.getByRole("heading", { name: "Why it ended" }).waitFor(); // a cancel is no failure
});

test("a running job is held, its view says how to attach, and it is released", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(LONG, { request_id: "hold", label: "stuck", timeout: 600 }, false);
  await jobPage(page, execution_id);
  await text(page, STEP).waitFor();
  await page.getByRole("button", { name: "Cancel and hold" }).click();
  await page.locator(".badge.cancelled").waitFor();
  const held = page.getByRole("region", { name: "Held kernel" });
  await held.getByText(/jupyter.* --existing/).waitFor();
  await held.getByRole("button", { name: "Release" }).click();
  await text(page, "It was released.").waitFor();
});

test("a cancel and a release that did not arrive can be sent again", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(LONG, { request_id: "again", timeout: 600 }, false);
  await jobPage(page, execution_id);
  await text(page, STEP).waitFor();
  const lost = /\/(hold|release)$/;
  const unanswered = page.getByRole("alert").filter({ hasText: "The gateway does not answer." });
  await page.route(lost, (route) => route.abort());
  await page.getByRole("button", { name: "Cancel and hold" }).click();
  await unanswered.waitFor();
  await page.unroute(lost);
  await page.getByRole("button", { name: "Cancel and hold" }).click();
  const held = page.getByRole("region", { name: "Held kernel" });
  await held.getByText(/jupyter.* --existing/).waitFor();
  await page.route(lost, (route) => route.abort());
  await held.getByRole("button", { name: "Release" }).click();
  await unanswered.waitFor();
  await held.getByText(/jupyter.* --existing/).waitFor();
  await page.unroute(lost);
  await held.getByRole("button", { name: "Release" }).click();
  await text(page, "It was released.").waitFor();
});

test("a failure shows its reason, the user's line and the held kernel", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(BAD, { request_id: 4 });
  await jobPage(page, execution_id);
  await text(page, /ZeroDivisionError: division by zero.*line 2/).waitFor();
  const own = page.locator("pre .own");
  await own.first().waitFor();
  expect((await own.allTextContents()).join("")).toContain("return 1 / x");
  await text(page, /jupyter.* --existing/).waitFor();
  await page.getByRole("button", { name: "Release" }).click();
  await text(page, "It was released.").waitFor();
  await page.getByText("The script").click();
  await page.locator("details pre").filter({ hasText: "def ratio(x):" }).waitFor();
});

test("a result shows its columns with types and its first rows", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(GOOD, { request_id: 5 });
  await jobPage(page, execution_id);
  await page.getByRole("heading", { name: "Squares of numbers." }).waitFor();
  await page.getByRole("columnheader", { name: "square Integer" }).waitFor();
  await page.getByRole("cell", { name: "361", exact: true }).waitFor();
  await text(page, "The first 20 of 30 rows.").waitFor();
  await expect.poll(() => page.title()).toBe("Squares of numbers. · Transform Gateway"); // tabs of several jobs differ
});

test("a result in another format shows its columns and says why it shows no rows", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(GOOD, { request_id: "parquet", output_format: "parquet" });
  await jobPage(page, execution_id);
  await page.getByRole("columnheader", { name: "square Integer" }).waitFor();
  await text(page, "this result is parquet").waitFor();
});

test("a result that went to a storage shows its columns with types", async () => {
  const storage = new Storage();
  await storage.start();
  try {
    const page = await openTab(browser, gateway);
    const { execution_id } = await gateway.execute(GOOD, { request_id: "away", ...storage.urls("away") });
    await jobPage(page, execution_id);
    await text(page, "30 rows, 2 columns. It went to the storage").waitFor();
    await page.getByRole("listitem").filter({ hasText: /^square Integer$/ }).waitFor();
  } finally {
    storage.close();
  }
});

test("a figure that a job displayed is shown as an image, and a table as a table", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(FIGURE, { request_id: "figure", timeout: 60 });
  await jobPage(page, execution_id);
  const image = page.getByRole("region", { name: "Figures" }).getByRole("img");
  await image.waitFor();
  await expect.poll(() => image.evaluate((element: HTMLImageElement) => element.naturalWidth)).toBeGreaterThan(100);
  const table = page.getByRole("region", { name: "Displayed table" });
  await table.getByRole("rowheader", { name: "north" }).waitFor();
  await table.getByRole("columnheader", { name: "share" }).waitFor();
  await table.getByRole("cell", { name: "0.25" }).waitFor();
  expect(await violations(page)).toEqual([]);
});

test("20,000 lines are searched, and only those in sight are in the document", async () => {
  const page = await openTab(browser, gateway);
  const { execution_id } = await gateway.execute(CHATTY, { request_id: 6, timeout: 60 });
  await jobPage(page, execution_id);
  await text(page, /^20,\d+ lines$/).waitFor();
  expect(await page.locator(".line").count()).toBeLessThan(200);
  await page.getByLabel("Search the log").fill("line 1234");
  await text(page, /^11 of 20,/).waitFor();
  const saved = page.waitForEvent("download");
  await page.getByRole("button", { name: "Download" }).click();
  expect((await saved).suggestedFilename()).toBe(`job-${String(execution_id)}.log`);
});

test("the history is filtered and sorted, and the URL keeps that", async () => {
  await gateway.execute(GOOD, { request_id: "listed-good", label: "went well" });
  await gateway.execute(BAD, { request_id: "listed-bad" });
  const page = await openTab(browser, gateway);
  await page.goto(`${gateway.url}/#/jobs`);
  await page.getByRole("link", { name: "went well" }).waitFor();
  await page.getByLabel("Outcome").selectOption("failed");
  await text(page, /ZeroDivisionError/).waitFor();
  await page.getByRole("link", { name: "went well" }).waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Duration" }).click();
  await page.reload();
  expect(await page.getByLabel("Outcome").inputValue()).toBe("failed");
  await page.locator("th[aria-sort=descending]").filter({ hasText: "Duration" }).waitFor();
  await page.getByLabel("Name contains").fill("no such label");
  await text(page, "No job matches").waitFor();
});

/** Have at least so many jobs in the history. */
async function atLeast(jobs: number): Promise<void> {
  for (let number = 0; number < jobs; number += 1) await gateway.execute("def transform(missing): pass", { request_id: `filler-${number}` });
}

test("jobs that were asked for with Show more stay when the list changes", async () => {
  for (let number = 0; number < 55; number += 1) await gateway.execute("def transform(missing): pass", { request_id: `old-${number}` });
  const page = await openTab(browser, gateway);
  await page.goto(`${gateway.url}/#/jobs`);
  await expect.poll(() => page.locator("tbody tr").count()).toBe(50);
  await page.getByRole("button", { name: "Show more" }).dblclick(); // the second click asks for the same jobs
  await page.getByRole("row").filter({ hasText: "#old-0" }).waitFor();
  await gateway.execute(GOOD, { request_id: "fresh", label: "came later" });
  await page.getByRole("link", { name: "came later" }).waitFor();
  await page.getByRole("row").filter({ hasText: "#old-0" }).waitFor();
  expect(await page.locator("tbody tr").count()).toBeGreaterThan(50);
});

test("the way back from a job leads to the same rows at the same place", async () => {
  await atLeast(60);
  const page = await openTab(browser, gateway);
  await page.goto(`${gateway.url}/#/jobs`);
  await page.getByRole("button", { name: "Show more" }).click();
  const row = page.locator("tbody tr").nth(55);
  await row.scrollIntoViewIfNeeded();
  const top = await page.evaluate(() => scrollY);
  await row.getByRole("link").click();
  await page.getByText("Job id", { exact: true }).waitFor();
  await page.goBack();
  await row.waitFor();
  await expect.poll(() => page.evaluate(() => scrollY)).toBe(top);
  await page.getByRole("link", { name: "Now", exact: true }).click();
  await page.getByRole("heading", { name: "Now", level: 1 }).waitFor();
  await page.getByRole("link", { name: "Jobs", exact: true }).click();
  await row.waitFor();
  expect(await page.evaluate(() => scrollY)).toBe(0); // not the way back
  await page.getByRole("button", { name: "Forget token" }).click();
  await page.getByLabel("Token").fill(TOKEN);
  await page.keyboard.press("Enter");
  await expect.poll(() => page.locator("tbody tr").count()).toBe(50); // nothing of another token is kept
});

test("jobs that Show more brings late are not those of other filters", async () => {
  await atLeast(60);
  await gateway.execute(GOOD, { request_id: "late", label: "of the other filter" });
  const page = await openTab(browser, gateway);
  await page.goto(`${gateway.url}/#/jobs`);
  const asked: Route[] = [];
  await page.route(/cursor=/, (route) => void asked.push(route));
  await page.getByRole("button", { name: "Show more" }).click();
  await expect.poll(() => asked.length).toBe(1);
  await page.getByLabel("Name contains").fill("of the other filter");
  await expect.poll(() => page.locator("tbody tr").count()).toBe(1);
  const answered = page.waitForResponse(/cursor=/);
  await page.unroute(/cursor=/); // which lets it go on
  await (await answered).finished();
  await page.evaluate(() => new Promise((resolve) => setTimeout(resolve))); // after what the answer does
  await page.getByRole("link", { name: "of the other filter" }).waitFor();
  expect(await page.locator("tbody tr").count()).toBe(1);
});

test("a job that ended while the page was not connected is listed as the latest", async () => {
  const page = await openTab(browser, gateway);
  await page.getByText("live", { exact: true }).waitFor();
  await gateway.execute(GOOD, { request_id: "seen", label: "seen as it ended" });
  await page.locator(".ended").getByRole("link", { name: "seen as it ended" }).waitFor();
  await page.route("**/v1/stream*", (stream) => stream.abort());
  await gateway.stop(); // after which the stream cannot continue where it was
  await gateway.start();
  await gateway.execute(GOOD, { request_id: "missed", label: "missed" });
  await page.unroute("**/v1/stream*");
  await page.locator(".ended").getByRole("link", { name: "missed", exact: true }).waitFor();
  expect((await page.locator(".ended a").allTextContents()).slice(0, 2)).toEqual(["missed", "seen as it ended"]);
  const lefts = await page.locator(".ended .why").evaluateAll((found) => found.map((each) => each.getBoundingClientRect().left));
  expect(new Set(lefts).size).toBe(1); // however long the figures beside them are
});

test("a name from right to left does not move the request id", async () => {
  await gateway.execute(GOOD, { request_id: "4711", label: "דוח מכירות" });
  const page = await openTab(browser, gateway);
  await page.goto(`${gateway.url}/#/jobs`);
  const name = await page.getByRole("link", { name: "דוח מכירות" }).boundingBox();
  const id = await page.getByText("#4711").boundingBox();
  expect(id!.x).toBeGreaterThan(name!.x);
});

test("the history comes although jobs go on changing while it is asked for", async () => {
  await gateway.execute(GOOD, { request_id: "patient", label: "listed in the end" });
  const page = await openTab(browser, gateway);
  await text(page, "No job runs or waits").waitFor();
  const asked: Route[] = []; // held back until jobs have come and gone
  const givenUp: string[] = [];
  page.on("requestfailed", (request) => givenUp.push(request.url()));
  await page.route(/\/v1\/jobs\?/, (route) => void asked.push(route));
  await page.getByRole("link", { name: "Jobs", exact: true }).click();
  await expect.poll(() => asked.length).toBe(1);
  for (const request_id of ["first", "second"]) {
    await gateway.execute(LONG, { request_id, timeout: 600 }, false);
    await page.locator(".bubble").waitFor(); // the page knows of it
    await gateway.cancelAll();
    await page.locator(".bubble").waitFor({ state: "detached" });
  }
  expect(givenUp).toEqual([]);
  await page.unroute(/\/v1\/jobs\?/); // which lets it go on
  await page.getByRole("link", { name: "listed in the end" }).waitFor();
  await page.getByRole("row").filter({ hasText: "#second" }).waitFor(); // what changed meanwhile is asked for afterwards
});

test("the system tells layers, limits and the packages of jobs", async () => {
  const page = await openTab(browser, gateway);
  await page.goto(`${gateway.url}/#/system`);
  await page.getByRole("heading", { name: /^Sandbox: tier [A-D]/ }).waitFor();
  const packages = page.getByRole("region", { name: "Packages of jobs" });
  await packages.getByText(/^\d{2,} packages/).waitFor();
  await packages.getByLabel("Find a package").fill("pandas");
  await packages.getByText(/^\d of \d+ packages/).waitFor();
  await packages.getByRole("listitem").filter({ hasText: /^pandas \d/ }).waitFor();
});

test("a job that is not known says so", async () => {
  const page = await openTab(browser, gateway);
  await jobPage(page, "0".repeat(32));
  await text(page, "This job is not known").waitFor();
  expect(await violations(page)).toEqual([]);
  await page.goto(`${gateway.url}/#/jobs/%E0%A4`); // a % that encodes nothing
  await page.reload();
  await text(page, "This job is not known").waitFor();
  await page.goto(`${gateway.url}/#/nowhere`);
  await text(page, "There is no such view").waitFor();
  expect(await violations(page)).toEqual([]);
});

test("a wrong token is refused, the right one stays in its tab only", async () => {
  const page = await openTab(browser, gateway, { token: null });
  await text(page, "This gateway needs a token.").waitFor();
  await page.getByLabel("Token").fill("wrong");
  await page.getByRole("button", { name: "Continue" }).click();
  await text(page, "The gateway does not accept this token.").waitFor();
  await page.keyboard.type("жетон"); // which no header can carry; the keyboard is where it is typed
  expect(await page.getByLabel("Token").inputValue()).toBe("жетон");
  await page.keyboard.press("Enter");
  await text(page, "The gateway does not accept this token.").waitFor();
  await page.getByLabel("Token").fill(TOKEN);
  await page.keyboard.press("Enter");
  await text(page, "No job runs or waits").waitFor();
  await page.reload();
  await text(page, "No job runs or waits").waitFor();
  const other = await page.context().newPage();
  await other.goto(gateway.url);
  await text(other, "This gateway needs a token.").waitFor();
  await page.getByRole("button", { name: "Forget token" }).click();
  await page.getByLabel("Token").waitFor();
});

test("two tabs show the same job, and one that comes late too", async () => {
  const tabs = await Promise.all([openTab(browser, gateway), openTab(browser, gateway)]);
  await gateway.execute(LONG, { request_id: 7, label: "for two", timeout: 600 }, false);
  tabs.push(await openTab(browser, gateway));
  for (const tab of tabs) await tab.getByRole("link", { name: "for two" }).waitFor();
  await tabs[0]!.getByRole("button", { name: "Cancel", exact: true }).click();
  for (const tab of tabs) await text(tab, "No job runs or waits").waitFor();
});

test("the keyboard reaches everything", async () => {
  const page = await openTab(browser, gateway);
  await text(page, "No job runs or waits").waitFor();
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  expect(await page.evaluate(() => document.activeElement?.id)).toBe("main");
  await page.getByRole("link", { name: "Jobs", exact: true }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Jobs", level: 1 }).waitFor();
  const { execution_id } = await gateway.execute(GOOD, { request_id: "by-keys", label: "reached by keys" });
  await page.getByRole("link", { name: "reached by keys" }).focus();
  await page.keyboard.press("Enter");
  await page.getByText(String(execution_id)).waitFor();
  await expect.poll(() => page.evaluate(() => document.activeElement?.id)).toBe("main"); // not the top of the page again
});

test.for(["light", "dark"] as const)("every view meets WCAG AA and fits a phone, %s", async (colorScheme) => {
  const long = "unbroken".repeat(24); // the longest label has 200 characters
  const failed = await gateway.execute(BAD.replace("1 / x", `int("${long}" * 9)`), { request_id: `${long}-${colorScheme}`, label: long });
  const good = await gateway.execute(GOOD, { request_id: `good-${colorScheme}` });
  const running = await gateway.execute(LONG, { request_id: `long-${colorScheme}`, timeout: 600 }, false);
  const page = await openTab(browser, gateway, { colorScheme, viewport: { width: 320, height: 640 } });
  for (const view of ["", "jobs", "playground", "system", ...[failed, good, running].map((job) => `jobs/${String(job.execution_id)}`)]) {
    await page.goto(`${gateway.url}/#/${view}`);
    await page.getByRole("heading", { level: 1 }).waitFor();
    await page.getByText("live", { exact: true }).waitFor();
    expect(await violations(page), view).toEqual([]);
    expect(await page.evaluate(() => document.documentElement.scrollWidth), view).toBeLessThanOrEqual(320);
  }
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.goto(`${gateway.url}/#/jobs`);
  await page.getByRole("link", { name: long }).first().waitFor();
  expect(await page.locator(".history").evaluate((table) => table.scrollWidth - table.clientWidth)).toBe(0);
  await page.goto(`${gateway.url}/#/jobs/${String(running.execution_id)}`);
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  await page.locator(".badge.cancelled").waitFor();
  const signedOut = await openTab(browser, gateway, { colorScheme, token: null });
  await signedOut.getByLabel("Token").waitFor();
  expect(await violations(signedOut)).toEqual([]);
});

test("the page says why the gateway does not let it follow the jobs", async () => {
  const page = await openTab(browser, gateway);
  await page.getByText("live", { exact: true }).waitFor();
  const body = JSON.stringify({ error: "100 streams are open; close a page that shows this gateway", code: "too_many_connections" });
  await page.route("**/v1/stream*", (stream) => stream.fulfill({ status: 503, contentType: "application/json", body }));
  await page.reload();
  await text(page, "100 streams are open; close a page that shows this gateway The page shows").waitFor();
  await page.getByText("not connected", { exact: true }).waitFor();
});

test("a long queue does not stop the page", async () => {
  const page = await openTab(browser, gateway, { token: null });
  await page.getByLabel("Token").waitFor();
  const jobs = Array.from({ length: 3000 }, (_, at) => ({
    job_id: `job${at}`, request_id: at, label: `wait ${at}`, tables: [], state: "queued", stage: null, code: null,
    created_at: new Date(Date.UTC(2026, 0, 1) + at).toISOString(), progress: [], timeout: null,
  }));
  const state = { healthy: true, slots: 1, busy_slots: 1, queue_size: 3000, max_queue_size: 5000, ready_kernels: {}, held: 0, completed: 0, failed: 0, failures_by_code: {} };
  const body = `event: snapshot\nid: a-1-0\ndata: ${JSON.stringify({ gateway: state, jobs })}\n\n`;
  await page.route("**/v1/stream*", (stream) => stream.fulfill({ contentType: "text/event-stream", body }));
  await page.getByLabel("Token").fill(TOKEN);
  await page.keyboard.press("Enter");
  await text(page, "and 2,900 more jobs.").waitFor();
  expect(await page.locator(".queue li").count()).toBe(100);
  expect(await page.getByRole("link", { name: "All jobs that wait" }).getAttribute("href")).toBe("#/jobs?state=queued&sort=created_at");
});

test("a long id keeps its digits, and a long error fills no list", async () => {
  await gateway.execute("def transform():\n    raise ValueError('y' * 3000)", { request_id: "long-error" });
  const number = "1234567890123456789"; // JavaScript would write 1234567890123456800
  const { request_id: _, ...rest } = { request_id: 0, code: GOOD };
  const headers = { Authorization: `Bearer ${TOKEN}`, "Content-Type": "application/json" };
  await fetch(`${gateway.url}/v1/execute`, { method: "POST", headers, body: `{"request_id": ${number}, ${JSON.stringify(rest).slice(1)}` });
  const page = await openTab(browser, gateway);
  for (const view of ["#/", "#/jobs"]) {
    await page.goto(`${gateway.url}/${view}`);
    const error = page.locator(".why", { hasText: "yyyy" });
    await error.waitFor();
    expect((await error.boundingBox())?.height).toBeLessThan(80);
  }
  await text(page, `#${number}`).click({ trial: true });
});

test("a gateway that goes and comes back is shown without a reload", async () => {
  const page = await openTab(browser, gateway);
  await text(page, "No job runs or waits").waitFor();
  await gateway.stop();
  await text(page, "gateway does not answer").waitFor();
  await gateway.start();
  await page.getByText("live", { exact: true }).waitFor();
  await gateway.execute(GOOD, { request_id: "after", label: "after the restart" });
  await page.getByRole("link", { name: "after the restart" }).waitFor();
});
