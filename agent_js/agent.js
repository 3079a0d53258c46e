/*
 * The agent: sets up the ring and the hooks, and then gets out of the way.  No JavaScript runs per statement; the hooks
 * are native code (hooks.c), compiled here once per file with SQLite.
 *
 * The tracer drives it through rpc.exports: open the ring, prepare hooks for a module.  It writes the patches itself,
 * while all threads stand still, and takes them out again without our help (worker.py).
 * For libraries that are loaded later the agent asks the tracer, while dlopen waits: at that moment no thread can be
 * inside the library's functions, so it is patched at once.
 */
'use strict';

const RING_HEADER = 4096;
const RING_SLOT = 64;
const RING_SPILL = 20480;
const RING_MAGIC = uint64('0x31474e4952545153');
const EXECUTION_BYTES = 192;
const PRIVATE_BYTES = 24576; // struct private of hooks.c, in whole pages
const LAYOUT_BYTES = 64;

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const MADV_WIPEONFORK = 18;
const MFD_CLOEXEC_ALLOW_SEALING = 3;

const SIG_DFL = 0;
const SIG_IGN = 1;
const SYS_RT_SIGACTION = { x64: 13, arm64: 134 };

const FUNCTIONS = ['step', 'reset', 'finalize'];
const BREAKPOINT = 0xcc; // int3: a debugger's, or the kernel's for a uprobe
const NOP = 0x90;
const NEAR_JUMP = 0xe9; // jmp rel32
const NEAR_JUMP_BYTES = 5;
const FAR_JUMP = [0xff, 0x25, 0, 0, 0, 0]; // jmp [rip]: the address follows
const FAR_JUMP_BYTES = 14;
const NEAR = 0x7ff00000;
const SLOT_BYTES = 256; // a far jump to the hook, then at MOVED the overwritten instructions, moved, and a jump back
const MOVED = 16;
const PADDING = new Set(['endbr64', 'nop']);

const exported = (name) => Module.getGlobalExportByName(name);
const libc = (name, result, args) => new SystemFunction(exported(name), result, args);

let native = null; // {syscall, close}; see lookUp
let ring = null; // {base, size, hooks source, shared symbols}
let answering = true; // somebody hears what we ask
const modules = new Map(); // base address -> {path, functions, compiled, state, slots}
const seen = new Set(); // 'base path' of what was reported or asked about
let asked = 0;

function call(what, args) {
  const { value, errno } = what(...args);
  const number = value instanceof NativePointer ? value.toInt32() : value.valueOf();
  if (number === -1) throw new Error(`a system call failed with errno ${errno}`);
  return value;
}

/*
 * Before there is an observer, and never again: a thread in dlopen that asks us about a library holds the loader's lock
 * and waits for Frida.  So no thread of Frida's may wait for the loader's: no dlsym, no dlopen (both were seen to hang).
 */
function lookUp() {
  native = {
    syscall: libc('syscall', 'int64', ['int64', 'int64', 'pointer', 'pointer', 'int64']),
    close: libc('close', 'int', ['int']),
  };
}

function openRing(slots, executions, tsc, source) {
  const size = RING_HEADER + (8 + RING_SLOT) * slots + RING_SPILL + EXECUTION_BYTES * executions;
  lookUp();
  const mmap = libc('mmap', 'pointer', ['pointer', 'size_t', 'int', 'int', 'int', 'int64']);
  const name = Memory.allocUtf8String('sqltrace'); // resident.py looks for it
  const fd = call(libc('memfd_create', 'int', ['pointer', 'uint']), [name, MFD_CLOEXEC_ALLOW_SEALING]);
  call(libc('ftruncate', 'int', ['int', 'int64']), [fd, size]);
  const base = call(mmap, [NULL, size, PROT_READ_WRITE, MAP_SHARED, fd, 0]);
  base.add(8).writeU32(slots);
  base.add(12).writeU32(executions);
  base.writeU64(RING_MAGIC);
  const own = call(mmap, [NULL, PRIVATE_BYTES, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0]);
  call(libc('madvise', 'int', ['pointer', 'size_t', 'int']), [own, PRIVATE_BYTES, MADV_WIPEONFORK]);
  const symbols = { ring: base, private: own, constants: Memory.alloc(16), clock_gettime: exported('clock_gettime') };
  symbols.constants.add(8).writeU64(tsc ? 1 : 0);
  if (Process.arch !== 'x64') for (const f of ['getpid', 'gettid', 'nanosleep', 'pthread_self']) symbols[f] = exported(f);
  ring = { base, size, fd, source, symbols };
  return { fd, base: base.toString(), own: own.toString() };
}

