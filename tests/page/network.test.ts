/** The page on a network that loses everything without closing a connection, as behind a router that forgot it. */
import { connect, createServer, type AddressInfo } from "node:net";
import type { Browser } from "playwright-core";
import { faults, launch, openTab } from "./browser.ts";
import { Gateway } from "./gateway.ts";

const gateway = new Gateway();
let browser: Browser;

beforeAll(async () => {
  [browser] = await Promise.all([launch(), gateway.start()]);
});
afterAll(async () => {
  await browser.close();
  await gateway.close();
});

test("a connection that has gone silent is not taken for a live one", async () => {
  const network = { isLost: false, swallowed: 0 };
  const proxy = createServer((near) => {
    const far = connect(Number(new URL(gateway.url).port), "127.0.0.1");
    near.on("data", (data) => (network.isLost ? (network.swallowed += 1) : far.write(data)));
    far.on("data", (data) => network.isLost || near.write(data));
    for (const [end, other] of [[near, far], [far, near]] as const) end.on("error", () => other.destroy()).on("close", () => other.destroy());
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  try {
    const page = await openTab(browser, { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}` });
    await page.clock.install();
    await page.reload();
    await page.getByText("live", { exact: true }).waitFor();
    network.isLost = true;
    await page.clock.fastForward(45_000);
    await page.getByText("gateway does not answer", { exact: true }).waitFor();
    await expect.poll(() => network.swallowed).toBeGreaterThan(0); // the next attempt, which gets no answer either
    network.isLost = false;
    await page.clock.fastForward(45_000);
    await page.getByText("live", { exact: true }).waitFor();
    await page.context().close();
  } finally {
    proxy.close();
  }
  expect(faults.splice(0)).toEqual([]);
});
