import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';

// Serves page and API from one origin, as a reverse proxy would.
const server = process.env.FASTTRACK_URL ?? 'http://127.0.0.1:8000';
const proxy = {
  '/auth': server,
  '/graphql': { target: server, ws: true, changeOrigin: true, rewriteWsOrigin: true },
};

export default defineConfig({ plugins: [react()], server: { proxy }, preview: { proxy } });