function closeDescriptor() {
  native.close(ring.fd);
}

/* Compiles the hooks of one module; nothing of the target's is touched. */
function prepare(base, path, addresses, layout) {
  const state = Memory.alloc(LAYOUT_BYTES + 8 * FUNCTIONS.length);
  state.writeByteArray(layout.match(/../g).map((byte) => parseInt(byte, 16)));
  const compiled = new CModule(ring.source, { module: state, ...ring.symbols });
  const tidOffset = ring.symbols.constants;
  if (!ring.tidKnown) {
    tidOffset.writeU64(new NativeFunction(compiled.find_tid_offset, 'uint64', [])());
    ring.tidKnown = true;
  }
  const functions = addresses.map((address, i) => ({
    name: `sqlite3_${FUNCTIONS[i]}`,
    address: hookable(ptr(address)),
    original: state.add(LAYOUT_BYTES + 8 * i),
    hook: compiled[`hook_${FUNCTIONS[i]}`],
  }));
  functions.forEach((f) => f.original.writePointer(f.address));
  const slots = slotsNear(functions[0].address);
  modules.set(base, { path, functions, compiled, state, slots });
  return functions.map((f, i) => redirect(f, slots.memory.add(SLOT_BYTES * i), slots.near));
}

/*
 * Where to hook a function.  A far jump overwrites 14 bytes, and Debian's static sqlite3_reset has ten: it returns at
 * once for NULL, else jumps to the rest, which gcc has made a function of its own.  That one has the same argument and
 * result.
 */
function hookable(address) {
  let at = address;
  while (at.compare(address.add(FAR_JUMP_BYTES)) < 0) {
    const instruction = Instruction.parse(at);
    if (instruction.mnemonic === 'jmp' && instruction.operands[0].type === 'imm')
      return ptr(instruction.operands[0].value.toString());
    const checksForNull = instruction.mnemonic === 'je' || instruction.toString() === 'test rdi, rdi';
    if (!checksForNull && !PADDING.has(instruction.mnemonic)) break;
    at = instruction.next;
  }
  return address;
}

function slotsNear(address) {
  try {
    return { memory: Memory.alloc(Process.pageSize, { near: address, maxDistance: NEAR }), near: true };
  } catch (_) {
    return { memory: Memory.alloc(Process.pageSize), near: false };
  }
}

/*
 * Writes the moved beginning of a function, and returns what must be written over that beginning: not here, because
 * the application runs.  The slot is never given back: whoever is in it when the patch goes can finish.
 */
function redirect(f, slot, near) {
  // A uprobe executes the instruction that the *file* has there, so it and a patch are the program's death.
  if (f.address.readU8() === BREAKPOINT) throw cannotHook(f, 'another tracer has a breakpoint there');
  const wanted = near ? NEAR_JUMP_BYTES : FAR_JUMP_BYTES;
  let size = 0;
  Memory.patchCode(slot, SLOT_BYTES, (code) => {
    code.writeByteArray(farJump(f.hook));
    const writer = new X86Writer(code.add(MOVED), { pc: slot.add(MOVED) });
    const relocator = new X86Relocator(f.address, writer);
    while (size < wanted) {
      const read = relocator.readOne();
      if (read === 0) throw cannotHook(f, 'it is too short');
      size = read;
    }
    relocator.writeAll();
    if (!relocator.eoi) writer.putJmpAddress(f.address.add(size));
    writer.flush();
    writer.dispose();
    relocator.dispose();
  });
  f.original.writePointer(slot.add(MOVED));
  const patch = near ? nearJump(f.address, slot) : farJump(f.hook);
  while (patch.length < size) patch.push(NOP);
  f.patch = patch;
  return { address: f.address.toString(), bytes: hex(f.address, size), patched: asHex(patch) };
}

