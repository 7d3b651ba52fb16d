// A document for React to draw on.
import { Window } from 'happy-dom';

const window = new Window();
globalThis.window = window;
globalThis.document = window.document;
globalThis.navigator ??= window.navigator;

// Relay keeps what was on the screen for another five minutes; nobody is to wait for that here.
const { setTimeout } = globalThis;
globalThis.setTimeout = (call, after, ...rest) => {
  const timer = setTimeout(call, after, ...rest);
  return after > 60_000 ? timer.unref() : timer;
};
