import { defineConfig } from "vite";

// Built files lie flat in `built`, because the gateway serves them by name, and have hashed names, because browsers keep
// them for ever. A file is never inlined: the Content-Security-Policy allows none.
export default defineConfig({
  base: "/page/",
  build: {
    outDir: "built",
    assetsDir: "",
    assetsInlineLimit: 0,
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    target: "es2022",
  },
});
