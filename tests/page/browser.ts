/** Debian's Chromium, and tabs that note every fault: console errors, exceptions, requests to another host. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { chromium, type Browser, type BrowserContextOptions, type Page } from "playwright-core";
import { type Gateway, TOKEN } from "./gateway.ts";

const AXE = readFileSync(fileURLToPath(new URL("../../gateway/page/node_modules/axe-core/axe.min.js", import.meta.url)), "utf8");

/** What Chromium itself writes about an answer that is a refusal, or a connection that is lost. */
const ABOUT_REQUESTS = /^Failed to load resource/;

/** Playwright waits this long for anything that a test names. */
const PATIENCE_MS = 60_000;

export const faults: string[] = [];

export function launch(...options: string[]): Promise<Browser> {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", ...options] });
}

export async function openTab(browser: Browser, gateway: Pick<Gateway, "url">, options: BrowserContextOptions & { token?: string | null } = {}): Promise<Page> {
  const { token = TOKEN, ...rest } = options;
  const context = await browser.newContext(rest);
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  page.on("console", (message) => {
    if (message.type() === "error" && !ABOUT_REQUESTS.test(message.text())) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!/^(blob|data):/.test(url) && new URL(url).origin !== gateway.url) faults.push(`a request to ${url}`);
    if (url.includes(TOKEN)) faults.push(`the token is in ${url}`);
  });
  if (token !== null) await page.addInitScript((text) => sessionStorage.setItem("token", text), token);
  await page.goto(`${gateway.url}/`);
  return page;
}

/** Return what axe finds wrong with the page, for WCAG 2.2 AA and its best practices. */
export async function violations(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  return page.evaluate(async () => {
    const { axe } = window as unknown as { axe: { run(): Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> } };
    return (await axe.run()).violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.html).join(" | ")}`);
  });
}
