/** A real gateway with real kernels, and calls to it as another client makes them. */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { chmodSync, chownSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
export const PYTHON = process.env.PYTHON ?? `${ROOT}/.venv/bin/python`;
const STOP_MS = 20_000;

export const TOKEN = "page-0123456789abcdef";

export class Gateway {
  url = "";
  private process: ChildProcess | null = null;
  private made = "";

  constructor(private readonly settings: Record<string, string> = {}) {}

  /** Made when it is needed: a file whose tests are all skipped closes nothing. */
  private get directory(): string {
    if (!this.made) {
      this.made = mkdtempSync("/tmp/tg-");
      chmodSync(this.made, 0o755);
    }
    return this.made;
  }

  /** Have the gateway accept the tokens of a file instead of `TOKEN` alone. */
  writeTokens(text: string): void {
    const path = `${this.directory}/tokens`;
    writeFileSync(path, text, { mode: 0o600 });
    const script = "from gateway.process import privileges; print(privileges.gateway_user().uid)";
    if (process.getuid?.() === 0) chownSync(path, Number(execFileSync(PYTHON, ["-c", script], { cwd: ROOT })), 0);
    Object.assign(this.settings, { AUTH_TOKEN: "", AUTH_TOKEN_FILE: path });
  }

  /** Start, or start again at the same address; return when it listens. */
  async start(): Promise<void> {
    const port = this.url ? new URL(this.url).port : "0";
    const environment = { PATH: process.env.PATH, HOME: process.env.HOME, AUTH_TOKEN: TOKEN, PORT: port, STATE_DIR: `${this.directory}/s` };
    const child = spawn(PYTHON, ["-m", "gateway"], { cwd: ROOT, env: { ...environment, ...this.settings }, stdio: ["ignore", "ignore", "pipe"] });
    this.process = child;
    let log = "";
    this.url = await new Promise<string>((resolve, reject) => {
      child.stderr.on("data", (piece: Buffer) => {
        log += piece.toString();
        const found = /listening on (http:\/\/[^\s,]+)/.exec(log);
        if (found?.[1]) resolve(found[1]);
      });
      child.on("exit", () => reject(new Error(log)));
    });
  }

  async stop(): Promise<void> {
    const child = this.process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.on("exit", resolve));
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    await gone;
    clearTimeout(timer);
  }

  /** End it as a machine that loses its power does. */
  async kill(): Promise<void> {
    const gone = new Promise((resolve) => this.process?.on("exit", resolve));
    this.process?.kill("SIGKILL");
    await gone;
  }

  async close(): Promise<void> {
    await this.stop();
    rmSync(this.directory, { recursive: true, force: true });
  }

  async cancelAll(): Promise<void> {
    const headers = { Authorization: `Bearer ${TOKEN}` };
    for (const state of ["queued", "running"]) {
      const { jobs } = (await (await fetch(`${this.url}/v1/jobs?state=${state}`, { headers })).json()) as { jobs: { job_id: string }[] };
      for (const job of jobs) await fetch(`${this.url}/v1/jobs/${job.job_id}/cancel`, { method: "POST", headers });
    }
  }

  /** Run a job and return the answer; with `wait: false` return when it is accepted. */
  async execute(code: string, request: Record<string, unknown>, wait = true): Promise<Record<string, unknown>> {
    const headers: Record<string, string> = { Authorization: `Bearer ${TOKEN}`, "Content-Type": "application/json" };
    if (!wait) headers.Prefer = "respond-async";
    const response = await fetch(`${this.url}/v1/execute`, { method: "POST", headers, body: JSON.stringify({ code, ...request }) });
    return (await response.json()) as Record<string, unknown>;
  }
}
