/** A real NATS server for the tests of a cluster, and a storage that jobs can travel to. */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { connect, createServer as createListener, type AddressInfo } from "node:net";

const RETRY_MS = 50;

/** CI installs it for `make cluster-test`; elsewhere the tests of a cluster are left out. */
export const HAS_NATS = spawnSync("nats-server", ["--version"]).status === 0;

export class Nats {
  url = "";
  private process: ChildProcess | null = null;
  private readonly directory = mkdtempSync("/tmp/tg-nats-");

  async start(): Promise<void> {
    const port = await freePort();
    this.process = spawn("nats-server", ["-a", "127.0.0.1", "-p", String(port), "-js", "-sd", this.directory], { stdio: "ignore" });
    while (!(await answers(port))) {
      if (this.process.exitCode !== null) throw new Error(`nats-server ended with ${this.process.exitCode}`);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
    this.url = `nats://127.0.0.1:${port}`;
  }

  async close(): Promise<void> {
    const child = this.process;
    if (child && child.exitCode === null) {
      const gone = new Promise((resolve) => child.on("exit", resolve));
      child.kill("SIGKILL");
      await gone;
    }
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Takes what jobs upload, so that they need no file of the member that accepted them. */
export class Storage {
  private readonly server: Server = createServer((request, answer) => request.resume().on("end", () => answer.end()));

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.server.listen(0, "127.0.0.1", resolve));
  }

  /** Members of a request whose job may run on any member. */
  urls(name: string): Record<string, string> {
    const base = `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/${name}`;
    return { output_url: `${base}/output`, output_manifest_url: `${base}/manifest`, events_url: `${base}/events` };
  }

  close(): void {
    this.server.close();
    this.server.closeAllConnections();
  }
}

async function freePort(): Promise<number> {
  const listener = createListener();
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const { port } = listener.address() as AddressInfo;
  await new Promise((resolve) => listener.close(resolve));
  return port;
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => (socket.destroy(), resolve(true)));
    socket.on("error", () => resolve(false));
  });
}
