/*
 * The bcc backend's hooks: uprobes on sqlite3_step, sqlite3_reset and sqlite3_finalize, and the tracepoints that
 * follow processes.  They write the records of records.h into one ring.
 *
 * One compiled object serves every binary: a probe's attach cookie names its `struct layout` in a map.
 * Scratch memory belongs to a thread, not to a CPU: a uprobe's program can be preempted by another one on its CPU.
 * Defined by the loader: RING_PAGES, FOLLOW_CHILDREN (0 or 1), TASK_PID, TASK_TGID, TASK_EXIT_CODE (offsets in struct task_struct).
 */
#include <uapi/linux/ptrace.h>
#include "records.h"
#include "layout.h"

#define VDBE_BYTES 512
#define VDBE_MAX_READ 384
#define MEMS_PER_READ 64
#define MEM_MAX 72          /* sizeof(Mem) with SQLITE_DEBUG */
#define BLOCK_BYTES (MEMS_PER_READ * MEM_MAX + 128)
#define SHORT_TEXT 2048     /* pieces of this size go through the scratch block */
#define LONG_TEXT 16384     /* longer texts are read straight into the ring */
#define TEXT_PIECES 64      /* long pieces per tail call */
#define FEW_VARS 4
#define MAX_PATH 1024
#define FRAMES 8
#define SQLITE_ROW 100
#define SQLITE_DONE 101
#define SIGSTOP 19

enum { TAIL_BOUND = 0, TAIL_TEXT = 1 };

/* Per-CPU totals; sqltrace/backends/bcc/program.py has the same list. */
enum {
  COUNT_HITS,
  LOST_STATEMENT,
  LOST_TEXT,
  LOST_DATABASE,
  LOST_PROCESS,
  LOST_MAPPING,
  LOST_THREADS,    /* no room for another thread: its executions are not seen */
  LOST_STATEMENTS, /* no room for another statement */
  LOST_DEPTH,      /* more than FRAMES steps inside one another */
  COUNTS
};

struct statement_key {
  u64 stmt;
  u64 tgid;
};

struct statement {
  u64 begin_ns, end_ns, step_ns, rows;
  u64 conn, text_id, sql;
  s64 changed;               /* rows changed by its own steps, triggers included */
  u32 base[9], last[9];      /* Vdbe.aCounter when the execution began; when the last one ended */
  u32 running, flags, layout, tid;
};

struct frame { /* a step that has not returned yet */
  u64 sp, stmt, conn, begin_ns;
  u64 total;  /* sqlite3.nTotalChange at its entry */
  s64 nested; /* what steps inside it added to that */
};

struct thread {
  u32 depth, text_length;
  struct frame frames[FRAMES];
  struct record_statement out;
  /* of a bound-parameter walk in progress */
  u64 mems, sum;
  u32 left, mem_layout;
  /* of a text in progress */
  u64 text, text_offset, text_id, text_stmt, text_conn;
  u8 vdbe[VDBE_BYTES + 8];
  u8 block[BLOCK_BYTES];
};

struct follow {
  u32 parent;
  u32 unannounced; /* its PROCESS_FORK has still to be sent, from its own context */
};

BPF_RINGBUF_OUTPUT(records, RING_PAGES);
BPF_ARRAY(layouts, struct layout, 256);
BPF_HASH(followed, u32, struct follow, 16384);
BPF_HASH(stopped, u32, u64, 16384);
BPF_TABLE("lru_hash", struct statement_key, struct statement, statements, 65536);
BPF_F_TABLE("hash", u64, struct thread, threads, 16384, BPF_F_NO_PREALLOC);
BPF_ARRAY(blank, struct thread, 1);
BPF_PERCPU_ARRAY(counts, u64, COUNTS);
BPF_ARRAY(next_text_id, u64, 1);
BPF_PROG_ARRAY(tails, 2);

static __always_inline void count(int what)
{
  u64 *n = counts.lookup(&what);
  if (n)
    __sync_fetch_and_add(n, 1);
}

static __always_inline u64 read_u64(u64 address)
{
  u64 value = 0;
  bpf_probe_read_user(&value, sizeof(value), (void *)address);
  return value;
}

