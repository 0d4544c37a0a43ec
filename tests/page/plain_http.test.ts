/** The page by plain HTTP from another machine, where browsers keep some of their functions from it. */
import { faults, launch, openTab } from "./browser.ts";
import { Gateway } from "./gateway.ts";

const NAME = "gateway.test";
/** What Chromium remarks about a header that counts with HTTPS only. */
const ABOUT_HEADER = /^The Cross-Origin-Opener-Policy header has been ignored/;
const BAD = `def transform():
    return 1 / 0`;

test("the playground runs and the command of a held kernel is shown, without a clipboard", async () => {
  const gateway = new Gateway({ HOLD_FAILED: "1" });
  const [browser] = await Promise.all([launch(`--host-resolver-rules=MAP ${NAME} 127.0.0.1`), gateway.start()]);
  try {
    const page = await openTab(browser, { url: gateway.url.replace("127.0.0.1", NAME) });
    expect(await page.evaluate(() => isSecureContext)).toBe(false);
    await page.getByRole("link", { name: "Playground" }).click();
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.getByRole("region", { name: "Result" }).getByText(/orders/).waitFor(); // no table was given
    const { execution_id } = await gateway.execute(BAD, { request_id: "held" });
    await page.goto(`http://${NAME}:${new URL(gateway.url).port}/#/jobs/${String(execution_id)}`);
    await page.getByText(/jupyter.* --existing/).first().waitFor();
    expect(await page.getByRole("button", { name: "Copy" }).count()).toBe(0);
    expect(faults.splice(0).filter((text) => !ABOUT_HEADER.test(text))).toEqual([]);
  } finally {
    await browser.close();
    await gateway.close();
  }
});
