// Runs the smoke test: node run.mjs wasm_smoke.wasm
//
// The clocks come from `web-time`, which asks JavaScript for them through wasm-bindgen. Its tool would write the functions that
// the module imports; these few are written by hand, so that nothing has to be installed. An index stands for an object; the
// small ones are reserved.
import { readFileSync } from "node:fs";

const RESERVED = 2048;
const objects = new Array(RESERVED);
const keep = (object) => (object === undefined ? 0 : objects.push(object) - 1);

const functions = {
  static_accessor_GLOBAL_THIS: () => keep(globalThis),
  static_accessor_SELF: () => keep(undefined),
  static_accessor_GLOBAL: () => keep(undefined),
  static_accessor_WINDOW: () => keep(undefined),
  performance: (index) => keep(objects[index].performance),
  now: (index) => objects[index].now(),
  __wbindgen_is_undefined: (index) => Number(objects[index] === undefined),
  __wbindgen_externref_statics_end: () => RESERVED,
  __wbindgen_object_clone_ref: (index) => keep(objects[index]),
  __wbindgen_object_drop_ref: () => {},
};

const module = new WebAssembly.Module(readFileSync(process.argv[2]));
const imports = {};
for (const { module: from, name } of WebAssembly.Module.imports(module)) {
  const known = functions[name.replace(/^__wbg_/, "").replace(/_[0-9a-f]{16}$/, "")];
  const missing = () => {
    throw new Error(`run.mjs has no function ${name}`);
  };
  imports[from] = { ...imports[from], [name]: known ?? missing };
}
const { exports } = new WebAssembly.Instance(module, imports);

// The first failure is the last check: after a trap the module is in no state to go on.
const check = (name) => {
  const line = exports[name]();
  if (line !== 0) {
    throw new Error(`${name}: the condition in line ${line} of src/lib.rs does not hold`);
  }
  console.log(`ok ${name}`);
};

check("first");
await new Promise((resolve) => setTimeout(resolve, 60));
check("later");
check("without_threads");
check("finalizer");
check("builds");