static __always_inline u64 read_word(u64 address, u16 size)
{
  u64 value = 0;
  if (size == 8)
    bpf_probe_read_user(&value, 8, (void *)address);
  else
    bpf_probe_read_user(&value, 4, (void *)address);
  return value;
}

/* Vdbe members out of the copy in a thread's scratch. */
static __always_inline u64 vdbe_u64(struct thread *t, u16 offset) { return *(u64 *)(t->vdbe + (offset & (VDBE_BYTES - 1))); }
static __always_inline u32 vdbe_u32(struct thread *t, u16 offset) { return *(u32 *)(t->vdbe + (offset & (VDBE_BYTES - 1))); }
static __always_inline u8 vdbe_u8(struct thread *t, u16 offset) { return *(t->vdbe + (offset & (VDBE_BYTES - 1))); }

static __always_inline int read_vdbe(struct thread *t, struct layout *l, u64 stmt)
{
  u32 n = l->vdbe_read;
  if (n > VDBE_MAX_READ)
    n = VDBE_MAX_READ;
  return bpf_probe_read_user(t->vdbe, n, (void *)stmt);
}

static __always_inline void copy_counters(u32 *to, struct thread *t, struct layout *l)
{
  u64 at = l->Vdbe_aCounter;
  if (at <= VDBE_MAX_READ) /* also not UNKNOWN */
    bpf_probe_read_kernel(to, 9 * sizeof(u32), t->vdbe + at);
}

/* Whether SQLite itself says that the statement is between its first step and its end. */
static __always_inline int sqlite_says_running(struct layout *l, u64 stmt, int otherwise)
{
  if (l->Vdbe_eVdbeState != UNKNOWN) {
    u8 state = 0;
    bpf_probe_read_user(&state, 1, (void *)(stmt + l->Vdbe_eVdbeState));
    return state == VDBE_STATE_RUN;
  }
  if (l->Vdbe_magic != UNKNOWN && l->Vdbe_pc != UNKNOWN) {
    u32 magic = 0, pc = 0;
    bpf_probe_read_user(&magic, 4, (void *)(stmt + l->Vdbe_magic));
    bpf_probe_read_user(&pc, 4, (void *)(stmt + l->Vdbe_pc));
    return magic == VDBE_MAGIC_RUN && (s32)pc >= 0;
  }
  return otherwise;
}

/*
 * Whether the innermost step under way on this thread is a step of this very statement.  sqlite3_step resets a
 * statement by itself, after DONE or an error and when the schema has changed: that ends no execution.
 */
static __always_inline int steps_itself(u64 stmt, u64 sp)
{
  u64 id = bpf_get_current_pid_tgid();
  struct thread *t = threads.lookup(&id);
  if (!t || t->depth == 0)
    return 0;
  u32 top = t->depth - 1;
  asm volatile("" : "+r"(top));
  top &= FRAMES - 1;
  return t->frames[top].stmt == stmt && t->frames[top].sp > sp;
}

static __always_inline void announce(struct follow *f, u32 tgid)
{
  if (!f->unannounced)
    return;
  f->unannounced = 0;
  struct record_process r = {};
  u64 ids = bpf_get_current_uid_gid();
  r.header.type = RECORD_PROCESS;
  r.header.size = sizeof(r);
  r.pid = tgid;
  r.parent = f->parent;
  r.time_ns = bpf_ktime_get_ns();
  r.cgroup_id = bpf_get_current_cgroup_id();
  r.uid = ids;
  r.gid = ids >> 32;
  r.action = PROCESS_FORK;
  r.exit_code = -1;
  bpf_get_current_comm(r.comm, sizeof(r.comm));
  if (records.ringbuf_output(&r, sizeof(r), 0))
    count(LOST_PROCESS);
}

/* NULL when the current process is not observed. */
static __always_inline struct follow *current_follow(void)
{
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct follow *f = followed.lookup(&tgid);
  if (f)
    announce(f, tgid);
  return f;
}

