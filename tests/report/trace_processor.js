// Perfetto's trace processor as a process: requests of its protocol on stdin, replies on stdout.
// node trace_processor.js FOLDER: the folder of Perfetto's user interface, whose engine_bundle.js
// and .wasm a browser runs as a worker; here node stands for the browser.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const folder = process.argv[2];
const log = (text) => process.stderr.write(`${text}\n`);
console.log = console.warn = console.error = log; // stdout is for replies

// what the bundle expects of a worker; it must not take this for node
process.type = "renderer";
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = class {};
globalThis.importScripts = () => {};
globalThis.location = { href: "https://localhost/" };
globalThis.XMLHttpRequest = class {
  open(_, name) {
    this.file = path.join(folder, path.basename(name));
  }
  send() {
    this.response = new Uint8Array(fs.readFileSync(this.file)).buffer;
  }
};

const port = { postMessage: (reply) => fs.writeSync(1, Buffer.from(reply)) };
const bundle = path.join(folder, "engine_bundle.js");
vm.runInThisContext(fs.readFileSync(bundle, "utf8"), { filename: bundle });
self.onmessage({ data: port });

// the engine sets itself up in promises, which come before the first input
process.stdin.on("data", (bytes) => port.onmessage({ data: new Uint8Array(bytes) }));
