import { readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { defineConfig } from 'vite';

const server = process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8080';

// The server embeds these files and sends them unchanged, so only the compressed form is kept.
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
    // The licenses of the bundled packages must be distributed with them.
    license: { fileName: 'licenses.md' },
    // "use client" directives in the dependencies have no effect here.
    rolldownOptions: { checks: { moduleLevelDirective: false } },
  },
  optimizeDeps: {
    // Pre-bundling does not support the `?worker` imports of these and misses their dependencies.
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