static __always_inline struct thread *current_thread(void)
{
  u64 id = bpf_get_current_pid_tgid();
  struct thread *t = threads.lookup(&id);
  if (t)
    return t;
  int zero = 0;
  struct thread *empty = blank.lookup(&zero);
  if (!empty)
    return 0;
  threads.update(&id, empty);
  t = threads.lookup(&id);
  if (!t)
    count(LOST_THREADS);
  return t;
}

static __always_inline struct layout *probe_layout(struct pt_regs *ctx, u32 *index)
{
  int i = bpf_get_attach_cookie(ctx);
  *index = i;
  return layouts.lookup(&i);
}

/* ---- statement text ---- */

static __always_inline u64 fresh_text_id(void)
{
  int zero = 0;
  u64 *n = next_text_id.lookup(&zero);
  return n ? __sync_fetch_and_add(n, 1) + 1 : 0;
}

/* Sends the path of the connection's main database.  Returns 0 when it arrived. */
static __always_inline int send_database(struct thread *t, struct layout *l, u64 conn, u64 text_id)
{
  u64 id = bpf_get_current_pid_tgid(), p = 0;
  struct record_database *r = (struct record_database *)t->block;
  long n = 0;
  if (l->sqlite3_aDb != UNKNOWN && l->Db_pBt != UNKNOWN && l->Btree_pBt != UNKNOWN && l->BtShared_pPager != UNKNOWN &&
      l->Pager_zFilename != UNKNOWN) {
    p = read_u64(conn + l->sqlite3_aDb);
    p = p ? read_u64(p + l->Db_pBt) : 0;
    p = p ? read_u64(p + l->Btree_pBt) : 0;
    p = p ? read_u64(p + l->BtShared_pPager) : 0;
    p = p ? read_u64(p + l->Pager_zFilename) : 0;
  }
  if (p)
    n = bpf_probe_read_user_str(t->block + sizeof(*r), MAX_PATH, (void *)p);
  if (n < 0)
    n = 0;
  if (n > MAX_PATH)
    n = MAX_PATH;
  r->header.type = RECORD_DATABASE;
  r->header.flags = 0;
  r->header.size = sizeof(*r) + n;
  r->pid = id >> 32;
  r->tid = id;
  r->text_id = text_id;
  r->conn = conn;
  r->length = n ? n - 1 : 0;
  r->reserved = 0;
  return records.ringbuf_output(r, sizeof(*r) + n, 0);
}

static __always_inline void head_text(struct record_text *r, struct thread *t, u32 flags, u64 length)
{
  u64 id = bpf_get_current_pid_tgid();
  r->header.type = RECORD_TEXT;
  r->header.flags = flags;
  r->header.size = sizeof(*r) + length;
  r->pid = id >> 32;
  r->tid = id;
  r->text_id = t->text_id;
  r->stmt = t->text_stmt;
  r->conn = t->text_conn;
  r->offset = t->text_offset;
  r->length = length;
  r->reserved = 0;
}

/* Sends database and the first piece of the text.  Returns 1 when more is to follow by the tail call. */
static __always_inline int send_text(struct thread *t, struct layout *l, struct statement *s, u64 stmt, u64 conn, u64 sql)
{
  struct record_text *r = (struct record_text *)t->block;
  long n = 0;
  u32 flags = TEXT_LAST;
  s->text_id = 0;
  t->text_id = fresh_text_id();
  if (send_database(t, l, conn, t->text_id)) {
    count(LOST_DATABASE);
    return 0;
  }
  t->text = sql;
  t->text_offset = 0;
  t->text_stmt = stmt;
  t->text_conn = conn;
  if (sql) {
    n = bpf_probe_read_user_str(t->block + sizeof(*r), SHORT_TEXT, (void *)sql);
    if (n < 0)
      flags |= TEXT_NULL | TEXT_TRUNCATED;
    else if (n >= SHORT_TEXT)
      flags = 0;
  } else {
    flags |= TEXT_NULL;
  }
  if (n > SHORT_TEXT)
    n = SHORT_TEXT;
  if (n > 0)
    n--;
  else
    n = 0;
  head_text(r, t, flags, n);
  if (records.ringbuf_output(r, sizeof(*r) + n, 0)) {
    count(LOST_TEXT);
    return 0;
  }
  s->text_id = t->text_id;
  t->text_offset = n;
  return !(flags & TEXT_LAST);
}

