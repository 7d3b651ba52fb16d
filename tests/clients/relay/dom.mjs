// A DOM for React to render into.
import { Window } from 'happy-dom';

const window = new Window();
globalThis.window = window;
globalThis.document = window.document;
globalThis.navigator ??= window.navigator;

// Relay retains released queries for five minutes; do not keep the test process alive for that.
const { setTimeout } = globalThis;
globalThis.setTimeout = (call, after, ...rest) => {
  const timer = setTimeout(call, after, ...rest);
  return after > 60_000 ? timer.unref() : timer;
};
