/** The page with named tokens: one that may only read, and one that sees the jobs of its own name only. */
import type { Browser } from "playwright-core";
import { faults, launch, openTab } from "./browser.ts";
import { Gateway, TOKEN } from "./gateway.ts";

const VIEWER = "viewer-0123456789abcdef";
const OTHER = "other-0123456789abcdef";
const GOOD = `import pandas as pd
def transform():
    return pd.DataFrame({"n": [1]})`;
const LONG = `import time
def transform():
    print("begun")
    time.sleep(600)`;

const gateway = new Gateway();
let browser: Browser;

beforeAll(async () => {
  gateway.writeTokens(`page run ${TOKEN}\nviewer read ${VIEWER}\nother run ${OTHER}\n`);
  [browser] = await Promise.all([launch(), gateway.start()]);
});
afterAll(async () => {
  await browser.close();
  await gateway.close();
});
afterEach(async () => {
  await Promise.all(browser.contexts().map((context) => context.close()));
  expect(faults.splice(0)).toEqual([]);
});

test("a token that may only read sees jobs and is told so when it would change something", async () => {
  const { execution_id } = await gateway.execute(GOOD, { request_id: "done" });
  await gateway.execute(LONG, { request_id: "nightly", timeout: 600 }, false);
  const page = await openTab(browser, gateway, { token: VIEWER });
  await page.getByText("begun").waitFor();
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  await page.getByRole("alert").filter({ hasText: "This token may only read." }).waitFor();
  await page.goto(`${gateway.url}/#/playground`);
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.getByRole("alert").filter({ hasText: "This token may only read." }).waitFor();
  await page.goto(`${gateway.url}/#/jobs/${String(execution_id)}`);
  await page.getByText("1 row, 1 column").waitFor();
  await page.getByText("This token may only read.").waitFor();
});

test("the jobs of another name are not shown, nor after a change of the token", async () => {
  const page = await openTab(browser, gateway);
  await page.getByRole("link", { name: "request nightly" }).waitFor();
  await page.getByRole("button", { name: "Forget token" }).click();
  await page.getByLabel("Token").fill(OTHER);
  await page.keyboard.press("Enter");
  await page.getByText("No job runs or waits").waitFor();
  expect(await page.getByText("nightly").count()).toBe(0);
  const own = await openTab(browser, gateway);
  await own.getByRole("button", { name: "Cancel", exact: true }).click();
  await own.locator(".ended .cancelled").waitFor();
  expect(await page.getByText(/nightly|cancelled/).count()).toBe(0);
});

test("a result of the playground is not shown to another token", async () => {
  const page = await openTab(browser, gateway);
  await page.getByRole("link", { name: "Playground" }).click();
  await page.getByRole("button", { name: "Sample: orders" }).click();
  await page.getByRole("button", { name: "Run", exact: true }).click();
  const result = page.getByRole("region", { name: "Result", exact: true });
  await result.waitFor();
  await page.getByRole("button", { name: "Forget token" }).click();
  await page.getByLabel("Token").fill(OTHER);
  await page.keyboard.press("Enter");
  await page.getByRole("alert").filter({ hasText: "no job" }).waitFor();
  expect(await result.count()).toBe(0);
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await result.waitFor();
  expect(await page.getByText("Compared with the run before").count()).toBe(0);
});