/* Tail call: the rest of a long text, straight into the ring, 16 KiB at a time. */
int long_text(struct pt_regs *ctx)
{
  struct thread *t = current_thread();
  if (!t)
    return 0;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < TEXT_PIECES; i++) {
    asm volatile("" : "+r"(i));
    struct record_text *r = records.ringbuf_reserve(sizeof(*r) + LONG_TEXT);
    if (!r) {
      count(LOST_TEXT); /* the decoder sees the gap: a text without its last piece is not used */
      return 0;
    }
    long n = bpf_probe_read_user_str((u8 *)r + sizeof(*r), LONG_TEXT, (void *)(t->text + t->text_offset));
    u32 flags = 0;
    if (n < 0) {
      flags = TEXT_LAST | TEXT_TRUNCATED;
      n = 0;
    } else if (n < LONG_TEXT) {
      flags = TEXT_LAST;
    }
    if (n > 0)
      n--;
    head_text(r, t, flags, n);
    r->header.size = sizeof(*r) + LONG_TEXT;
    records.ringbuf_submit(r, 0);
    t->text_offset += n;
    if (flags)
      return 0;
  }
  tails.call(ctx, TAIL_TEXT);
  /* 33 tail calls are spent: 34 MB. */
  struct record_text *r = (struct record_text *)t->block;
  head_text(r, t, TEXT_LAST | TEXT_TRUNCATED, 0);
  if (records.ringbuf_output(r, sizeof(*r), 0))
    count(LOST_TEXT);
  return 0;
}

/* ---- the end of an execution ---- */

/*
 * What one bound value adds to bound_bytes.  Without a branch, and with barriers so that the compiler makes none:
 * the verifier follows 8192 jumps on one path at most.
 */
static __always_inline u64 bound(u8 *mem, struct layout *l)
{
  u64 flags = *(u16 *)(mem + (l->Mem_flags & 63)), n = *(u32 *)(mem + (l->Mem_n & 63));
  u64 zeros = *(u32 *)(mem + (l->Mem_u & 63));
  u64 str = flags >> 1, integer = flags >> 2, real = flags >> 3, blob = flags >> 4, int_real = flags >> 5;
  u64 tail = flags & l->MEM_Zero;
  asm volatile("" : "+r"(str), "+r"(integer), "+r"(real), "+r"(blob), "+r"(int_real), "+r"(tail));
  u64 bytes = (str | blob) & 1, number = (integer | real | int_real) & 1;
  tail = (tail + 0xffff) >> 16; /* 1 when the flag is set */
  asm volatile("" : "+r"(bytes), "+r"(number), "+r"(tail));
  number &= bytes ^ 1;
  return bytes * (n + tail * zeros) + (number << 3);
}

static __always_inline void submit(struct thread *t)
{
  if (records.ringbuf_output(&t->out, sizeof(t->out), 0))
    count(LOST_STATEMENT);
}

static __always_inline u64 bound_block(struct thread *t, struct layout *l, u32 used, u32 most)
{
  u64 sum = 0;
  u64 size = l->sizeof_Mem;
  if (size > MEM_MAX)
    return 0;
#pragma clang loop unroll(disable)
  for (u64 i = 0; i < most; i++) {
    asm volatile("" : "+r"(i));
    if (i >= used)
      break;
    u64 at = i * size;
    asm volatile("" : "+r"(at));
    if (at > (MEMS_PER_READ - 1) * MEM_MAX)
      break;
    sum += bound(t->block + at, l);
  }
  return sum;
}

