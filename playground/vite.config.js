import { readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { defineConfig } from 'vite';

const server = process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8080';

// The server carries these files in its binary and sends them as they are: each is kept compressed only.
const compressed = {
  name: 'compressed',
  apply: 'build',
  async closeBundle() {
    const entries = await readdir('dist', { recursive: true, withFileTypes: true });
    for (const entry of entries.filter((entry) => entry.isFile())) {
      const path = join(entry.parentPath, entry.name);
      await writeFile(`${path}.gz`, gzipSync(await readFile(path), { level: 9 }));
      await rm(path);
    }
  },
};

export default defineConfig({
  base: '/graphiql/',
  plugins: [compressed],
  build: {
    target: 'baseline-widely-available',
    modulePreload: { polyfill: false },
    // Monaco is one large chunk that only the editor loads.
    chunkSizeWarningLimit: 4000,
    // The licences of the bundled packages ask to travel with them.
    license: { fileName: 'licenses.md' },
    // "use client" marks in the dependencies mean nothing here.
    rolldownOptions: { checks: { moduleLevelDirective: false } },
  },
  optimizeDeps: {
    // The pre-bundling does not understand the `?worker` imports of these, nor looks behind them.
    exclude: ['graphiql/setup-workers/vite', '@graphiql/react/setup-workers/vite'],
    include: ['graphql-language-service', 'picomatch-browser'],
  },
  server: {
    proxy: {
      '/auth': server,
      '^/graphql$': { target: server, ws: true, changeOrigin: true, rewriteWsOrigin: true },
    },
  },
});
