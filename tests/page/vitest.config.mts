import { fileURLToPath } from "node:url";

// The tests lie beside all others, and the packages beside the page.
const packages = fileURLToPath(new URL("../../gateway/page/node_modules", import.meta.url));

export default {
  root: fileURLToPath(new URL(".", import.meta.url)),
  resolve: { alias: { "playwright-core": `${packages}/playwright-core`, "axe-core": `${packages}/axe-core/axe.js` } },
  // generous, for a machine that is busy with other work
  test: {
    globals: true,
    testTimeout: 240_000,
    hookTimeout: 120_000,
    expect: { poll: { timeout: 60_000 } },
    fileParallelism: false,
    include: ["*.test.ts"],
  },
};