/* Tail call: sums the bound parameters of a statement that has more than one block of them. */
int bound_walk(struct pt_regs *ctx)
{
  struct thread *t = current_thread();
  if (!t)
    return 0;
  int index = t->mem_layout;
  struct layout *l = layouts.lookup(&index);
  if (!l)
    return 0;
  u64 size = l->sizeof_Mem;
  if (size > MEM_MAX)
    size = MEM_MAX;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < 16; i++) {
    asm volatile("" : "+r"(i));
    u32 now = t->left;
    if (now == 0)
      break;
    if (now > MEMS_PER_READ)
      now = MEMS_PER_READ;
    u64 bytes = now * size;
    if (bytes > MEMS_PER_READ * MEM_MAX)
      break;
    if (bpf_probe_read_user(t->block, bytes, (void *)t->mems))
      t->out.header.flags |= STATEMENT_INCOMPLETE;
    else
      t->sum += bound_block(t, l, now, MEMS_PER_READ);
    t->left -= now;
    t->mems += bytes;
  }
  if (t->left) {
    tails.call(ctx, TAIL_BOUND);
    t->out.header.flags |= STATEMENT_INCOMPLETE;
  }
  t->out.bound_bytes = t->sum;
  submit(t);
  return 0;
}

static __always_inline void begin_out(struct thread *t, struct statement *s, u64 stmt, u32 end)
{
  u64 id = bpf_get_current_pid_tgid();
  struct record_statement *r = &t->out;
  __builtin_memset(r, 0, sizeof(*r));
  r->header.type = RECORD_STATEMENT;
  r->header.flags = s->flags | end;
  r->header.size = sizeof(*r);
  r->pid = id >> 32;
  r->tid = id;
  r->begin_ns = s->begin_ns;
  r->end_ns = s->end_ns;
  r->step_ns = s->step_ns;
  r->stmt = stmt;
  r->conn = s->conn;
  r->text_id = s->text_id;
  r->rows = s->rows;
  count(COUNT_HITS);
}

/* The statement vanished where no hook looks, and its address now holds another one. */
static __always_inline void finish_unseen(struct thread *t, struct statement *s, u64 stmt)
{
  begin_out(t, s, stmt, END_UNSEEN | STATEMENT_INCOMPLETE | STATEMENT_NO_COUNTERS);
  t->out.rc = SQLITE_ROW;
  s->running = 0;
  submit(t);
}

static __always_inline u32 share(struct thread *t, struct layout *l, struct statement *s, u32 index)
{
  if (index >= l->counters || l->Vdbe_aCounter == UNKNOWN)
    return 0;
  u32 now = vdbe_u32(t, l->Vdbe_aCounter + 4 * index);
  return now >= s->base[index] ? now - s->base[index] : now;
}

