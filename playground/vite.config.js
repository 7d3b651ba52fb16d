import { defineConfig } from 'vite';

const server = process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8080';

export default defineConfig({
  base: '/graphiql/',
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
  // Workers are imported by `?worker`, which the pre-bundling does not understand.
  optimizeDeps: { exclude: ['graphiql/setup-workers/vite', '@graphiql/react/setup-workers/vite'] },
  server: {
    proxy: {
      '/auth': server,
      '^/graphql$': { target: server, ws: true, changeOrigin: true, rewriteWsOrigin: true },
    },
  },
});
