/** The page of a cluster: its members, and jobs that another member runs or keeps. */
import type { Browser, Page } from "playwright-core";
import { faults, launch, openTab, violations } from "./browser.ts";
import { Gateway, TOKEN } from "./gateway.ts";
import { HAS_NATS, Nats, Storage } from "./nats.ts";

const LONG = `import time
def transform():
    print("begun")
    time.sleep(600)`;
const BAD = `def transform():
    print("before the failure")
    return 1 / 0`;

const nats = new Nats();
const storage = new Storage();
let browser: Browser;
let [here, there]: Gateway[] = [];
let names: string[] = [];

beforeAll(async () => {
  if (!HAS_NATS) return;
  await Promise.all([nats.start(), storage.start()]);
  [here, there] = ["here", "there"].map(() => new Gateway({ CLUSTER_URL: nats.url, SLOTS: "1", READY_KERNELS: "0", HOLD_FAILED: "1" }));
  [browser] = await Promise.all([launch(), here!.start(), there!.start()]);
  names = await Promise.all([here!, there!].map(nameOf));
});
afterAll(async () => {
  await browser?.close();
  await Promise.all([here?.close(), there?.close()]);
  storage.close();
  await nats.close();
});
afterEach(async () => {
  await Promise.all(browser.contexts().map((context) => context.close()));
  expect(faults.splice(0)).toEqual([]);
});

async function nameOf(gateway: Gateway): Promise<string> {
  const answer = await fetch(`${gateway.url}/v1/status`, { headers: { Authorization: `Bearer ${TOKEN}` } });
  return ((await answer.json()) as { cluster: { member: string } }).cluster.member;
}

const members = (page: Page) => page.getByRole("region", { name: "Members", exact: true });

/** Have the next job of `here` run on `there`: a job whose result is kept stays where it was accepted. */
async function busyHere(page: Page): Promise<void> {
  await here!.execute(LONG, { request_id: "stays", label: "stays", timeout: 600 }, false);
  await page.getByRole("article").filter({ hasText: "begun" }).waitFor();
}

test.skipIf(!HAS_NATS)("both members are listed, and a job says where it runs", async () => {
  const page = await openTab(browser, here!);
  await members(page).getByRole("row").filter({ hasText: names[1]! }).filter({ hasText: "0 of 1" }).waitFor();
  await members(page).getByRole("row").filter({ hasText: "this one" }).filter({ hasText: names[0]! }).waitFor();
  await busyHere(page);
  const { execution_id } = await here!.execute(LONG, { request_id: "travels", label: "travels", timeout: 600, ...storage.urls("a") }, false);
  await page.getByRole("article").filter({ hasText: "travels" }).getByText(`on ${names[1]}`).waitFor();
  await members(page).getByRole("row").filter({ hasText: names[1]! }).filter({ hasText: "1 of 1" }).waitFor();
  await page.goto(`${here!.url}/#/jobs`);
  await page.getByRole("row").filter({ hasText: "travels" }).getByText(`on ${names[1]}`).waitFor();
  // the other member's page follows the job as well, with the log that the first one keeps
  const other = await openTab(browser, there!);
  await other.goto(`${there!.url}/#/jobs/${String(execution_id)}`);
  await other.getByText("begun", { exact: true }).waitFor();
  expect(await violations(other)).toEqual([]);
  await here!.cancelAll();
  await other.locator(".badge.cancelled").waitFor();
  await other.getByText("Ran on").waitFor();
});

test.skipIf(!HAS_NATS)("a cluster in which no machine runs jobs says so until one does", async () => {
  const alone = new Nats();
  await alone.start();
  const [front, back] = ["0", "1"].map((slots) => new Gateway({ CLUSTER_URL: alone.url, SLOTS: slots, READY_KERNELS: "0" })) as [Gateway, Gateway];
  try {
    await front.start();
    const page = await openTab(browser, front);
    const told = page.getByRole("alert").filter({ hasText: "No machine of the cluster runs jobs." });
    await told.waitFor();
    expect(await violations(page)).toEqual([]);
    await back.start();
    await told.waitFor({ state: "detached" });
  } finally {
    await Promise.all([front.close(), back.close()]);
    await alone.close();
  }
});

test.skipIf(!HAS_NATS)("the command that attaches to a kernel names the machine, and only that one releases it", async () => {
  const page = await openTab(browser, here!);
  await busyHere(page);
  const { execution_id } = await here!.execute(BAD, { request_id: "fails", label: "fails", ...storage.urls("b") });
  await page.goto(`${here!.url}/#/jobs/${String(execution_id)}`);
  const held = page.getByRole("region", { name: "Held kernel" });
  await held.getByText(`the machine of ${names[1]}`).waitFor();
  await held.getByText(/jupyter.* --existing/).waitFor();
  expect(await held.getByRole("button", { name: "Release" }).count()).toBe(0);
  expect(await violations(page)).toEqual([]);
  await here!.cancelAll();
  const other = await openTab(browser, there!);
  await other.goto(`${there!.url}/#/jobs/${String(execution_id)}`);
  await other.getByText("before the failure").waitFor();
  await other.getByRole("button", { name: "Release" }).click();
  await other.getByText("It was released.").waitFor();
});

test.skipIf(!HAS_NATS)("a member that vanished is shown as one that does not answer, and its jobs as missing", async () => {
  const page = await openTab(browser, here!, { viewport: { width: 360, height: 740 } });
  await members(page).getByRole("row").filter({ hasText: names[1]! }).filter({ hasText: "ready" }).waitFor();
  await there!.kill();
  await members(page).getByRole("row").filter({ hasText: names[1]! }).filter({ hasText: "does not answer" }).waitFor();
  expect(await violations(page)).toEqual([]);
  expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(360);
  await page.goto(`${here!.url}/#/jobs`);
  await page.getByRole("alert").filter({ hasText: `${names[1]} does not answer` }).waitFor();
  await there!.start();
  await page.goto(`${here!.url}/#/`);
  await members(page).getByRole("row").filter({ hasText: names[1]! }).filter({ hasText: "ready" }).waitFor();
});