/* Reads what the statement looks like at its end and sends the record.  Returns 1 when bound_walk must do the rest. */
static __always_inline int finish(struct thread *t, struct layout *l, u32 layout_index, struct statement *s, u64 stmt,
                                  u32 end, int rc)
{
  struct record_statement *r = &t->out;
  begin_out(t, s, stmt, end);
  r->rc = rc;
  s->running = 0;
  if (read_vdbe(t, l, stmt)) {
    r->header.flags |= STATEMENT_INCOMPLETE | STATEMENT_NO_COUNTERS;
    submit(t);
    return 0;
  }
  r->counters[COUNTER_FULLSCAN_STEP] = share(t, l, s, 1);
  r->counters[COUNTER_SORT] = share(t, l, s, 2);
  r->counters[COUNTER_AUTOINDEX] = share(t, l, s, 3);
  r->counters[COUNTER_VM_STEP] = share(t, l, s, 4);
  r->counters[COUNTER_REPREPARE] = share(t, l, s, 5);
  r->counters[COUNTER_FILTER_MISS] = share(t, l, s, 7);
  r->counters[COUNTER_FILTER_HIT] = share(t, l, s, 8);
  copy_counters(s->last, t, l);
  if (l->sqlite3_autoCommit != UNKNOWN) {
    u8 autocommit = 0;
    bpf_probe_read_user(&autocommit, 1, (void *)(s->conn + l->sqlite3_autoCommit));
    if (autocommit)
      r->header.flags |= STATEMENT_AUTOCOMMIT;
  }
  if (end == END_ERROR && l->sqlite3_errCode != UNKNOWN) {
    u32 code = 0;
    bpf_probe_read_user(&code, 4, (void *)(s->conn + l->sqlite3_errCode));
    if ((code & 0xff) == (rc & 0xff))
      r->rc = code;
  }
  if (end == END_DONE || end == END_ERROR) {
    if (s->changed > 0 && l->sqlite3_nChange != UNKNOWN)
      r->changes = read_word(s->conn + l->sqlite3_nChange, l->sqlite3_nChange_size);
  } else if (l->Vdbe_nChange != UNKNOWN) {
    r->changes = l->Vdbe_nChange_size == 8 ? vdbe_u64(t, l->Vdbe_nChange) : vdbe_u32(t, l->Vdbe_nChange);
  }
  u32 vars = 0;
  if (l->Vdbe_nVar != UNKNOWN) {
    vars = vdbe_u32(t, l->Vdbe_nVar);
    if (l->Vdbe_nVar_size == 2)
      vars &= 0xffff;
  }
  r->vars = vars;
  if (!vars || l->Vdbe_aVar == UNKNOWN || l->Mem_n == UNKNOWN || l->Mem_flags == UNKNOWN || l->Mem_u == UNKNOWN ||
      l->sizeof_Mem > MEM_MAX) {
    submit(t);
    return 0;
  }
  u64 mems = vdbe_u64(t, l->Vdbe_aVar);
  if (vars <= FEW_VARS) { /* most statements: a few, read in one go, without the tail call */
    u64 bytes = vars * l->sizeof_Mem;
    asm volatile("" : "+r"(bytes)); /* keep the bound below visible to the verifier */
    bytes &= 511; /* FEW_VARS * MEM_MAX is less */
    if (!bpf_probe_read_user(t->block, bytes, (void *)mems))
      r->bound_bytes = bound_block(t, l, vars, FEW_VARS);
    else
      r->header.flags |= STATEMENT_INCOMPLETE;
    submit(t);
    return 0;
  }
  t->mems = mems;
  t->sum = 0;
  t->left = vars;
  t->mem_layout = layout_index;
  return 1;
}

/* ---- probes ---- */

int step_entry(struct pt_regs *ctx)
{
  u64 stmt = PT_REGS_PARM1(ctx), sp = PT_REGS_SP(ctx), now;
  u32 index;
  if (!stmt || !current_follow())
    return 0;
  struct layout *l = probe_layout(ctx, &index);
  struct thread *t = current_thread();
  if (!l || !t)
    return 0;

  /* Frames are told apart by stack pointer: a missed return (attach, longjmp) cannot skew the depth. */
  u32 depth = t->depth;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < FRAMES; i++) {
    asm volatile("" : "+r"(i));
    if (depth == 0)
      break;
    u32 top = depth - 1;
    asm volatile("" : "+r"(top));
    top &= FRAMES - 1;
    if (t->frames[top].sp > sp)
      break;
    depth--;
  }
  if (depth >= FRAMES) {
    count(LOST_DEPTH);
    return 0;
  }

  struct statement_key key = {.stmt = stmt, .tgid = bpf_get_current_pid_tgid() >> 32};
  struct statement *s = statements.lookup(&key);
  int running = sqlite_says_running(l, stmt, s ? s->running : 0);
  int more = 0, known = s != 0;
  if (s && s->running && !running)
    finish_unseen(t, s, stmt);
  if (!s || !s->running) {
    if (!s) {
      struct statement empty = {};
      statements.update(&key, &empty);
      s = statements.lookup(&key);
      if (!s) {
        count(LOST_STATEMENTS);
        return 0;
      }
      s->sql = 1; /* no address: the text is sent below */
    }
    if (read_vdbe(t, l, stmt))
      return 0;
    u64 conn = vdbe_u64(t, l->Vdbe_db), sql = vdbe_u64(t, l->Vdbe_zSql);
    if (!conn)
      return 0;
    u32 changed = s->sql != sql || !s->text_id || s->conn != conn;
    if (l->Vdbe_aCounter != UNKNOWN) {
      copy_counters(s->base, t, l);
      /* A new statement at an old one's address has zero counters; one that ran has vm_steps. */
#pragma clang loop unroll(full)
      for (int i = 1; i < 5; i++)
        changed |= s->base[i] ^ s->last[i];
    }
    s->running = 1;
    s->layout = index;
    /* A known one goes on after BUSY where it stood; an unknown one was under way before we came. */
    s->flags = (running && !known ? STATEMENT_INCOMPLETE : 0) | (depth ? STATEMENT_NESTED : 0);
    s->begin_ns = bpf_ktime_get_ns();
    s->end_ns = s->begin_ns;
    s->step_ns = s->rows = s->changed = 0;
    s->conn = conn;
    s->sql = sql;
    if (changed)
      more = send_text(t, l, s, stmt, conn, sql);
  }
  s->tid = bpf_get_current_pid_tgid();

  u64 total = 0;
  if (l->sqlite3_nTotalChange != UNKNOWN)
    total = read_word(s->conn + l->sqlite3_nTotalChange, l->sqlite3_nChange_size);
  t->depth = depth + 1;
  asm volatile("" : "+r"(depth));
  depth &= FRAMES - 1;
  struct frame *f = &t->frames[depth];
  f->sp = sp;
  f->stmt = stmt;
  f->conn = s->conn;
  f->total = total;
  f->nested = 0;
  now = bpf_ktime_get_ns();
  f->begin_ns = now;
  if (more)
    tails.call(ctx, TAIL_TEXT);
  return 0;
}