function cannotHook(f, reason) {
  return new Error(`Frida cannot hook ${f.name}: ${reason}`);
}

function nearJump(from, to) {
  const buffer = new DataView(new ArrayBuffer(4));
  buffer.setInt32(0, to.sub(from.add(NEAR_JUMP_BYTES)).toInt32(), true);
  return [NEAR_JUMP, ...new Uint8Array(buffer.buffer)];
}

function farJump(to) {
  const buffer = new DataView(new ArrayBuffer(8));
  buffer.setBigUint64(0, BigInt(to.toString()), true);
  return [...FAR_JUMP, ...new Uint8Array(buffer.buffer)];
}

const asHex = (bytes) => bytes.map((byte) => byte.toString(16).padStart(2, '0')).join('');
const hex = (address, size) => asHex(Array.from(new Uint8Array(address.readByteArray(size))));

/* Writes the patches of a library that is just being loaded: nobody executes it yet. */
function patch(base) {
  for (const f of modules.get(base).functions)
    Memory.patchCode(f.address, f.patch.length, (code) => code.writeByteArray(f.patch));
}

function hookLoaded(module) {
  const id = `answer-${asked++}`;
  const base = module.base.toString();
  let answer = null;
  const received = recv(id, (message) => {
    answer = message.hooks;
  });
  send({ kind: 'loaded', id, base, path: module.path });
  received.wait();
  if (answer === null) return;
  try {
    const patches = prepare(base, module.path, answer.addresses, answer.layout);
    patch(base);
    send({ kind: 'hooked', base, path: module.path, ...answer, patches });
  } catch (error) {
    modules.delete(base);
    send({ kind: 'refused', base, path: module.path, reason: error.message });
  }
}

/*
 * Frida's agent catches faults, to turn them into exceptions of JavaScript's.  It also swallows such a signal when it was
 * sent by kill(), which the program would have died of.  Our code is at work and causes no faults: the signals that
 * nobody caught before get their dispositions back, past the hooks by which the agent guards its handlers.
 */
function giveBackSignals(numbers, ignored) {
  const action = Memory.alloc(32); // the kernel's struct sigaction: handler, flags, restorer, mask
  for (const number of numbers) {
    action.writePointer(ptr(ignored.includes(number) ? SIG_IGN : SIG_DFL));
    call(native.syscall, [SYS_RT_SIGACTION[Process.arch], number, action, NULL, 8]);
  }
}

let listing = null; // while observe() runs: what is loaded already

function observe() {
  listing = [];
  Process.attachModuleObserver({
    onAdded(module) {
      if (!answering) return;
      const base = module.base.toString();
      // Both, because a library that was unloaded unnoticed leaves its place to another.
      const identity = `${base} ${module.path}`;
      if (seen.has(identity) || !module.path.startsWith('/')) return;
      seen.add(identity);
      if (listing !== null) listing.push({ base, path: module.path });
      else hookLoaded(module);
    },
    onRemoved(module) {
      const base = module.base.toString();
      seen.delete(`${base} ${module.path}`); // if it comes again, it is to be hooked again
    },
  });
  const found = listing;
  listing = null;
  return found;
}

/* The tracer is about to leave; the agent stays, because hooks may be on the stack, and asks nobody any more. */
function fallSilent() {
  answering = false;
}

rpc.exports = { openRing, closeDescriptor, observe, prepare, giveBackSignals, fallSilent };
