/** Pictures of each view, for people to look at: `make page-screenshots`. It tests nothing, and `make page-test` leaves it out. */
import type { Browser, Page } from "playwright-core";
import { launch, openTab } from "./browser.ts";
import { Gateway, TOKEN } from "./gateway.ts";
import { HAS_NATS, Nats, Storage } from "./nats.ts";

const DIRECTORY = process.env.SCREENSHOTS ?? "";
const NIGHTLY = `"""Nightly revenue"""
import time
def transform():
    for month in range(6000):
        print(f"month {1 + month % 12}: {1000 + 37 * month} orders joined")
        time.sleep(0.1)`;
const GOOD = `"""Churned accounts"""
import pandas as pd
import matplotlib.pyplot as plt
def transform():
    frame = pd.DataFrame({"plan": ["free", "team", "business"], "accounts": [120, 31, 7], "share": [0.081, 0.042, 0.013]})
    frame.plot.bar(x="plan", y="share")
    plt.show()
    return frame`;
const BAD = `"""Weekly sign-ups"""
def rate(signed_up, visits):
    return signed_up / visits

def transform():
    print("2 weeks read")
    return rate(3, 0)`;

const gateway = new Gateway({ SLOTS: "1", HOLD_FAILED: "5", KEEP_FAILED_JOBS: "true" });
let browser: Browser;

beforeAll(async () => {
  if (DIRECTORY) [browser] = await Promise.all([launch(), gateway.start()]);
});
afterAll(async () => {
  await browser?.close();
  await gateway.close();
});

const SHAPES = {
  light: { colorScheme: "light", viewport: { width: 1280, height: 800 } },
  dark: { colorScheme: "dark", viewport: { width: 1280, height: 800 } },
  phone: { colorScheme: "light", viewport: { width: 390, height: 844 } },
} as const;

async function playground(page: Page): Promise<void> {
  await page.getByRole("button", { name: "Sample: orders" }).click();
  await page.getByRole("button", { name: "Remove orders" }).waitFor();
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.locator(".plot canvas").waitFor();
}

test.skipIf(!DIRECTORY).for(Object.entries(SHAPES))("each view, %s", async ([shape, options]) => {
  const bad = await gateway.execute(BAD, { request_id: `bad-${shape}` });
  const good = await gateway.execute(GOOD, { request_id: `good-${shape}`, timeout: 120 });
  const page = await openTab(browser, gateway, options);
  const take = async (name: string) => page.screenshot({ path: `${DIRECTORY}/${name}-${shape}.png`, fullPage: true });
  await page.goto(`${gateway.url}/#/playground`);
  await page.getByLabel("Script").waitFor();
  await playground(page);
  await take("playground");
  await page.goto(`${gateway.url}/#/jobs/${String(bad.execution_id)}`);
  await page.locator("pre .own").first().waitFor();
  await take("job-failed");
  await page.goto(`${gateway.url}/#/jobs/${String(good.execution_id)}`);
  await page.getByRole("region", { name: "Figures" }).getByRole("img").waitFor();
  await take("job-ok");
  await gateway.execute(NIGHTLY, { request_id: `nightly-${shape}`, timeout: 600 }, false);
  await gateway.execute(GOOD, { request_id: `next-${shape}`, label: "Plans by share" }, false);
  await page.goto(`${gateway.url}/#/`);
  await page.getByText(/orders joined$/).first().waitFor();
  await page.getByText("Plans by share").first().waitFor();
  await take("now");
  if (shape === "light") {
    await page.getByText(/^month 9:/).first().waitFor(); // the log fills its place
    await page.setViewportSize({ width: 1000, height: 640 });
    await page.screenshot({ path: `${DIRECTORY}/page.png` }); // docs/page.png
    await page.setViewportSize(options.viewport);
  }
  await page.getByRole("article").getByRole("link").click();
  await page.getByText(/orders joined$/).first().waitFor();
  await take("job-running");
  await page.goto(`${gateway.url}/#/jobs`);
  await page.getByRole("table").waitFor();
  await take("jobs");
  await page.getByLabel("Name contains").fill("no such label");
  await page.getByText("No job matches").waitFor();
  await take("jobs-empty");
  await page.goto(`${gateway.url}/#/system`);
  await page.getByText(/^\d{2,} packages/).waitFor();
  await take("system");
  await gateway.cancelAll();
});

const VIEWER = "viewer-0123456789abcdef";

test.skipIf(!DIRECTORY).for(Object.entries(SHAPES))("each state, %s", async ([shape, options]) => {
  const other = new Gateway({ SLOTS: "2" });
  other.writeTokens(`page run ${TOKEN}\nviewer read ${VIEWER}\n`);
  await other.start();
  try {
    const take = async (page: Page, name: string) => page.screenshot({ path: `${DIRECTORY}/${name}-${shape}.png`, fullPage: true });
    const page = await openTab(browser, other, { ...options, token: null });
    await page.getByLabel("Token").waitFor();
    await take(page, "token-asked");
    await page.getByLabel("Token").fill("wrong");
    await page.keyboard.press("Enter");
    await page.getByText("does not accept this token").waitFor();
    await take(page, "token-wrong");
    await page.getByLabel("Token").fill(VIEWER);
    await page.keyboard.press("Enter");
    await page.getByText("No job runs or waits").waitFor();
    await take(page, "now-empty");
    await page.goto(`${other.url}/#/playground`);
    await page.getByLabel("Script").waitFor();
    await take(page, "playground-empty");
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.getByText("This token may only read.").waitFor();
    await take(page, "no-right");
    await page.goto(`${other.url}/#/jobs`);
    await page.getByText("No jobs yet").waitFor();
    await take(page, "jobs-none");
    const waiting = await openTab(browser, other, options);
    await waiting.route(/\/v1\//, () => undefined);
    await waiting.reload();
    await waiting.getByText("Loading").waitFor();
    await take(waiting, "loading");
    await page.goto(`${other.url}/#/`);
    await page.getByText("No job runs or waits").waitFor();
    await other.stop();
    await page.getByText("The gateway does not answer.").waitFor();
    await take(page, "gateway-gone");
    await page.getByRole("link", { name: "Jobs", exact: true }).click();
    await page.getByRole("heading", { name: "Jobs", level: 1 }).waitFor();
    await take(page, "gateway-gone-jobs");
  } finally {
    await other.close();
  }
});

test.skipIf(!DIRECTORY || !HAS_NATS)("a cluster", async () => {
  const [nats, storage] = [new Nats(), new Storage()];
  await Promise.all([nats.start(), storage.start()]);
  const gateways = [1, 2, 3].map(() => new Gateway({ CLUSTER_URL: nats.url, SLOTS: "1", READY_KERNELS: "0" }));
  try {
    await Promise.all(gateways.map((each) => each.start()));
    const [first, , third] = gateways;
    await first!.execute(NIGHTLY, { request_id: "nightly", timeout: 600 }, false);
    await first!.execute(NIGHTLY, { request_id: "weekly", label: "Weekly revenue", timeout: 600, ...storage.urls("a") }, false);
    for (const [shape, options] of Object.entries(SHAPES)) {
      const page = await openTab(browser, first!, options);
      await page.getByText(/^on /).nth(1).waitFor();
      if (shape === "light") await third!.kill();
      await page.getByText("does not answer", { exact: true }).waitFor();
      await page.screenshot({ path: `${DIRECTORY}/cluster-${shape}.png`, fullPage: true });
    }
  } finally {
    await Promise.all(gateways.map((each) => each.close()));
    storage.close();
    await nats.close();
  }
});