int step_return(struct pt_regs *ctx)
{
  u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid();
  u64 sp = PT_REGS_SP(ctx) - 8; /* the return address is popped */
  u32 index;
  u32 tgid = id >> 32;
  if (!followed.lookup(&tgid))
    return 0;
  struct thread *t = threads.lookup(&id);
  struct layout *l = probe_layout(ctx, &index);
  if (!t || !l)
    return 0;
  u32 depth = t->depth;
#pragma clang loop unroll(disable)
  for (u32 i = 0; i < FRAMES; i++) {
    asm volatile("" : "+r"(i));
    if (depth == 0)
      break;
    u32 top = depth - 1;
    asm volatile("" : "+r"(top));
    top &= FRAMES - 1;
    if (t->frames[top].sp >= sp)
      break;
    depth--;
  }
  if (depth == 0)
    return 0;
  u32 at = depth - 1;
  t->depth = at;
  asm volatile("" : "+r"(at));
  at &= FRAMES - 1;
  struct frame *f = &t->frames[at];
  if (f->sp != sp) {
    t->depth = depth;
    return 0;
  }
  struct statement_key key = {.stmt = f->stmt, .tgid = tgid};
  struct statement *s = statements.lookup(&key);
  if (!s || !s->running)
    return 0;
  s->end_ns = now;
  s->step_ns += now - f->begin_ns;
  if (l->sqlite3_nTotalChange != UNKNOWN) {
    u64 total = read_word(f->conn + l->sqlite3_nTotalChange, l->sqlite3_nChange_size);
    s64 added = total - f->total;
    s->changed += added - f->nested;
    if (depth > 1) {
      u32 outer = depth - 2;
      asm volatile("" : "+r"(outer));
      outer &= FRAMES - 1;
      if (t->frames[outer].conn == f->conn)
        t->frames[outer].nested += added;
    }
  }
  int rc = PT_REGS_RC(ctx);
  if (rc == SQLITE_ROW) {
    s->rows++;
    return 0;
  }
  if (finish(t, l, index, s, key.stmt, rc == SQLITE_DONE ? END_DONE : END_ERROR, rc))
    tails.call(ctx, TAIL_BOUND);
  return 0;
}

int reset_entry(struct pt_regs *ctx)
{
  struct statement_key key = {.stmt = PT_REGS_PARM1(ctx), .tgid = bpf_get_current_pid_tgid() >> 32};
  u32 index;
  if (!key.stmt || !current_follow())
    return 0;
  struct statement *s = statements.lookup(&key);
  if (!s || !s->running || steps_itself(key.stmt, PT_REGS_SP(ctx)))
    return 0;
  struct thread *t = current_thread();
  struct layout *l = probe_layout(ctx, &index);
  if (!t || !l)
    return 0;
  if (finish(t, l, index, s, key.stmt, END_RESET, SQLITE_ROW))
    tails.call(ctx, TAIL_BOUND);
  return 0;
}

