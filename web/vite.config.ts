import { defineConfig } from "vitest/config";

// The built page is part of the Python package and committed: no hash of a path, a time or a version may get into it,
// so that the same sources give the same bytes everywhere.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../doctor/console/static",
    emptyOutDir: true,
    target: "es2022",
    // The page's policy allows no inline script: the polyfill for preloading would be one.
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  test: { include: ["tests/**/*.test.ts"], restoreMocks: true, unstubGlobals: true },
});