int finalize_entry(struct pt_regs *ctx)
{
  struct statement_key key = {.stmt = PT_REGS_PARM1(ctx), .tgid = bpf_get_current_pid_tgid() >> 32};
  u32 index;
  int more = 0;
  if (!key.stmt || !current_follow())
    return 0;
  struct statement *s = statements.lookup(&key);
  if (!s)
    return 0;
  if (s->running) {
    struct thread *t = current_thread();
    struct layout *l = probe_layout(ctx, &index);
    if (t && l)
      more = finish(t, l, index, s, key.stmt, END_FINALIZE, SQLITE_ROW);
  }
  statements.delete(&key);
  if (more)
    tails.call(ctx, TAIL_BOUND);
  return 0;
}

/* ---- following processes ---- */

/* Stops the current process until user space has looked at what it mapped. */
static __always_inline void stop_and_tell(u32 tgid)
{
  struct record_mapping r = {};
  u64 now = bpf_ktime_get_ns();
  r.header.type = RECORD_MAPPING;
  r.header.size = sizeof(r);
  r.pid = tgid;
  r.tid = bpf_get_current_pid_tgid();
  r.time_ns = now;
  if (records.ringbuf_output(&r, sizeof(r), 0)) {
    count(LOST_MAPPING); /* nobody would wake it: let it run */
    return;
  }
  stopped.update(&tgid, &now);
  bpf_send_signal(SIGSTOP);
}

/* The dynamic loader's debug hook: it calls this empty function whenever its list of libraries has changed. */
int loader_entry(struct pt_regs *ctx)
{
  if (current_follow())
    stop_and_tell(bpf_get_current_pid_tgid() >> 32);
  return 0;
}

static __always_inline void tell_process(u32 tgid, u32 action, int exit_code)
{
  struct record_process r = {};
  u64 ids = bpf_get_current_uid_gid();
  r.header.type = RECORD_PROCESS;
  r.header.size = sizeof(r);
  r.pid = tgid;
  r.time_ns = bpf_ktime_get_ns();
  r.cgroup_id = bpf_get_current_cgroup_id();
  r.uid = ids;
  r.gid = ids >> 32;
  r.action = action;
  r.exit_code = exit_code;
  bpf_get_current_comm(r.comm, sizeof(r.comm));
  if (records.ringbuf_output(&r, sizeof(r), 0))
    count(LOST_PROCESS);
}

/* args: parent, child (struct task_struct *); runs in the parent */
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
  u32 parent = bpf_get_current_pid_tgid() >> 32, pid = 0, tgid = 0;
  if (!FOLLOW_CHILDREN || !followed.lookup(&parent))
    return 0;
  bpf_probe_read_kernel(&pid, sizeof(pid), (void *)(ctx->args[1] + TASK_PID));
  bpf_probe_read_kernel(&tgid, sizeof(tgid), (void *)(ctx->args[1] + TASK_TGID));
  if (pid != tgid)
    return 0; /* a thread */
  struct follow f = {.parent = parent, .unannounced = 1};
  followed.update(&tgid, &f);
  return 0;
}

RAW_TRACEPOINT_PROBE(sched_process_exec)
{
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  if (!current_follow())
    return 0;
  u64 id = bpf_get_current_pid_tgid();
  threads.delete(&id); /* its frames are on a stack that is gone */
  tell_process(tgid, PROCESS_EXEC, -1);
  stop_and_tell(tgid);
  return 0;
}

/* args: task */
RAW_TRACEPOINT_PROBE(sched_process_exit)
{
  u64 id = bpf_get_current_pid_tgid();
  u32 tgid = id >> 32, tid = id;
  int code = -1;
  if (!followed.lookup(&tgid))
    return 0;
  threads.delete(&id);
  if (tid != tgid)
    return 0;
  current_follow();
  bpf_probe_read_kernel(&code, sizeof(code), (void *)(ctx->args[0] + TASK_EXIT_CODE));
  tell_process(tgid, PROCESS_EXIT, code);
  stopped.delete(&tgid);
  return 0;
}
